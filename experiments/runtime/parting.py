"""Ends one of several processes with a message of this project, whatever JAX's runtime prints or does.

If a peer is lost, JAX's runtime aborts the process from a C++ thread with a stack trace, or Python waits for
its devices for ever. A thread here therefore reads what C++ writes to stderr, and the signals.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

# The first process hosts the coordination service, and the others abort as soon as it ends: it waits so long
# for them to print their reason.
SECONDS = 2.0

# The first line that the runtime prints before it ends a process because of another one.
_FATAL = re.compile(rb"^(E\d.*coordination_service|F\d.*distributed service)", re.MULTILINE)


class Parting:
    """Prepares the end of this process; made once, by the main thread, before JAX joins the other processes.

    Args:
      explain: Function from the runtime's message about other processes to an error message.

    Attributes:
      explain: The same function; it may be replaced.
      signals: Number of SIGINT and SIGTERM that end the process, whether or not Python's handlers run.
      is_first: Whether this is the first process.
    """

    def __init__(self, explain: Callable[[str], str]):
        self.explain, self.signals, self.is_first = explain, 1, False
        self._held, self._seen, self._status = b"", 0, None
        self._reading, self._last_word = threading.Lock(), threading.Lock()
        # File descriptor 2 becomes a pipe that `_watch` reads; Python writes to the real stderr, a copy.
        self._stderr = os.dup(2)
        sys.stderr.flush()
        sys.stderr = open(  # noqa: SIM115
            self._stderr, "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        if faulthandler.is_enabled():  # a crashing process does not empty its own pipe
            faulthandler.enable(sys.stderr)
        self._output, of_cpp = os.pipe()
        os.dup2(of_cpp, 2)
        os.close(of_cpp)
        self._numbers, of_signals = os.pipe()
        for descriptor in (self._output, of_signals):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(of_signals, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="parting", daemon=True).start()
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
        if sys.platform != "win32":
            ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def end(self, status: int, line: str) -> NoReturn:
        """Ends the process with one line on stderr; if several threads call it, the first prints its line.

        Args:
          status: Exit status.
          line: Line on stderr; "" for none.
        """
        if not self._last_word.acquire(blocking=False):
            time.sleep(2 * SECONDS)
            os._exit(status)
        self._pass_on(last=True)
        self._say(f"{line}\n".encode() if line else b"")
        if self.is_first:
            time.sleep(SECONDS)
        os._exit(status)

    def over(self, status: int) -> None:
        """Sets the exit status, even if the runtime aborts the process because others have ended.

        Args:
          status: Exit status.
        """
        self._status = status

    def _watch(self) -> None:
        """Passes C++ output and signals on, in a thread, until another thread ends the process."""
        while True:
            ready, _, _ = select.select([self._output, self._numbers], [], [])
            if self._numbers in ready:
                self._count(os.read(self._numbers, 64))
            if self._last_word.locked():
                return  # the thread that holds the lock ends the process
            self._pass_on()

    def _count(self, numbers: bytes) -> None:
        """Counts signals that ask to stop, and ends the process at the last one allowed."""
        stops = [number for number in numbers if number in (signal.SIGINT, signal.SIGTERM)]
        self._seen += len(stops)
        if stops and self._seen >= self.signals:
            self._say(
                b"\nerror: interrupted; the same command in every process continues from the last "
                b"checkpoint.\n"
            )
            os._exit(128 + stops[-1])

    def _pass_on(self, *, last: bool = False) -> str:
        """Passes whole lines of C++ output on, up to fatal ones; returns the fatal ones.

        With `last`, an unfinished line is passed on too.
        """
        with self._reading:
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self._output, 1 << 16):
                    self._held += chunk
            fatal = _FATAL.search(self._held)
            whole = len(self._held) if last else self._held.rfind(b"\n") + 1
            end = fatal.start() if fatal else whole
            self._say(self._held[:end])
            self._held = self._held[end:]
            return self._held.decode(errors="replace") if fatal else ""

    def _on_abort(self, number: int) -> None:
        """Handles SIGABRT in the thread that aborts, after it has printed its reason."""
        del number
        if self._status is not None:
            os._exit(self._status)
        if reason := self._pass_on(last=True):
            self.end(1, f"error: {self.explain(reason)}")
        self.end(1, "\nerror: JAX's runtime ended this process; its message is above.")

    def _say(self, text: bytes) -> None:
        """Writes to the real stderr."""
        with contextlib.suppress(OSError):  # stderr is closed
            while text:
                text = text[os.write(self._stderr, text) :]
