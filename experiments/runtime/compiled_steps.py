"""Meta-steps compiled ahead of time, and how many of them to run in one call.

A *block* is a number of meta-steps that one call of the compiled program takes before the host logs, saves
or reacts to signals. One program runs blocks of any length.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metajax.train import StepFn, TrainState, steps_up_to

from .devices import release_memory
from .signals import waiting

# Target duration of a block. Requests to stop are handled between blocks, so this is about how long they wait
# (a single step may take longer).
BLOCK_SECONDS = 2.0
# Maximal number of steps of a block: the compiled program has room for the metrics of so many.
MOST_STEPS = 1024
# Maximal growth from one block to the next, because a single measurement may be short by chance.
_GROWTH = 8


class Pace:
    """Chooses the length of the next block: as many steps as fit BLOCK_SECONDS, by the last block's time."""

    def __init__(self):
        self._steps = 1

    def next(self, left: int) -> int:
        """Chooses the number of steps of the next block.

        Args:
          left: Number of steps until the schedule's next stop.

        Returns:
          Number of steps, at most `left`.
        """
        return min(self._steps, left)

    def measured(self, steps: int, seconds: float) -> None:
        """Updates the pace by a measured block.

        Args:
          steps: Number of steps of the block.
          seconds: Duration of the block in seconds.
        """
        fit = int(BLOCK_SECONDS * steps / max(seconds, 1e-9))
        self._steps = max(1, min(fit, _GROWTH * self._steps, MOST_STEPS))


class CompiledSteps:
    """Meta-steps as one program, compiled ahead of time, that runs blocks of any length.

    Args:
      step: Function (state, data) -> (state, metrics), one meta-step.

    Attributes:
      seconds: Time spent compiling so far, in seconds.
    """

    def __init__(self, step: StepFn):
        self._step = step
        self._compiled: jax.stages.Compiled | None = None
        self.seconds = 0.0

    def compile(self, state: TrainState, data: Any) -> Callable:
        """Compiles the program at the first call; later calls return it.

        Args:
          state: Training state with the shapes and shardings of the run. The program donates it: it writes
            the new state into the old one's memory.
          data: Data that a step reads.

        Returns:
          Function (state, data, number) -> (state, metrics), as `metajax.train.steps_up_to` with room for the
          metrics of MOST_STEPS steps.
        """
        return self._once(steps_up_to(self._step, MOST_STEPS), state, data, np.int32(0))

    def _once(self, steps: Callable, *arguments: Any) -> jax.stages.Compiled:
        """Lowers and compiles at the first call, and frees the compiler's memory."""
        if self._compiled is None:
            start = time.perf_counter()
            lowered = jax.jit(steps, donate_argnums=0).lower(*arguments)
            self._compiled = waiting(lowered.compile)
            self.seconds += time.perf_counter() - start
            release_memory()
        return self._compiled

    def prepare(self, state: TrainState) -> None:
        """Prepares the first block, before all processes start it together; nothing by default.

        Args:
          state: Training state before the block.
        """

    def close(self) -> None:
        """Releases resources such as reading processes; nothing by default."""

    def facts(self) -> dict[str, Any]:
        """Returns what only these steps know about the run.

        Returns:
          Fields of result.json; none by default.
        """
        return {}
