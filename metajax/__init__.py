"""Learning to learn as pure functions.

A learner is four pure functions, `init, start, adapt, predict`; an objective scores it on one task; a
meta-gradient scores it on many and says how to improve. All of them work under `jit`, `vmap`, `grad` and
`shard_map`, and inside any other JAX program.
"""

from metajax.cost import flops
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.rules import Rule, learned_rates, stop_gradient
from metajax.learners.gradient import anil, check_mixed, gradient_learner, maml, meta_sgd
from metajax.losses import accuracy, cross_entropy, squared_error
from metajax.metagrad import backprop
from metajax.objectives import query_objective, query_outputs
from metajax.sharding import over_episodes, over_tasks, task_mesh
from metajax.train import (
    TrainState,
    confidence_interval,
    draw_tasks,
    init_state,
    make_evaluate,
    make_step,
    many_steps,
    skip_nonfinite,
)
from metajax.types import Batch, Episode, Learner, Model

__version__ = "0.1.0"

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Batch",
    "Episode",
    "Learner",
    "Model",
    "Rule",
    "TrainState",
    "accuracy",
    "anil",
    "backprop",
    "check_mixed",
    "confidence_interval",
    "cross_entropy",
    "draw_tasks",
    "flops",
    "gradient_learner",
    "init_state",
    "learned_rates",
    "make_evaluate",
    "make_step",
    "maml",
    "many_steps",
    "meta_sgd",
    "over_episodes",
    "over_tasks",
    "query_objective",
    "query_outputs",
    "skip_nonfinite",
    "squared_error",
    "stop_gradient",
    "task_mesh",
]
