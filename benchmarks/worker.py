"""One peer at one case, in a process of its own; `benchmarks.compare` starts it.

    python -m benchmarks.worker PEER CASE [--tasks=N] [--adjoint=NAME]

It reads commands from stdin, a line each, and answers each by a line of JSON on stdout:

    prepare   compiles and warms up: device, compile_seconds, step_seconds
    round     takes as many steps as fit half a second, at least one: seconds, steps, peak_bytes
    check     loss and gradient_norm at the parameters and tasks that all peers share
    stop      ends

What fails is answered by `error`, and ends the worker with status 1.
"""

import argparse
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.cases import CASES, Case, Peer

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
    peer, step_seconds = None, None
    for line in commands:
        command = line.strip()
        if command == "stop":
            break
        try:
            peer = peer or make()
            if command == "prepare":
                found = _prepare(peer)
                step_seconds = found["step_seconds"]
            elif command == "round":
                if step_seconds is None:
                    raise ValueError("a round needs a prepare before it")
                found = _round(peer, step_seconds)
            elif command == "check":
                loss, norm = peer.check()
                found = {"device": peer.device, "loss": loss, "gradient_norm": norm}
            else:
                raise ValueError(f"{command!r} is no command")
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


def main() -> int:
    """Serves one peer over stdin and stdout."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("peer")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--adjoint")
    options = parser.parse_args()
    case = CASES[options.case]
    case = case._replace(tasks=options.tasks or case.tasks)

    # Workers share a GPU, which JAX would otherwise claim most of.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(found: Answer) -> None:
        print(json.dumps(found), file=answers, flush=True)

    return serve(lambda: make_peer(options.peer, case, options.adjoint), sys.stdin, answer)


def _prepare(peer: Peer) -> Answer:
    compile_seconds = peer.prepare()
    seconds = _timed(peer, 1)
    if seconds <= SLOW_SECONDS:  # the first step also chose kernels and filled caches
        seconds = _timed(peer, 1)
    return {
        "device": peer.device,
        "compile_seconds": compile_seconds,
        "step_seconds": seconds,
        "peak_bytes": _peak_bytes(peer),
    }


def _round(peer: Peer, step_seconds: float) -> Answer:
    count = max(1, round(ROUND_SECONDS / max(step_seconds, 1e-6)))
    return {
        "seconds": _timed(peer, count),
        "steps": count,
        "peak_bytes": _peak_bytes(peer),
    }


def _timed(peer: Peer, count: int) -> float:
    start = time.perf_counter()
    peer.steps(count)
    return time.perf_counter() - start


def _peak_bytes(peer: Peer) -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB on Linux.
    return peer.device_bytes() or int(peak) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
