"""Blocks of meta-steps: one compiled program for any number of them, and how many to take at once."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.runtime.devices import release_memory
from experiments.runtime.signals import waiting
from metajax.train import StepFn, TrainState, steps_up_to

# A request to stop is heard between blocks: so long may one take, where a step takes less.
BLOCK_SECONDS = 2.0
# The steps of a block at most, as many as there is room for metrics.
MOST_STEPS = 1024
# How much longer than the one before a block may be, as that may have been short by chance.
_GROWTH = 8


class Pace:
    """How many steps the next block takes: as many as fit into BLOCK_SECONDS, by the last one's time."""

    def __init__(self):
        self._steps = 1

    def next(self, left: int) -> int:
        """The steps of the next block, of `left` that are to be taken."""
        return min(self._steps, left)

    def measured(self, steps: int, seconds: float) -> None:
        """Takes in how long a block of `steps` took."""
        fit = int(BLOCK_SECONDS * steps / max(seconds, 1e-9))
        self._steps = max(1, min(fit, _GROWTH * self._steps, MOST_STEPS))


class CompiledSteps:
    """Blocks of steps, by one program that is compiled ahead of time.

    Attributes:
      seconds: what compiling has taken so far.
    """

    def __init__(self, step: StepFn):
        self._step = step
        self._compiled: jax.stages.Compiled | None = None
        self.seconds = 0.0

    def compile(self, state: TrainState, data: Any) -> Callable:
        """Compiles `(state, data, number) -> (state, metrics)`, as `steps_up_to`, in the state's memory."""
        return self._once(steps_up_to(self._step, MOST_STEPS), state, data, np.int32(0))

    def _once(self, steps: Callable, *arguments: Any) -> jax.stages.Compiled:
        if self._compiled is None:
            start = time.perf_counter()
            lowered = jax.jit(steps, donate_argnums=0).lower(*arguments)
            self._compiled = waiting(lowered.compile)
            self.seconds += time.perf_counter() - start
            release_memory()
        return self._compiled

    def prepare(self, state: TrainState) -> None:
        """Gets what the first steps from a state need before all processes start together; nothing here."""

    def close(self) -> None:
        """Gives back what running them took; nothing here."""

    def facts(self) -> dict[str, Any]:
        """Fields of result.json that only these blocks know."""
        return {}
