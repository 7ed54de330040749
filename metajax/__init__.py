"""Learning to learn as pure functions.

A learner is four pure functions, `init, start, adapt, predict`, and a fifth, `adapted`, that names the
parameters that moved, if any; an objective scores it on one task; a meta-gradient scores it on many and
says how to improve. All of them work under `jit`, `vmap`, `grad` and `shard_map`, and inside any other JAX
program.

The names here are those that most programs need. The rest is in rooms, which load when first used:
`metajax.learners`, `rules`, `inner`, `objectives`, `metagrads`, `metrics`, `episodes`, `models`, `nn`, `data`
and `zoo`.
"""

import importlib
from typing import Any

from metajax import deprecation, renamed
from metajax.cost import flops
from metajax.episodes import GroupSampler, Rows, SplitSampler
from metajax.evaluate import make_evaluate
from metajax.inner import ADJOINTS, Adjoint, argmin, fixed, learned, mixed_gradient, unroll
from metajax.inner.rules import learned_rates, stop_gradient
from metajax.learners import (
    anil,
    ensemble,
    imaml,
    linear_head,
    maml,
    matching,
    meta_sgd,
    one_query_at_a_time,
    protonet,
    recurrent_learner,
)
from metajax.losses import accuracy, cross_entropy, squared_error
from metajax.metagrads import backprop, reptile
from metajax.metrics import Metric, confidence_interval
from metajax.objectives import Scoring, TaskEvidence, multi_step_objective, query_objective
from metajax.sharding import over_tasks, task_mesh
from metajax.train import (
    TrainState,
    draw_tasks,
    init_state,
    make_run,
    make_step,
    many_steps,
)
from metajax.types import Batch, Episode, Learner, Model, Objective

__version__ = "0.1.0"

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Batch",
    "Episode",
    "GroupSampler",
    "Learner",
    "Metric",
    "Model",
    "Objective",
    "Rows",
    "Scoring",
    "SplitSampler",
    "TaskEvidence",
    "TrainState",
    "accuracy",
    "anil",
    "argmin",
    "backprop",
    "confidence_interval",
    "cross_entropy",
    "draw_tasks",
    "ensemble",
    "fixed",
    "flops",
    "imaml",
    "init_state",
    "learned",
    "learned_rates",
    "linear_head",
    "make_evaluate",
    "make_run",
    "make_step",
    "maml",
    "many_steps",
    "matching",
    "meta_sgd",
    "mixed_gradient",
    "multi_step_objective",
    "one_query_at_a_time",
    "over_tasks",
    "protonet",
    "query_objective",
    "recurrent_learner",
    "reptile",
    "squared_error",
    "stop_gradient",
    "task_mesh",
    "unroll",
]

_ROOMS = {
    name: f"metajax.{name}"
    for name in "data episodes inner learners metagrads metrics models nn objectives zoo".split()
}
_ROOMS["rules"] = "metajax.inner.rules"

_find_renamed = deprecation.renamed_attributes(__name__, renamed.ATTRIBUTES)
deprecation.renamed_modules({f"metajax.{a}": f"metajax.{b}" for a, b in renamed.MODULES.items()})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    return _find_renamed(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
