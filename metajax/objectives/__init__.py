"""Objectives: the outer loss and the metrics of one task.

An objective is a function `(meta, key, task) -> (loss, metrics)`. It adapts a learner to the task's support
evidence and scores the predictions for the query evidence; a meta-gradient averages it over tasks.

- `query_objective` scores once, after adapting; `multi_step_objective` after every call of `adapt`.
- `sequence_objective` predicts each example before it reads the label.
- `adversarial_objective` attacks support or query inputs.

`Scoring` holds the loss, the metrics and a penalty; `TaskEvidence` provides the examples of a task.
"""

from metajax.objectives.adversarial import Attack, adversarial_objective
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.multi_step import annealed_weights, multi_step_objective
from metajax.objectives.query import adapt_to_task, query_objective, query_outputs
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
