"""Learning to learn as pure functions.

A learner is four pure functions, `init, start, adapt, predict`, and a fifth, `adapted`, that names the
parameters that moved, if any; an objective scores it on one task; a meta-gradient scores it on many and
says how to improve. All of them work under `jit`, `vmap`, `grad` and `shard_map`, and inside any other JAX
program.
"""

from metajax import metrics
from metajax.adversarial import Attack, adversarial_objective
from metajax.cost import flops
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.listed import Listed, ListedSampler
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitSampler
from metajax.evidence import EPISODE, TaskEvidence
from metajax.evolution import evolution, pes
from metajax.inner.adjoints import ADJOINTS, Adjoint, unroll
from metajax.inner.forgetting import forgetting
from metajax.inner.implicit import argmin, conjugate_gradient, hessian_free, identity, neumann
from metajax.inner.mixed import mixed_gradient, mixed_mode_error
from metajax.inner.rules import learned_rates, learned_transformation, stop_gradient
from metajax.inner.scalars import fixed, learned
from metajax.inner.stepwise import PerStep
from metajax.learners.baseline import baseline, classification_objective, linear_probe, simpleshot
from metajax.learners.closed_form import closed_form, logistic, ridge, svm
from metajax.learners.ensemble import averaged, ensemble, selected, together
from metajax.learners.full_context import full_context
from metajax.learners.gradient import check_mixed, gradient_learner
from metajax.learners.implicit import imaml
from metajax.learners.in_context import in_context
from metajax.learners.leo import leo, leo_penalty
from metajax.learners.maml import (
    anil,
    boil,
    learned_optimizer,
    maml,
    meta_curvature,
    meta_lstm,
    meta_sgd,
)
from metajax.learners.maml_plus_plus import maml_plus_plus
from metajax.learners.memory import mann_reader
from metajax.learners.metanet import metanet
from metajax.learners.metric import matching, protonet, relation, relation_loss
from metajax.learners.neural_process import anp, cnp, gaussian_nll
from metajax.learners.noise import noisy
from metajax.learners.one_query import one_query_at_a_time
from metajax.learners.recurrent import gru_reader, lstm_reader, reading
from metajax.learners.reparametrised import cavia, lora, warpgrad
from metajax.learners.snail import snail
from metajax.losses import accuracy, cross_entropy, squared_error
from metajax.metagrad import backprop, reptile, scheduled, switch_at
from metajax.metrics import Metric, confidence_interval
from metajax.objectives import (
    annealed_weights,
    multi_step_objective,
    query_objective,
    query_outputs,
)
from metajax.scoring import Scoring
from metajax.sequences import sequence_objective
from metajax.sharding import draw_over_tasks, over_episodes, over_tasks, task_mesh
from metajax.train import (
    TrainState,
    draw_tasks,
    init_state,
    make_evaluate,
    make_run,
    make_step,
    many_steps,
    running_averages,
    skip_nonfinite,
)
from metajax.types import Batch, Episode, Learner, MetaGrad, Model, Objective, Parts

__version__ = "0.1.0"

__all__ = [
    "ADJOINTS",
    "EPISODE",
    "Adjoint",
    "Attack",
    "Batch",
    "Episode",
    "GroupSampler",
    "Learner",
    "Listed",
    "ListedSampler",
    "MetaGrad",
    "Metric",
    "Model",
    "Objective",
    "Parts",
    "PerStep",
    "Rows",
    "Scoring",
    "SplitSampler",
    "TaskEvidence",
    "TrainState",
    "accuracy",
    "adversarial_objective",
    "anil",
    "annealed_weights",
    "anp",
    "argmin",
    "averaged",
    "backprop",
    "baseline",
    "boil",
    "cavia",
    "check_mixed",
    "classification_objective",
    "closed_form",
    "cnp",
    "confidence_interval",
    "conjugate_gradient",
    "cross_entropy",
    "draw_over_tasks",
    "draw_tasks",
    "ensemble",
    "evolution",
    "fixed",
    "flops",
    "forgetting",
    "full_context",
    "gaussian_nll",
    "gradient_learner",
    "gru_reader",
    "hessian_free",
    "identity",
    "imaml",
    "in_context",
    "init_state",
    "learned",
    "learned_optimizer",
    "learned_rates",
    "learned_transformation",
    "leo",
    "leo_penalty",
    "linear_probe",
    "logistic",
    "lora",
    "lstm_reader",
    "make_evaluate",
    "make_run",
    "make_step",
    "maml",
    "maml_plus_plus",
    "mann_reader",
    "many_steps",
    "matching",
    "meta_curvature",
    "meta_lstm",
    "meta_sgd",
    "metanet",
    "metrics",
    "mixed_gradient",
    "mixed_mode_error",
    "multi_step_objective",
    "neumann",
    "noisy",
    "one_query_at_a_time",
    "over_episodes",
    "over_tasks",
    "pes",
    "protonet",
    "query_objective",
    "query_outputs",
    "reading",
    "relation",
    "relation_loss",
    "reptile",
    "ridge",
    "running_averages",
    "scheduled",
    "selected",
    "sequence_objective",
    "simpleshot",
    "skip_nonfinite",
    "snail",
    "squared_error",
    "stop_gradient",
    "svm",
    "switch_at",
    "task_mesh",
    "together",
    "unroll",
    "warpgrad",
]
