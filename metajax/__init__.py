"""Learning to learn as pure functions.

A learner is four pure functions, `init, start, adapt, predict`; an objective scores it on one task; a
meta-gradient scores it on many and says how to improve. All of them work under `jit`, `vmap`, `grad` and
`shard_map`, and inside any other JAX program.
"""

from metajax.cost import flops
from metajax.evolution import evolution, pes
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.inner.forgetting import forgetting
from metajax.inner.implicit import conjugate_gradient, hessian_free, identity, neumann
from metajax.inner.rules import Rule, learned_rates, stop_gradient
from metajax.inner.stepwise import PerStep
from metajax.learners.ensemble import ensemble
from metajax.learners.gradient import check_mixed, gradient_learner
from metajax.learners.implicit import imaml, learned_strength
from metajax.learners.leo import leo, leo_penalty
from metajax.learners.maml import (
    anil,
    boil,
    learned_optimizer,
    maml,
    meta_curvature,
    meta_sgd,
)
from metajax.learners.maml_plus_plus import maml_plus_plus
from metajax.learners.reparametrised import cavia, lora, warpgrad
from metajax.losses import accuracy, cross_entropy, squared_error
from metajax.metagrad import backprop, reptile
from metajax.objectives import (
    annealed_weights,
    multi_step_objective,
    query_objective,
    query_outputs,
    switch_at,
)
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
from metajax.types import Batch, Episode, Learner, MetaGrad, Model, Objective, Scheduled

__version__ = "0.1.0"

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Batch",
    "Episode",
    "Learner",
    "MetaGrad",
    "Model",
    "Objective",
    "PerStep",
    "Rule",
    "Scheduled",
    "TrainState",
    "accuracy",
    "anil",
    "annealed_weights",
    "backprop",
    "boil",
    "cavia",
    "check_mixed",
    "confidence_interval",
    "conjugate_gradient",
    "cross_entropy",
    "draw_tasks",
    "ensemble",
    "evolution",
    "flops",
    "forgetting",
    "gradient_learner",
    "hessian_free",
    "identity",
    "imaml",
    "init_state",
    "learned_optimizer",
    "learned_rates",
    "learned_strength",
    "leo",
    "leo_penalty",
    "lora",
    "make_evaluate",
    "make_step",
    "maml",
    "maml_plus_plus",
    "many_steps",
    "meta_curvature",
    "meta_sgd",
    "multi_step_objective",
    "neumann",
    "over_episodes",
    "over_tasks",
    "pes",
    "query_objective",
    "query_outputs",
    "reptile",
    "skip_nonfinite",
    "squared_error",
    "stop_gradient",
    "switch_at",
    "task_mesh",
    "warpgrad",
]
