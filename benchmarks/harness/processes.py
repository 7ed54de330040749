"""Worker processes (`benchmarks.harness.worker`): started, asked and measured in turn."""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.harness.cases import Case
from benchmarks.harness.options import ROOT
from benchmarks.harness.outcomes import Outcome, summarize, with_ratios
from benchmarks.harness.worker import SLOW_SECONDS

PEERS = {
    "metajax": "this library",
    "higher": "higher on PyTorch, a loop over tasks",
    "naive": "vmap of a hand-written inner loop in JAX, on one device",
}

StartFn = Callable[[Case, str], "Worker"]


class WorkerError(RuntimeError):
    """A worker that failed; the message is the reason in one line."""


class Worker:
    """A process that answers each line with a line of JSON.

    Args:
      command: Command that starts it.
      allowance: Limit of its working time in seconds.
    """

    def __init__(self, command: Sequence[str], *, allowance: float):
        self._allowance = self._left = allowance
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Args:
          command: Command, one line.

        Returns:
          The answer.

        Raises:
          WorkerError: If the answer is an error, the process ends, or its time is up.
        """
        start = time.monotonic()
        with contextlib.suppress(OSError):  # a process that has ended is noticed when reading
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=max(self._left, 0.0))
        except queue.Empty:
            self.close()
            raise WorkerError(f"stopped after the {self._allowance:g} s of --timeout") from None
        self._left -= time.monotonic() - start
        if line is None:
            raise WorkerError(self._last_words())
        try:
            answer = json.loads(line)
        except ValueError:
            raise WorkerError(f"answered {line.strip()[:80]!r}, which is not JSON") from None
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process; further calls do nothing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.close()
        self._process.stdout.close()
        with contextlib.suppress(OSError):  # unread input is lost
            self._process.stdin.close()

    def _read(self) -> None:
        """Reads answers in a thread, so that waiting can time out."""
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        """Describes how the process ended."""
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "was killed, probably because memory ran out"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"ended with status {status}" + (f": {lines[-1][:200]}" if lines else "")


def start_worker(case: Case, peer: str, *, adjoint: str | None, allowance: float) -> Worker:
    """Starts the worker of a peer, with the case's tasks and inner steps.

    Args:
      case: Case.
      peer: Name of the peer.
      adjoint: Adjoint of metajax's inner loop; None for the default.
      allowance: Limit of its working time in seconds.

    Returns:
      The worker.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness.worker",
        peer,
        case.name,
        f"--tasks={case.tasks}",
    ]
    command += [f"--steps={case.inner_steps}"] if case.inner_steps else []
    command += [f"--adjoint={adjoint}"] if adjoint and peer == "metajax" else []
    return Worker(command, allowance=allowance)


def measure(
    case: Case, peers: Sequence[str], *, rounds: int, start: StartFn, log: Callable[[str], None]
) -> list[Outcome]:
    """Measures peers in turn at one case.

    Args:
      case: Case.
      peers: Names of peers.
      rounds: Number of rounds; peers with slow steps have one.
      start: Function from case and peer to a new worker.
      log: Function that prints a line of progress.

    Returns:
      An outcome per peer.
    """
    prepared, taken, errors = {}, {peer: [] for peer in peers}, {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for peer in peers:
            log(f"{case.name}: {peer}, preparing")
            workers[peer] = start(case, peer)
            stack.callback(workers[peer].close)
            _attempt(peer, workers, prepared.__setitem__, "prepare", errors)
        for index in range(rounds):
            for peer in [peer for peer in peers if peer not in errors]:
                if index and prepared[peer]["step_seconds"] > SLOW_SECONDS:
                    continue
                log(f"{case.name}: {peer}, round {index + 1} of {rounds}")
                _attempt(peer, workers, lambda p, a: taken[p].append(a), "round", errors)
    outcomes = [
        summarize(case, peer, prepared.get(peer), taken[peer], errors.get(peer)) for peer in peers
    ]
    return with_ratios(outcomes)


def say(line: str) -> None:
    """Prints a line of progress on stderr.

    Args:
      line: Text.
    """
    print(line, file=sys.stderr, flush=True)


def _attempt(
    peer: str,
    workers: Mapping[str, Worker],
    keep: Callable[[str, dict[str, Any]], None],
    command: str,
    errors: dict[str, str],
) -> None:
    """Asks a worker and keeps its answer, or its error and ends it."""
    try:
        keep(peer, workers[peer].ask(command))
    except WorkerError as error:
        errors[peer] = str(error)
        workers[peer].close()
