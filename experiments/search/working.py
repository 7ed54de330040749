"""Runs jobs in processes, some at once, until they are done or somebody asks to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .processes import cores_of

_POLL_SECONDS = 0.25
_IDLE_SECONDS = 2.0  # between looks at what other commands do


class Job(Protocol):
    """Work of one process."""

    def advance(self) -> bool:
        """Looks at the process; returns whether the job has ended."""
        ...

    def stop(self) -> None:
        """Asks the process to end."""
        ...

    def kill(self) -> None:
        """Ends the process at once."""
        ...


class Interrupted(Exception):
    """A signal asked to stop; all processes have ended."""


class _Asked:
    """Signals so far: the first asks processes to save and end, the second ends them."""

    def __init__(self):
        self.times = 0

    def __call__(self, number: int, frame: Any) -> None:
        self.times += 1


@contextlib.contextmanager
def _listening() -> Iterator[_Asked]:
    asked = _Asked()
    # Only the main thread may set handlers; elsewhere signals stay as they are.
    heard = threading.current_thread() is threading.main_thread()
    names = (signal.SIGINT, signal.SIGTERM) if heard else ()
    before = {name: signal.signal(name, asked) for name in names}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def work(
    workers: int,
    take: Callable[[set[int] | None], Job | None],
    *,
    waits: Callable[[], bool],
    deadline: float = float("inf"),
) -> None:
    """Runs jobs until there are none.

    Args:
      workers: Number of jobs at once.
      take: Function from the cores of a job to the next one, started; None if there is none now.
      waits: Function without arguments: whether other commands hold jobs that may come back.
      deadline: Time of `time.monotonic` from which no job is taken and all are stopped, in seconds.

    Raises:
      Interrupted: If SIGINT or SIGTERM asked to stop; jobs were asked to save and end before.
    """
    slots, going = cores_of(workers), {}
    with _listening() as asked:
        try:
            while True:
                stopping = bool(asked.times) or time.monotonic() >= deadline
                for slot in [slot for slot, job in going.items() if job.advance()]:
                    del going[slot]
                if stopping:
                    for job in going.values():
                        job.stop()
                if asked.times > 1 or (asked.times and not going):
                    raise Interrupted
                if not stopping:
                    _fill(going, slots, take)
                if not going:
                    if not waits():
                        return
                    time.sleep(_IDLE_SECONDS)
                time.sleep(_POLL_SECONDS)
        finally:
            for job in going.values():
                job.kill()


def _fill(
    going: dict[int, Job],
    slots: list[set[int] | None],
    take: Callable[[set[int] | None], Job | None],
) -> None:
    for slot, cores in enumerate(slots):
        if slot not in going:
            if (job := take(cores)) is None:
                return
            going[slot] = job
