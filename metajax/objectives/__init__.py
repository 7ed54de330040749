"""Objectives: the loss and the metrics of one task."""

from metajax.objectives.adversarial import Attack, adversarial_objective
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.query import (
    adapt_to_task,
    annealed_weights,
    multi_step_objective,
    query_objective,
    query_outputs,
)
from metajax.objectives.scoring import Scoring
from metajax.objectives.sequence import sequence_objective

__all__ = [
    "EPISODE",
    "Attack",
    "Scoring",
    "TaskEvidence",
    "adapt_to_task",
    "adversarial_objective",
    "annealed_weights",
    "multi_step_objective",
    "query_objective",
    "query_outputs",
    "sequence_objective",
]
