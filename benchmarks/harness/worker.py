"""One peer at one case, in a process of its own; `benchmarks.harness.processes` starts it.

    python -m benchmarks.harness.worker PEER CASE [--tasks=N] [--steps=N] [--adjoint=NAME]

It reads commands from stdin, a line each, and answers each by a line of JSON on stdout:

    prepare   compiles and warms up: device, compile_seconds, program_bytes, step_seconds
    round     takes as many steps as fit half a second, at least one: seconds, steps, peak_bytes,
              step_peak_bytes
    check     loss and gradient_norm at the parameters and tasks that all peers share
    stop      ends

`peak_bytes` is the most memory used: of the device on a GPU, else of this process. `step_peak_bytes` leaves
out of the latter what only compiling took, and is null where the system cannot; the libraries are in both.
What fails is answered by `error`, and ends the worker with status 1.
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
SLOW_SECONDS = 10.0  # a step that takes longer is warmed up once, and timed once

Answer = dict[str, Any]


def serve(
    make: Callable[[], Peer], commands: Iterable[str], answer: Callable[[Answer], None]
) -> int:
    """Obeys commands until they end, or one fails.

    Args:
      make: makes the peer, before the first command; what it raises is the first answer.
      commands: lines.
      answer: takes the answer to a line.

    Returns:
      The exit status.
    """
    session = None
    for line in commands:
        command = line.strip()
        if command == "stop":
            break
        try:
            session = session or _Session(make())
            if command not in _Session.COMMANDS:
                raise ValueError(f"{command!r} is no command")
            found = getattr(session, command)()
        except Exception as error:  # whatever a peer's libraries raise is that peer's row
            answer({"error": in_words(error)})
            return 1
        answer(found)
    return 0


def in_words(error: Exception) -> str:
    """Says in a line what went wrong, and the remedy where a package is missing."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install -e '.[bench]'"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:197] + '...' if len(text) > 200 else text}"


def make_peer(name: str, case: Case, adjoint: str | None) -> Peer:
    """Imports a peer, with the libraries that only it needs, and makes it."""
    module = importlib.import_module(f"benchmarks.peers.{name}_peer")
    return module.make(case, adjoint=adjoint) if adjoint else module.make(case)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; what is wrong with them is one line, and status 2."""
    parser = Parser("benchmarks.harness.worker", __doc__)
    parser.add_argument("peer")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--tasks", type=positive(int), help="[the case's]")
    parser.add_argument("--steps", type=positive(int), help="inner steps [the case's]")
    parser.add_argument("--adjoint", help="of metajax's inner loop [the library's default]")
    options = parser.parse_args(args)
    if options.steps and not CASES[options.case].inner_steps:
        parser.error(
            f"--steps={options.steps} means nothing to {options.case}: it has no inner loop."
        )
    return options


def main() -> int:
    """Serves one peer over stdin and stdout."""
    options = parse()
    case = CASES[options.case]
    case = case._replace(
        tasks=options.tasks or case.tasks, inner_steps=options.steps or case.inner_steps
    )

    # Workers share a GPU, which JAX would otherwise claim most of.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(found: Answer) -> None:
        print(json.dumps(found), file=answers, flush=True)

    return serve(lambda: make_peer(options.peer, case, options.adjoint), sys.stdin, answer)


class _Session:
    """Obeys the commands for one peer; each method but the first is one."""

    COMMANDS = ("prepare", "round", "check")

    def __init__(self, peer: Peer):
        self._peer, self._step_seconds = peer, None

    def prepare(self) -> Answer:
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
        loss, norm = self._peer.check()
        return {"device": self._peer.device, "loss": loss, "gradient_norm": norm}

    def _timed(self, count: int) -> float:
        start = time.perf_counter()
        self._peer.steps(count)
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
