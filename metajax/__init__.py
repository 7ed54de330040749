"""Meta-learning as pure functions in JAX.

A *learner* is four pure functions, `init`, `start`, `adapt` and `predict`, and an optional fifth, `adapted`,
that returns the adapted parameters. An *objective* scores a learner on one task. A *meta-gradient* estimates
the gradient of the mean objective over many tasks. All of them work under `jit`, `vmap`, `grad` and
`shard_map`, and inside any other JAX program.

This namespace has the names that most programs need. The others are in packages that load when first used:
`metajax.learners`, `rules`, `inner`, `objectives`, `metagrads`, `metrics`, `baselines`, `episodes`,
`models`, `nn`, `data`, `deploy`, `explain`, `rl`, `zoo` and `toys`.

Example:
  MAML on a toy problem: every task has three classes, each a cloud of points around a random center.

  >>> import jax, metajax, optax
  >>> from metajax.toys import toy_episode, toy_model
  >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.4), steps=1)
  >>> scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
  >>> meta_grad = metajax.backprop(metajax.query_objective(learner, scoring))
  >>> def sample(data, key):  # draws one task
  ...     return toy_episode(key, ways=3, shots=2, queries=4)
  >>> optimizer = optax.adam(0.1)
  >>> step = metajax.make_step(meta_grad, optimizer, sample, num_tasks=32)
  >>> init_key, train_key = jax.random.split(jax.random.key(0))
  >>> meta = learner.init(init_key, toy_episode(init_key).support.inputs)
  >>> state = metajax.init_state(meta, optimizer, train_key)
  >>> state, metrics = jax.jit(metajax.many_steps(step, 10))(state, None)
  >>> state.step.item(), sorted(metrics)
  (10, ['accuracy', 'grad_norm', 'loss'])
  >>> bool(metrics["loss"][-1] < metrics["loss"][0])
  True
"""

import importlib
import sys
from typing import Any

from metajax import deprecation, renamed
from metajax.cost import flops
from metajax.episodes import GroupSampler, Rows, SplitSampler
from metajax.evaluate import make_evaluate
from metajax.inner import ADJOINTS, Adjoint, argmin, fixed, learned, mixed_gradient, rules, unroll
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
    "FewShotClassifier",
    "FewShotRegressor",
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
    "load",
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

# Packages that load at their first use, unless an import above has loaded them already.
_ROOMS = {
    name: f"metajax.{name}"
    for name in (
        "baselines data deploy episodes explain inner learners metagrads metrics models nn objectives "
        "rl toys zoo"
    ).split()
}
# Names of packages that are too heavy to load before they are used.
_LATE = {
    "FewShotClassifier": "metajax.deploy.estimators",
    "FewShotRegressor": "metajax.deploy.regressor",
    "load": "metajax.deploy",
}
# `import metajax.rules` and `from metajax.rules import ...` find the package too.
sys.modules[f"{__name__}.rules"] = rules

_find_renamed = deprecation.renamed_attributes(__name__, renamed.ATTRIBUTES, stacklevel=4)
deprecation.renamed_modules(
    {f"metajax.{a}": f"metajax.{b}" for a, b in renamed.MODULES.items()},
    {f"metajax.{a}": names for a, names in renamed.MODULE_ATTRIBUTES.items()},
)


def __getattr__(name: str) -> Any:
    """Loads a package at its first use, and finds old names."""
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    if name in renamed.MODULES and name not in renamed.ATTRIBUTES:
        return importlib.import_module(f"{__name__}.{name}")  # which warns
    return _find_renamed(name)


def __dir__() -> list[str]:
    """Lists the attributes and the packages that are not loaded yet."""
    return sorted([*globals(), *_ROOMS, *_LATE])
