"""The schedule of a training, and the counters that a checkpoint holds besides arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """The validation metric that ranks checkpoints.

    Attributes:
      name: Name of the metric, a key of the validation metrics.
      higher_is_better: Whether the largest value is the best.
    """

    name: str
    higher_is_better: bool


class Schedule(NamedTuple):
    """Periods of a training in meta-steps; a period of 0 means never.

    Attributes:
      steps: Number of meta-steps of the whole training.
      log_every: Period of the rows of training metrics.
      eval_every: Period of validations.
      checkpoint_every: Period of checkpoints.
      patience: Number of validations without improvement after which training stops.
    """

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int

    def next_stop(self, step: int) -> int:
        """Finds the next step at which the host logs, validates, saves or ends.

        It is a function of `step` alone, so that a resumed run logs the same rows as an uninterrupted one.

        Args:
          step: Number of meta-steps taken so far.

        Returns:
          Number of a later step, at most `steps`.
        """
        periods = [p for p in (self.log_every, self.eval_every, self.checkpoint_every) if p]
        return min([self.steps, *((step // period + 1) * period for period in periods)])


@dataclasses.dataclass
class Pending:
    """Metrics of the steps since the schedule's last stop, whose row is still to be written.

    Attributes:
      seconds: Duration of these steps in seconds.
      values: Pairs (dtype name, values after each step) by metric; as JSON holds them they are still exact.
    """

    seconds: float = 0.0
    values: dict[str, tuple[str, list[float]]] = dataclasses.field(default_factory=dict)

    def add(self, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """Appends the metrics and the duration of a block of steps.

        Args:
          metrics: Arrays [S] by metric name, one number per step.
          seconds: Duration of the block in seconds.
        """
        self.seconds += seconds
        for name, values in metrics.items():
            _, before = self.values.get(name, ("", []))
            self.values[name] = (str(values.dtype), [*before, *values.tolist()])

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the metrics of all pending steps.

        Returns:
          Arrays [S] by metric name, in the dtypes they were added with.
        """
        return {name: np.asarray(values, kind) for name, (kind, values) in self.values.items()}


@dataclasses.dataclass
class Progress:
    """Counters and scores of a run that each checkpoint holds as JSON.

    Attributes:
      best_steps: Steps of the best checkpoints, best first.
      best_scores: Their validation scores.
      evaluations_since_best: Number of validations since the best score.
      train_seconds: Time spent in training steps, in seconds.
      compile_seconds: Time spent compiling them.
      wall_seconds: Time of the whole run, including earlier processes that it was resumed from.
      skipped_steps: Number of steps left out because of a non-finite gradient.
      validation_due: Whether the current step still has to be validated.
      asked_to_end: Whether an observer has ended training.
      pending: Metrics since the last stop of the schedule.
    """

    best_steps: Sequence[int] = ()
    best_scores: Sequence[float] = ()
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    wall_seconds: float = 0.0
    skipped_steps: int = 0
    validation_due: bool = False
    asked_to_end: bool = False
    pending: Pending = dataclasses.field(default_factory=Pending)

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "Progress":
        """Restores progress from a checkpoint's notes.

        Args:
          notes: Mapping that `dataclasses.asdict` made of a Progress.

        Returns:
          The progress.
        """
        return cls(**{**notes, "pending": Pending(**notes["pending"])})

    @property
    def best_step(self) -> int:
        """The step of the best checkpoint; 0 if there is none."""
        return self.best_steps[0] if self.best_steps else 0

    @property
    def best_score(self) -> float | None:
        """The score of the best checkpoint; None if there is none."""
        return self.best_scores[0] if self.best_scores else None
