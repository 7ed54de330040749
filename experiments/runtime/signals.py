"""Signals that ask a run to stop, heard while compiled code runs too."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from experiments.runtime import distributed

Value = TypeVar("Value")

INTERRUPTED = "error: interrupted; the same command goes on from what is saved."

# Python handles a signal between two of its instructions in the main thread: it has to get to one.
_POLL_SECONDS = 0.1


class Stopped(BaseException):
    """A request to stop that came where work can be left undone; like KeyboardInterrupt no Exception."""


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once.

    Attributes:
      requested: the signal that asked to stop, None while there was none.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self._leaving = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (a notebook's worker) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._request)
        return self

    def __exit__(self, *error):
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Leaves work that can be done again: a request to stop raises Stopped here, and does not wait.

        Of several processes none leaves: the others would wait for it.
        """
        if distributed.is_joined():
            yield
            return
        self._leaving = True
        try:
            if self.requested is not None:
                raise Stopped
            yield
        finally:
            self._leaving = False

    def _request(self, number, frame):
        del frame
        if self.requested is not None:
            end(128 + number, INTERRUPTED)
        self.requested = signal.Signals(number)
        # Not print: a handler may run amid another print, whose buffer cannot be entered twice.
        os.write(2, b"\nStopping at the end of this block of steps; once more to stop at once.\n")
        if self._leaving:
            raise Stopped


def waiting(function: Callable[[], Value]) -> Value:
    """Calls a function in another thread, so that this one can handle signals until it returns.

    For long calls into compiled code, which hold signals back in the thread that makes them. What the
    function raises is raised here. Where a signal's handler raises, the thread is left to itself.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    returned = threading.Event()

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))
        returned.set()

    threading.Thread(target=call, daemon=True).start()
    while not returned.wait(_POLL_SECONDS):
        pass
    value, error = outcome.pop()
    if error is not None:
        raise error
    return value


def end(status: int, line: str = "") -> NoReturn:
    """Ends this process at once, whatever its threads are at: a usual end would wait for XLA's.

    Args:
      status: Exit status.
      line: Last line on stderr, "" for none.
    """
    distributed.leave(status, line)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a handler may run amid another write
            stream.flush()
    if line:
        os.write(2, f"{line}\n".encode())
    os._exit(status)
