"""Runs of a driver, each in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from metajax.names import shown

from ..flags.settings import PACKAGE
from ..runtime.files import writing

LOG = "log.txt"


def cores_of(workers: int) -> list[set[int] | None]:
    """Divides the cores that this process may use.

    Args:
      workers: Number of parts.

    Returns:
      Numbers of cores by part; None for all of them, if there is one part or the system cannot divide.
    """
    if workers == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [
        set(cores[i * len(cores) // workers : (i + 1) * len(cores) // workers])
        or {cores[i % len(cores)]}
        for i in range(workers)
    ]


def pinned(workers: int) -> str:
    """Writes the start of a command that runs on as many cores as one of several workers; "" for one."""
    cores = cores_of(workers)[0]
    return f"taskset -c {','.join(map(str, sorted(cores)))} " if cores else ""


class Run:
    """A driver's run in a process of its own, which holds the lock of its trial too.

    Args:
      driver: Name of the driver.
      flags: Flags of the driver.
      folder: Work directory of the run, whose log.txt gets what it prints.
      lock: Open file that the process inherits.
      cores: Cores that it may use; None for all of this process.
    """

    def __init__(
        self,
        driver: str,
        flags: Sequence[str],
        folder: Path,
        *,
        lock: IO,
        cores: set[int] | None = None,
    ):
        self._log, self._stopping = Path(folder) / LOG, False
        command = [sys.executable, "-m", f"{PACKAGE}.{driver}", *flags, f"--workdir={folder}"]
        with writing(self._log):
            log = self._log.open("ab")
        self._start = log.tell()
        before = os.sched_getaffinity(0) if cores else None
        with log:
            try:
                if cores:  # a process starts on the cores of the one that starts it
                    os.sched_setaffinity(0, cores)
                # A group of its own: Ctrl-C of the terminal reaches it once, through `stop`.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock.fileno(),),
                    process_group=0,
                )
            finally:
                if before:
                    os.sched_setaffinity(0, before)

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks the run to save a checkpoint and end; a second time changes nothing."""
        if not self._stopping:
            self._stopping = True
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends the run at once, and the processes that read for it, which hold its lock too."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def reason(self) -> str:
        """Finds why the run failed: its error's line, else its last one."""
        status = self._process.poll()
        if status is not None and status < 0:
            return f"signal {-status} ended its process; was there enough memory?"
        try:
            with self._log.open("rb") as file:
                file.seek(self._start)
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        errors = [line for line in lines if line.startswith("error: ")]
        last = (
            errors[-1] if errors else next((line for line in reversed(lines) if line.strip()), "")
        )
        return shown(last.removeprefix("error: "), 400) or f"exit status {status}"
