"""The typed plan of a run, which options are resolved into once."""

import dataclasses
from typing import Any, NamedTuple

from .learner import InnerLoop
from .settings import DISPLAY, HOST, in_scope
from .training import (
    PAIRS,
    SIGMA,
    UNROLLED,
    DeviceOptions,
    RunOptions,
    TestOptions,
    TrainingOptions,
    TrainingSettings,
    memory_budget,
    multi_step_loss,
    tasks_at_once,
)


class Outer(NamedTuple):
    """How the meta-gradient is estimated and followed, resolved from the options.

    Attributes:
      estimator: One of OUTER.
      sigma: Standard deviation of perturbations.
      pairs: Antithetic pairs per task.
      unrolls: Truncations in the life of a task.
      multi_step: Meta-steps over which the loss after every inner step counts; 0 for the last loss alone.
      first_order_steps: Meta-steps that are first order.
      chunk: Queries answered together; None for all.
      freeze: Whether the encoder stays as it is.
      optimizer: Name of the outer optimizer.
      learning_rate: First step size of the outer optimizer.
      last_learning_rate: Last step size of the outer optimizer.
      schedule: One of SCHEDULES.
      clip: Largest element of the meta-gradient; 0 for any.
      steps: Steps of the optimizer in the whole training, along which the schedule runs.
    """

    estimator: str
    sigma: float
    pairs: int
    unrolls: int
    multi_step: int
    first_order_steps: int
    chunk: int | None
    freeze: bool
    optimizer: str
    learning_rate: float
    last_learning_rate: float
    schedule: str
    clip: float
    steps: int


class RunPlan(NamedTuple):
    """A run as resolved from its options; only the doors of a driver see all options at once.

    Attributes:
      inner: The learner and its inner loop.
      outer: The estimator and the optimizer.
      training: Options of training.
      test: Options of the test.
      devices: Options of devices and processes.
      command: Options of the command.
      tasks_at_once: Tasks vectorized on a device; None for "auto".
      memory_budget: Bytes of the training program; None for any.
      asked: All options by name, for records.
      unbound: Options that a work directory is not bound to.
    """

    inner: InnerLoop
    outer: Outer
    training: TrainingOptions
    test: TestOptions
    devices: DeviceOptions
    command: RunOptions
    tasks_at_once: int | None
    memory_budget: int | None
    asked: dict[str, Any]
    unbound: tuple[str, ...]


def resolve(settings: TrainingSettings) -> RunPlan:
    """Resolves options into a plan: defaults of the learner, sizes as numbers, groups by use.

    Raises:
      UsageError: If a size is not one.
    """
    return RunPlan(
        inner=InnerLoop(
            learner=settings.learner,
            own=settings.own_options,
            learning_rate=settings.inner_lr,
            optimizer=settings.inner_optimizer,
            steps=settings.inner_steps,
            test_steps=settings.steps_at_test,
            adjoint=settings.adjoint,
            estimator=settings.estimator,
            entry=settings.entry,
        ),
        outer=Outer(
            estimator=settings.estimator,
            sigma=SIGMA if settings.es_sigma is None else settings.es_sigma,
            pairs=settings.es_pairs or PAIRS,
            unrolls=settings.pes_unrolls or UNROLLED,
            multi_step=multi_step_loss(settings),
            first_order_steps=settings.first_order_steps,
            chunk=settings.queries_at_once or None,
            freeze=settings.freeze,
            optimizer=settings.outer_optimizer,
            learning_rate=settings.outer_lr,
            last_learning_rate=settings.outer_lr_end,
            schedule=settings.outer_schedule,
            clip=settings.clip,
            steps=settings.steps * settings.updates_per_step,
        ),
        training=part(TrainingOptions, settings),
        test=part(TestOptions, settings),
        devices=part(DeviceOptions, settings),
        command=part(RunOptions, settings),
        tasks_at_once=tasks_at_once(settings.tasks_at_once),
        memory_budget=memory_budget(settings.memory_budget),
        asked=dataclasses.asdict(settings),
        unbound=in_scope(settings, HOST, DISPLAY),
    )


def part(group: type, settings: Any) -> Any:
    """Takes the options of a group out of settings."""
    return group(
        **{field.name: getattr(settings, field.name) for field in dataclasses.fields(group)}
    )
