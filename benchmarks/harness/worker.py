"""Measures one peer at one case in a separate process; `benchmarks.harness.processes` starts it.

    python -m benchmarks.harness.worker PEER CASE [--tasks=N] [--steps=N] [--adjoint=NAME]

It reads commands from stdin, one per line, and answers each with a line of JSON on stdout:

    prepare   compiles and warms up: device, compile_seconds, program_bytes, step_seconds
    round     takes as many steps as fit half a second, at least one: seconds, steps, peak_bytes,
              step_peak_bytes
    check     loss and gradient_norm at the parameters and tasks that all peers share
    stop      ends

`peak_bytes` is peak memory: of the device on a GPU, else of this process. `step_peak_bytes` excludes what
only compilation used, and is null if the system cannot measure it; libraries are included in both. A failure
is answered by `error`, and ends the worker with status 1.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.harness.cases import CASES, Case, Peer
from benchmarks.harness.options import Parser, positive
from experiments.runtime.devices import process_peak_bytes, restart_peak

ROUND_SECONDS = 0.5
SLOW_SECONDS = 10.0  # longer steps are warmed up once and timed once

Answer = dict[str, Any]


def serve(
    make: Callable[[], Peer], commands: Iterable[str], answer: Callable[[Answer], None]
) -> int:
    """Executes commands until they end, or one fails.

    Args:
      make: Function that makes the peer, called at the first command; its exception is the first answer.
      commands: Lines with commands.
      answer: Function that sends an answer.

    Returns:
      Exit status.
    """
    session = None
    for line in commands:
        command = line.strip()
        if command == "stop":
            break
        try:
            session = session or _Session(make())
            if command not in _Session.COMMANDS:
                raise ValueError(
                    f"{command!r} is not a command; use {', '.join(_Session.COMMANDS)}"
                )
            found = getattr(session, command)()
        except Exception as error:  # any exception of a peer's libraries goes into that peer's row
            answer({"error": in_words(error)})
            return 1
        answer(found)
    return 0


def in_words(error: Exception) -> str:
    """Formats an exception in one line, with the remedy if a package is missing.

    Args:
      error: Exception.

    Returns:
      A text without line breaks.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install -e '.[bench]'"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:197] + '...' if len(text) > 200 else text}"


def make_peer(name: str, case: Case, adjoint: str | None) -> Peer:
    """Imports a peer's module, with the libraries that only it needs, and makes the peer.

    Args:
      name: Name of the peer.
      case: Case.
      adjoint: Adjoint of metajax's inner loop; None for the default.

    Returns:
      The peer.
    """
    module = importlib.import_module(f"benchmarks.peers.{name}_peer")
    return module.make(case, adjoint=adjoint) if adjoint else module.make(case)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = Parser("benchmarks.harness.worker", __doc__)
    parser.add_argument("peer", help="name of the peer")
    parser.add_argument("case", choices=CASES, help="name of the case")
    parser.add_argument("--tasks", type=positive(int), help="tasks per meta-step [the case's]")
    parser.add_argument("--steps", type=positive(int), help="inner steps [the case's]")
    parser.add_argument("--adjoint", help="adjoint of metajax's inner loop [the library's default]")
    options = parser.parse_args(args)
    if options.steps and not CASES[options.case].inner_steps:
        parser.error(
            f"--steps={options.steps} has no effect on {options.case}, which has no inner loop; leave it out."
        )
    return options


def main() -> int:
    """Serves one peer over stdin and stdout.

    Returns:
      Exit status.
    """
    options = parse()
    case = CASES[options.case]
    case = case._replace(
        tasks=options.tasks or case.tasks, inner_steps=options.steps or case.inner_steps
    )

    # Workers share a GPU, most of which JAX would otherwise reserve.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Answers go to a copy of stdout; stdout itself becomes stderr, so that libraries cannot print between
    # answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(found: Answer) -> None:
        print(json.dumps(found), file=answers, flush=True)

    return serve(lambda: make_peer(options.peer, case, options.adjoint), sys.stdin, answer)


class _Session:
    """Executes the commands for one peer; each public method is a command."""

    COMMANDS = ("prepare", "round", "check")

    def __init__(self, peer: Peer):
        self._peer, self._step_seconds = peer, None

    def prepare(self) -> Answer:
        """Compiles and warms up.

        Returns:
          The answer.
        """
        compile_seconds = self._peer.prepare()
        self._peak_before = process_peak_bytes()
        self._restarted = restart_peak()
        self._step_seconds = self._timed(1)
        if self._step_seconds <= SLOW_SECONDS:
            # The first step also chose kernels and filled caches.
            self._step_seconds = self._timed(1)
        return {
            "device": self._peer.device,
            "compile_seconds": compile_seconds,
            "program_bytes": self._peer.program_bytes(),
            "step_seconds": self._step_seconds,
        }

    def round(self) -> Answer:
        """Takes as many steps as fit half a second.

        Returns:
          The answer.

        Raises:
          ValueError: If the peer is not prepared.
        """
        if self._step_seconds is None:
            raise ValueError("a round needs a prepare before it")
        count = max(1, round(ROUND_SECONDS / max(self._step_seconds, 1e-6)))
        seconds = self._timed(count)
        of_device, of_steps = self._peer.device_bytes(), process_peak_bytes()
        return {
            "seconds": seconds,
            "steps": count,
            "peak_bytes": of_device or max(self._peak_before, of_steps),
            "step_peak_bytes": of_device or (of_steps if self._restarted else None),
        }

    def check(self) -> Answer:
        """Computes loss and meta-gradient.

        Returns:
          The answer.
        """
        loss, norm = self._peer.check()
        return {"device": self._peer.device, "loss": loss, "gradient_norm": norm}

    def _timed(self, count: int) -> float:
        """Measures the seconds of a number of steps."""
        start = time.perf_counter()
        self._peer.steps(count)
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
