"""What makes one experiment differ from another, and how it lies on the devices at hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.devices import largest_divisor, release_memory
from experiments.loop import Score
from experiments.options import TrainingSettings, inner_adjoint, outer_optimizer, tasks_at_once
from experiments.settings import UsageError
from metajax.inner.adjoints import Adjoint
from metajax.metagrad import backprop
from metajax.objectives import MetricFn, query_objective
from metajax.sharding import over_episodes, over_tasks, replicated, task_mesh
from metajax.train import StepFn, make_evaluate, make_step, skip_nonfinite
from metajax.types import Array, Learner, LossFn, Objective


class Experiment(NamedTuple):
    """What makes one experiment differ from another.

    Attributes:
      make_learner: (inner steps, adjoint) -> a learner, to train or to test; all on the same meta-parameters.
      inputs: [B, ...] example inputs, to initialise from.
      loss: the outer loss.
      metrics: named metrics of a task, beside `loss`.
      score: which of them counts.
      samplers: `train`, `valid`, `test` -> what draws an episode.
      data: `train`, `valid`, `test` -> what the sampler reads.
      fingerprint: identifies the data.
      transductive: whether a query's answer may depend on the other queries.
      plan: rows of the announcement that only this driver knows.
      facts: fields of result.json that only this driver knows.
      pictures: (meta, workdir) -> further fields of result.json; draws its pictures.
    """

    make_learner: Callable[[int, Adjoint], Learner]
    inputs: Array
    loss: LossFn
    metrics: Mapping[str, MetricFn]
    score: Score
    samplers: Mapping[str, Any]
    data: Mapping[str, Any]
    fingerprint: str
    transductive: bool
    plan: list[tuple[str, str]]
    facts: dict[str, Any]
    pictures: Callable[[Any, Path], dict[str, Any]]


def evaluation_key(settings: TrainingSettings, split: str) -> Array:
    """The key of the validation or test episodes."""
    # Large numbers, because `split(key)[i]` is `fold_in(key, i)`: 0 and 1 would give the keys of the
    # parameters and of the training tasks again, where the seeds are equal.
    salt = {"valid": 0x56414C49, "test": 0x54455354}[split]
    return jax.random.fold_in(jax.random.key(settings.eval_seed), salt)


class Setup:
    """An experiment on the devices at hand.

    Attributes:
      settings: what is run.
      asked: what the flags say, which a memory budget may have changed.
      tasks_at_once: as `backprop` takes it.
      tasks_together: how many of a device's tasks that is.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainingSettings,
        *,
        asked: TrainingSettings | None = None,
    ):
        self.experiment, self.settings, self.asked = experiment, settings, asked or settings
        devices = jax.devices()
        self.mesh = task_mesh(devices[: largest_divisor(settings.meta_batch, at_most=len(devices))])
        local = settings.meta_batch // self.mesh.size
        self.tasks_at_once = self._tasks_at_once(local)
        self.tasks_together = min(self.tasks_at_once or local, local)
        adjoint = inner_adjoint(settings)
        self.learner = experiment.make_learner(settings.inner_steps, adjoint)
        self.test_learner = experiment.make_learner(settings.steps_at_test, adjoint)

    def _tasks_at_once(self, local: int) -> int | None:
        asked = tasks_at_once(self.settings)
        if asked is None:
            # Vectorised tasks fall out of a CPU's cache; a GPU or TPU wants them all.
            return 1 if jax.default_backend() == "cpu" else None
        if local % min(asked, local):
            raise UsageError(
                f"--tasks_at_once={asked} does not divide the {local} tasks of a device "
                f"(--meta_batch={self.settings.meta_batch} over {self.mesh.size} devices); "
                f"use a divisor of {local}."
            )
        return asked

    def place(self, tree: Any) -> Any:
        """Puts a copy on every device."""
        return jax.device_put(tree, replicated(self.mesh))

    def objective(self, learner: Learner) -> Objective:
        return query_objective(
            learner,
            self.experiment.loss,
            metrics=self.experiment.metrics,
            queries_at_once=self.settings.queries_at_once or None,
        )

    def meta_step(self, key: Array) -> StepFn:
        experiment = self.experiment
        objective = self.objective(self.learner)
        step = make_step(
            over_tasks(self.mesh, backprop(objective, tasks_at_once=self.tasks_at_once)),
            outer_optimizer(self.settings),
            experiment.samplers["train"],
            key=key,
            num_tasks=self.settings.meta_batch,
        )
        return skip_nonfinite(step)

    def scorer(self, split: str, num_episodes: int) -> Callable[[Any], dict[str, np.ndarray]]:
        """Makes `meta -> {metric: [num_episodes]}` on the fixed episodes of a split."""
        experiment = self.experiment
        objective = self.objective(self.test_learner)
        at_once = self.tasks_at_once or min(num_episodes, 64)
        evaluate = make_evaluate(objective, experiment.samplers[split], tasks_at_once=at_once)
        evaluate = jax.jit(over_episodes(self.mesh, evaluate))
        compiled = None  # ahead of time, when first called: it outlives the caches of traces
        data, tasks = self.place(experiment.data[split]), jnp.arange(num_episodes)
        key = self.place(evaluation_key(self.settings, split))

        def scores(meta):
            nonlocal compiled
            arguments = (self.place(meta), data, key, tasks)
            if compiled is None:
                compiled = evaluate.lower(*arguments).compile()
                release_memory()
            measured = compiled(*arguments)
            return {name: np.asarray(values) for name, values in measured.items()}

        return scores
