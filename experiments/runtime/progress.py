"""When things happen in a training, and what a run remembers beside its arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """The metric that picks the checkpoint."""

    name: str
    higher_is_better: bool


class Schedule(NamedTuple):
    """When things happen, in meta-steps; 0 means never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int

    def next_stop(self, step: int) -> int:
        """The next step at which the host has something to do; a function of `step` alone, so that a resumed
        run logs the very rows of an uninterrupted one."""
        periods = [p for p in (self.log_every, self.eval_every, self.checkpoint_every) if p]
        return min([self.steps, *((step // period + 1) * period for period in periods)])


@dataclasses.dataclass
class Pending:
    """The steps since the schedule's last stop, whose row is still to be written.

    Attributes:
      seconds: Time they took, in seconds.
      values: metric -> the name of its type, and its value after each step: exact, though JSON holds them.
    """

    seconds: float = 0.0
    values: dict[str, tuple[str, list[float]]] = dataclasses.field(default_factory=dict)

    def add(self, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """Takes in a block's metrics [steps] and its time."""
        self.seconds += seconds
        for name, values in metrics.items():
            _, before = self.values.get(name, ("", []))
            self.values[name] = (str(values.dtype), [*before, *values.tolist()])

    def arrays(self) -> dict[str, np.ndarray]:
        """The metrics of all steps, each [steps]."""
        return {name: np.asarray(values, kind) for name, (kind, values) in self.values.items()}


@dataclasses.dataclass
class Progress:
    """What a run must remember beside its arrays, kept in each checkpoint as JSON."""

    best_steps: Sequence[int] = ()
    best_scores: Sequence[float] = ()
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    wall_seconds: float = 0.0
    skipped_steps: int = 0
    validation_due: bool = False
    pending: Pending = dataclasses.field(default_factory=Pending)

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "Progress":
        """Reads what `dataclasses.asdict` wrote."""
        return cls(**{**notes, "pending": Pending(**notes["pending"])})

    @property
    def best_step(self) -> int:
        """The step of the best checkpoint, 0 while there is none."""
        return self.best_steps[0] if self.best_steps else 0

    @property
    def best_score(self) -> float | None:
        """The score of the best checkpoint."""
        return self.best_scores[0] if self.best_scores else None
