"""Experiments, and how they are laid out on the devices at hand."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import trees
from metajax.data import streaming
from metajax.data.streamed import StreamedImages
from metajax.deploy import Bundle
from metajax.episodes.rows import Rows
from metajax.evaluate import make_evaluate
from metajax.learners.wrappers.ensembles import ensemble
from metajax.metrics import Metric
from metajax.objectives.query import query_objective
from metajax.objectives.scoring import Scoring
from metajax.sharding import (
    divided,
    draw_over_tasks,
    over_episodes,
    over_tasks,
    place,
    shardings,
    task_mesh,
)
from metajax.train import (
    StepFn,
    TrainState,
    draw_tasks,
    init_state,
    make_step,
    skip_nonfinite,
)
from metajax.trees import size
from metajax.types import Array, Episode, Learner, Objective, StatefulMetaGrad

from ..flags.plan import RunPlan
from ..flags.settings import UsageError
from ..runtime import data_record, distributed
from ..runtime.compiled_steps import CompiledSteps
from ..runtime.devices import largest_divisor, release_memory
from ..runtime.progress import Score
from ..runtime.signals import waiting
from . import streams
from .estimators import meta_gradient, outer_optimizer
from .learners import inner_adjoint


class Experiment(NamedTuple):
    """Everything in which one experiment differs from another.

    Attributes:
      name: First part of the default name of the work directory.
      make_learner: Function (inner steps, adjoint, testing=) -> learner, all on the same meta-parameters.
      inputs: Example inputs [B, ...], to initialize from.
      scoring: Outer loss and metrics of a task; a `Metric` counts in validation and test only.
      score: Metric that picks the best checkpoint.
      samplers: Sampler of episodes by split: "train", "valid", "test".
      data: Data that the sampler reads, by split.
      fingerprint: Hash of the data.
      transductive: Whether a query's answer may depend on the other queries.
      combine: Function from the outputs of M members [M, B, ...] to their combined output [B, ...].
      announcement: Rows of the announcement that only this driver knows.
      facts: Fields of result.json that only this driver knows.
      pictures: Function (meta, workdir) -> further fields of result.json, which draws the pictures.
      measured: Function (meta, workdir) -> further fields of result.json, such as returns to compare with, or
        None.
      penalty: Term that training adds to the outer loss, (meta, fast) -> scalar; None for most learners.
      trained: Function learner -> objective of training; None is the loss of queries after adapting.
      scored: Function learner -> objective of validation and test; None scores queries after adapting.
      listed: Scorers of splits whose tasks differ in size, by split: function (setup, learner) -> (meta ->
        scores), in place of drawn tasks of one size.
      outer_step: Function setup -> outer step, where it is more than one step of an optimizer along
        `setup.meta_grad`; None is that.
      optimizer: Outer optimizer, or what makes the state of an `outer_step` in its place; None is that of the
        options.
      follows: Words for what an `outer_step` without an optimizer follows, such as "a trust region"; None is
        the optimizer of the options.
      parts: Number of parts of a meta-step's tasks whose gradients are followed one after another.
      explain: Function from the metrics of a step that is not finite to a sentence that names where it began.
      streamed: Images on disk by split, for splits that are not in memory.
      workers: Number of processes that read training images ahead.
      settled: Options that the data settled, by name; they are recorded as if they had been given.
      record: Record of the training data, to keep in the work directory; None without data or training.
      bundle: Function (meta, fields of result.json) -> bundle to keep in the work directory, which learns and
        answers without the data; None where there is none yet.
    """

    name: str
    make_learner: Callable[..., Learner]
    inputs: Array
    scoring: Scoring
    score: Score
    samplers: Mapping[str, Any]
    data: Mapping[str, Any]
    fingerprint: str
    transductive: bool
    combine: Callable[[Array], Array]
    announcement: list[tuple[str, str]]
    facts: dict[str, Any]
    pictures: Callable[[Any, Path], dict[str, Any]]
    measured: Callable[[Any, Path], dict[str, Any]] | None = None
    penalty: Callable[[Any, Any], Any] | None = None
    trained: Callable[[Learner], Objective] | None = None
    scored: Callable[[Learner], Objective] | None = None
    listed: Mapping[str, Callable[["Setup", Learner], Callable[[Any], dict[str, Any]]]] = (
        types.MappingProxyType({})
    )
    outer_step: Callable[["Setup"], StepFn] | None = None
    optimizer: optax.GradientTransformation | None = None
    follows: str | None = None
    parts: int = 1
    explain: Callable[[Mapping[str, np.ndarray]], str] = lambda metrics: ""
    streamed: Mapping[str, StreamedImages] = types.MappingProxyType({})
    workers: int = 0
    settled: Mapping[str, Any] = types.MappingProxyType({})
    record: data_record.Record | None = None
    bundle: Callable[[Any, Mapping[str, Any]], Bundle] | None = None


def _of_training(scoring: Scoring, penalty: Callable[[Any, Any], Any] | None) -> Scoring:
    """Leaves out metrics that are no mean over the tasks of a step, and adds the penalty."""
    plain = {name: m for name, m in scoring.metrics.items() if not isinstance(m, Metric)}
    return dataclasses.replace(scoring, metrics=plain, penalty=penalty)


def evaluation_key(seed: int, split: str) -> Array:
    """Makes the key of the validation or test episodes.

    Args:
      seed: Value of `--eval_seed`.
      split: "valid" or "test".
    """
    # Large numbers, because `split(key)[i]` is `fold_in(key, i)`: 0 and 1 would give the keys of the
    # parameters and of the training tasks again, where the seeds are equal.
    salt = {"valid": 0x56414C49, "test": 0x54455354}[split]
    return jax.random.fold_in(jax.random.key(seed), salt)


def devices_for(tasks: int, *, shards: int = 1) -> Mesh:
    """Finds the devices that divide the tasks: all, or of each process as many as do.

    Args:
      tasks: Tasks T of a meta-step.
      shards: Devices that parameters are divided over.

    Returns:
      A mesh of devices.

    Raises:
      UsageError: If no number of devices divides the tasks, or parameters do not divide over the devices.
    """
    processes = jax.process_count()
    if tasks % processes:
        raise UsageError(
            f"--meta_batch={tasks} does not divide over {processes} processes; use a multiple of "
            f"{processes}."
        )
    each = largest_divisor(tasks // processes, at_most=jax.local_device_count())
    devices = [
        device for process in range(processes) for device in jax.local_devices(process)[:each]
    ]
    if len(devices) % shards:
        raise UsageError(
            f"--parameter_shards={shards} does not divide the {len(devices)} devices in "
            f"use, as many as divide --meta_batch={tasks}; use a divisor of {len(devices)}."
        )
    return task_mesh(devices, shards=shards)


class Setup:
    """An experiment on the devices at hand.

    Attributes:
      plan: The run, as its options were resolved; a memory budget may have changed it.
      mesh: Mesh of devices.
      tasks_at_once: Tasks vectorized together, as in `backprop`; None for all of a device.
      tasks_together: The same as a number.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: RunPlan,
        *,
        mesh: Mesh | None = None,
    ):
        self.experiment, self.plan = experiment, plan
        tasks, inner = plan.training.meta_batch // experiment.parts, plan.inner
        shards = plan.devices.parameter_shards
        self.mesh = devices_for(tasks, shards=shards) if mesh is None else mesh
        local = tasks // self.mesh.size
        self.tasks_at_once = self._tasks_at_once(local)
        self.tasks_together = min(self.tasks_at_once or local, local)
        adjoint = inner_adjoint(inner.adjoint)
        self.learner = experiment.make_learner(inner.steps, adjoint)
        self.test_learner = experiment.make_learner(inner.test_steps, adjoint, testing=True)
        self.meta_grad = over_tasks(
            self.mesh,
            meta_gradient(
                experiment.make_learner,
                _of_training(experiment.scoring, experiment.penalty),
                inner,
                plan.outer,
                tasks_at_once=self.tasks_at_once,
                trained=experiment.trained,
            ),
        )

    def _tasks_at_once(self, local: int) -> int | None:
        asked = self.plan.tasks_at_once
        if asked is None:
            # Vectorised tasks fall out of a CPU's cache; a GPU or TPU wants them all.
            return 1 if self.mesh.devices.flat[0].platform == "cpu" else None
        if local % min(asked, local):
            raise UsageError(
                f"--tasks_at_once={asked} does not divide the {local} tasks of a device "
                f"(--meta_batch={self.plan.training.meta_batch} over {self.mesh.size} devices); "
                f"use a divisor of {local}."
            )
        return asked

    def optimizer(self) -> optax.GradientTransformation:
        """Makes the outer optimizer."""
        if self.experiment.optimizer:
            return self.experiment.optimizer
        supervised = self.plan.inner.entry.objective is not None
        return outer_optimizer(self.plan.outer, supervised=supervised)

    def place(self, tree: Any) -> Any:
        """Puts a tree on the devices, as `sharding.place` does."""
        return place(self.mesh, tree)

    def num_adapted(self, meta: Any) -> int | None:
        """Counts the numbers that a task adapts; None where the learner has no parameters that move."""
        adapted = jax.eval_shape(self._start, meta)
        return None if adapted is None else size(adapted)

    def _start(self, meta: Any) -> Any:
        """Returns the parameters that a task starts to adapt from; None where the learner has none."""
        sampler, data = self.experiment.samplers["train"], self.experiment.data["train"]
        drawn = [data, jax.random.key(0)]
        if isinstance(data, Rows) and not trees.count(data.features):  # pixels on disk, or a record
            drawn.append(jax.ShapeDtypeStruct(streams.task_shape(sampler, data), np.uint8))
        task = jax.eval_shape(sampler, *drawn)
        # The task of an environment holds no examples: those who act in it store none.
        like = task.support if isinstance(task, Episode) else None
        return self.learner.adapted(self.learner.start(meta, jax.random.key(0), like))

    def check_reptile(self, meta: Any) -> None:
        """Raises UsageError for reptile where tasks start from nothing learned: nothing would be learned."""
        begin, pull = jax.vjp(self._start, meta)
        (moved,) = pull(jax.tree.map(jnp.ones_like, begin))
        moves = any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(moved))
        if not moves:
            raise UsageError(
                f"--outer=reptile does not go with --learner={self.plan.inner.learner}, whose tasks start "
                "from nothing that is learned; use --outer=backprop."
            )

    def init_state(self, meta: Any, key: Array) -> TrainState:
        """Makes the state before the first step; `key` is the random key of the training tasks."""
        if self.plan.outer.estimator == "reptile":
            self.check_reptile(meta)
        memory = ()
        if isinstance(self.meta_grad, StatefulMetaGrad):
            first = self.place((meta, *self._first_tasks(key)))
            memory = jax.jit(self.meta_grad.init)(*first)
        return init_state(meta, self.optimizer(), key, memory)

    def shapes(self) -> tuple[TrainState, Any]:
        """Returns abstract arguments of `meta_step`, to compile for devices that are not attached.

        Returns:
          The state and the training data as `jax.ShapeDtypeStruct`s with shardings.
        """
        key = jax.random.key(0)

        def begin() -> TrainState:
            meta, memory = self.learner.init(key, self.experiment.inputs), ()
            if isinstance(self.meta_grad, StatefulMetaGrad):
                memory = self.meta_grad.init(meta, *self._first_tasks(key))
            return init_state(meta, self.optimizer(), key, memory)

        def lie(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        arguments = jax.eval_shape(begin), self.step_data()
        state, data = (shardings(self.mesh, tree) for tree in arguments)
        if isinstance(data, streaming.Streamed):
            data = data._replace(pixels=divided(self.mesh))
        return tuple(
            jax.tree.map(lie, tree, where)
            for tree, where in zip(arguments, (state, data), strict=True)
        )

    def _first_tasks(self, key: Array) -> tuple[Array, Any]:
        experiment, num_tasks = self.experiment, self.plan.training.meta_batch
        sampler, images = experiment.samplers["train"], experiment.streamed.get("train")
        data = streams.first_data(sampler, experiment.data["train"], images, key, num_tasks)
        sample, by_task = streams.drawing(sampler, images)
        return draw_tasks(sample, data, key, 0, jnp.arange(num_tasks), by_task=by_task)

    def meta_step(self) -> StepFn:
        """Makes the outer step."""
        experiment = self.experiment
        sample, by_task = streams.drawing(
            experiment.samplers["train"], experiment.streamed.get("train")
        )
        if experiment.outer_step:
            return skip_nonfinite(experiment.outer_step(self))
        step = make_step(
            self.meta_grad,
            self.optimizer(),
            sample,
            num_tasks=self.plan.training.meta_batch,
            by_task=by_task,
            draw=draw_over_tasks(self.mesh),
        )
        return skip_nonfinite(step)

    def compiled_steps(self) -> CompiledSteps:
        """Makes the compiled meta-steps of training."""
        step, experiment = self.meta_step(), self.experiment
        if "train" not in experiment.streamed:
            return CompiledSteps(step)
        read = functools.partial(
            streaming.training_pixels,
            experiment.samplers["train"],
            experiment.streamed["train"],
            tasks=streaming.share(divided(self.mesh), self.plan.training.meta_batch),
            workers=experiment.workers,
        )
        pixels = self.step_data().pixels
        return streams.StreamedSteps(step, read, pixels, steps=self.plan.training.steps)

    def step_data(self) -> Any:
        """Returns the data of a meta-step, or their shapes where each step reads new ones."""
        data = self.experiment.data["train"]
        if "train" not in self.experiment.streamed:
            return data
        shape = streams.task_shape(self.experiment.samplers["train"], data)
        shape = (self.plan.training.meta_batch, *shape)
        pixels = jax.ShapeDtypeStruct(shape, np.uint8, sharding=divided(self.mesh))
        return streaming.Streamed(data, pixels)

    def scorer(
        self, split: str, num_episodes: int, *, members: bool = False
    ) -> Callable[[Any], dict[str, Any]]:
        """Makes `meta -> {metric: [num_episodes, ...]}` on the fixed episodes of a split.

        The values of a `Metric` are a tree of such arrays. With `members`, `meta` is that of an ensemble.
        """
        experiment, learner = self.experiment, self.test_learner
        if members:
            learner = ensemble(learner, combine=experiment.combine)
        if split in experiment.listed:
            return experiment.listed[split](self, learner)
        if experiment.scored:
            objective = experiment.scored(learner)
        else:
            scoring = dataclasses.replace(experiment.scoring, chunk=self.plan.outer.chunk)
            objective = query_objective(learner, scoring)
        at_once = self.tasks_at_once or min(num_episodes, 64)
        images, sampler = experiment.streamed.get(split), experiment.samplers[split]
        sample, by_task = streams.drawing(sampler, images)
        evaluate = make_evaluate(objective, sample, tasks_at_once=at_once, by_task=by_task)
        evaluate = jax.jit(over_episodes(self.mesh, evaluate, by_task=by_task))
        compiled = None  # ahead of time, when first called: it outlives the caches of traces
        key = evaluation_key(self.plan.test.eval_seed, split)
        data, placed = self.place((experiment.data[split], key))

        def score(meta, data, tasks):
            nonlocal compiled
            if compiled is None:
                compiled = waiting(evaluate.lower(meta, data, placed, tasks).compile)
                release_memory()
                distributed.wait_for_all()
            return waiting(lambda: jax.block_until_ready(compiled(meta, data, placed, tasks)))

        def scores(meta):
            meta = self.place(meta)
            if images:
                return streams.chunked_scores(
                    score,
                    meta,
                    data,
                    sampler=sampler,
                    images=images,
                    key=key,
                    mesh=self.mesh,
                    num_episodes=num_episodes,
                )
            measured = score(meta, data, self.place(np.arange(num_episodes)))
            return jax.tree.map(np.asarray, measured)

        return scores
