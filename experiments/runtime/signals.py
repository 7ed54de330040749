"""Signals that ask a run to stop, handled even while compiled code runs."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from . import distributed

Value = TypeVar("Value")

INTERRUPTED = "error: interrupted; the same command continues from the last checkpoint."

# Python runs signal handlers between two instructions of the main thread: waking up lets it reach one.
_POLL_SECONDS = 0.1


class Stopped(BaseException):
    """A request to stop, raised where unfinished work may be dropped; no Exception, as KeyboardInterrupt."""


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once.

    A context manager: handlers are installed on entry and restored on exit.

    Attributes:
      requested: Signal that asked to stop; None if there was none.
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
        """Marks work that can be repeated: within it, a request to stop raises Stopped instead of waiting.

        With several processes nothing is raised, because the others would wait for this one.

        Yields:
          None.

        Raises:
          Stopped: If a signal arrives within the context, or arrived before it.
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
        """Handles a signal, between two instructions of the main thread."""
        del frame
        if self.requested is not None:
            end(128 + number, INTERRUPTED)
        self.requested = signal.Signals(number)
        # Not print: a handler may interrupt another print, whose buffer is not reentrant.
        os.write(
            2, b"\nStopping at the end of this block of steps; interrupt again to stop at once.\n"
        )
        if self._leaving:
            raise Stopped


def waiting(function: Callable[[], Value]) -> Value:
    """Calls a function in another thread, so that this thread can handle signals until it returns.

    Long calls into compiled code would hold signals back in the thread that makes them. An exception of the
    function is raised here. If a signal handler raises, the other thread is abandoned.

    Args:
      function: Function without arguments.

    Returns:
      The function's result.

    Raises:
      BaseException: If the function raises it.
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
    """Ends this process at once: a usual exit would wait for XLA's threads.

    Args:
      status: Exit status.
      line: Last line on stderr; "" for none.
    """
    distributed.leave(status, line)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a handler may interrupt another write
            stream.flush()
    if line:
        os.write(2, f"{line}\n".encode())
    os._exit(status)
