"""metajax beside its peers: the same meta-steps, each peer in a process of its own, measured in turn.

    python -m benchmarks.compare [--cases=maml_1,maml_5] [--peers=metajax,higher,naive] [--rounds=5]
    python -m benchmarks.compare --check     # the same loss and meta-gradient from every peer?
    python -m benchmarks.compare --list

All workers of a case are started and warmed up one after another; then, round after round, each in turn
takes as many meta-steps as fit half a second. Only one works at a time. A meta-step is the gradient of the
mean loss over tasks, and Adam's step with it, on tasks that are on the device already. The command prints a
table and writes comparison.json: medians over rounds, all the rounds, versions and the machine.

"ratio" is tasks a second over those of higher. "peak" is memory: of the device on a GPU, elsewhere of the
whole process, its libraries and its compiler included. "compile" is what JAX takes before the first step.
"""

import argparse
import contextlib
import difflib
import functools
import json
import math
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.cases import CASES, Case
from benchmarks.outcomes import (
    TOLERANCE,
    Outcome,
    disagreements,
    environment,
    summarise,
    table,
    with_ratios,
)
from benchmarks.worker import SLOW_SECONDS
from experiments.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "metajax": "this library",
    "higher": "higher on PyTorch, a loop over tasks",
    "naive": "vmap of a hand-written inner loop in JAX, on one device",
}
# Not the transformer: higher's Adam adds its epsilon outside of the square root alone.
CHECKED = tuple(case.name for case in CASES.values() if case.kind != "transformer")
CHECKED_BY_DEFAULT = ("maml_1", "maml_5")

StartFn = Callable[[Case, str], "Worker"]


class WorkerError(RuntimeError):
    """A worker that cannot go on; the message is one line that says why."""


class Worker:
    """A process that answers each line by a line of JSON.

    Args:
      command: starts it.
      allowance: seconds it may work in all.
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
        """Sends a command and waits for its answer.

        Raises:
          WorkerError: if the answer is an error, or the process ends, or its allowance does.
        """
        start = time.monotonic()
        with contextlib.suppress(OSError):  # it has ended, which reading tells
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
            raise WorkerError(f"answered {line.strip()[:80]!r}, which is no JSON") from None
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process; again does nothing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.close()
        self._process.stdout.close()
        with contextlib.suppress(OSError):  # what was written and not read is lost
            self._process.stdin.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"ended with status {status}" + (f": {lines[-1][:200]}" if lines else "")


def measure(
    case: Case, peers: Sequence[str], *, rounds: int, start: StartFn, say: Callable[[str], None]
) -> list[Outcome]:
    """Measures the peers in turn at one case.

    Args:
      case: what is measured.
      peers: their names.
      rounds: how many, save for peers whose step is slow: one.
      start: (case, peer) -> a worker, which has not been asked anything.
      say: takes lines on how it goes.
    """
    prepared, taken, errors = {}, {peer: [] for peer in peers}, {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for peer in peers:
            say(f"{case.name}: {peer} prepares")
            workers[peer] = start(case, peer)
            stack.callback(workers[peer].close)
            _attempt(peer, workers, prepared.__setitem__, "prepare", errors)
        for index in range(rounds):
            for peer in [peer for peer in peers if peer not in errors]:
                if index and prepared[peer]["step_seconds"] > SLOW_SECONDS:
                    continue
                say(f"{case.name}: {peer}, round {index + 1} of {rounds}")
                _attempt(peer, workers, lambda p, a: taken[p].append(a), "round", errors)
    outcomes = [
        summarise(case, peer, prepared.get(peer), taken[peer], errors.get(peer)) for peer in peers
    ]
    return with_ratios(outcomes)


def check(
    case: Case, peers: Sequence[str], *, start: StartFn, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Asks each peer for its loss and meta-gradient at the same parameters and tasks.

    Returns:
      A record a peer: `case`, `peer`, and `loss` and `gradient_norm` or `error`.
    """
    found = []
    for peer in peers:
        say(f"{case.name}: {peer} is checked")
        record = {"case": case.name, "peer": peer}
        with contextlib.closing(start(case, peer)) as worker:
            try:
                record.update(worker.ask("check"))
            except WorkerError as error:
                record["error"] = str(error)
        found.append(record)
    return found


def start_worker(
    case: Case, peer: str, *, tasks: int | None, adjoint: str | None, allowance: float
) -> Worker:
    """Starts the worker of a peer."""
    command = [sys.executable, "-m", "benchmarks.worker", peer, case.name]
    command += [f"--tasks={tasks}"] if tasks else []
    command += [f"--adjoint={adjoint}"] if adjoint and peer == "metajax" else []
    return Worker(command, allowance=allowance)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; what is wrong with them is one line, and status 2."""
    parser = _Parser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peers = functools.partial(_names, known=PEERS)
    parser.add_argument("--cases", type=functools.partial(_names, known=CASES), help="[all]")
    parser.add_argument("--peers", type=peers, default=tuple(PEERS), help="[all]")
    parser.add_argument("--rounds", type=_positive(int), default=5, help="[5]")
    parser.add_argument("--tasks", type=_positive(int), help="tasks a meta-step [the case's]")
    parser.add_argument("--adjoint", help="of metajax's inner loop [the library's default]")
    parser.add_argument(
        "--timeout",
        type=_positive(float),
        default=300.0,
        help="seconds a worker may work in all [300]",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/comparison"), help="directory [runs/comparison]"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare losses and meta-gradients, not times; of "
        f"{', '.join(CHECKED_BY_DEFAULT)} unless --cases says otherwise",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and peers")
    options = parser.parse_args(args)
    options.cases = options.cases or (CHECKED_BY_DEFAULT if options.check else tuple(CASES))
    unchecked = [name for name in options.cases if name not in CHECKED]
    if options.check and unchecked:
        parser.error(
            f"--cases={','.join(unchecked)} cannot be checked: its peers' inner Adams differ by "
            f"an epsilon; use {', '.join(CHECKED)}."
        )
    if options.check and len(options.peers) < 2:
        parser.error(f"--peers={options.peers[0]} leaves nothing to check it against; name two.")
    if options.adjoint:
        _check_adjoint(options.adjoint, parser)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={options.output} cannot be made ({error.strerror}).")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    options = parse(args)
    if options.list:
        print("\n".join(f"{name:<16}  {case.describe()}" for name, case in CASES.items()))
        print("\n".join(f"{name:<16}  {text}" for name, text in PEERS.items()))
        return 0
    cases = [
        CASES[name]._replace(tasks=options.tasks or CASES[name].tasks) for name in options.cases
    ]
    start = functools.partial(
        start_worker, tasks=options.tasks, adjoint=options.adjoint, allowance=options.timeout
    )
    try:
        return (_run_check if options.check else _run_comparison)(cases, options, start)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


def _run_comparison(cases: Sequence[Case], options: argparse.Namespace, start: StartFn) -> int:
    outcomes = []
    for case in cases:
        outcomes += measure(case, options.peers, rounds=options.rounds, start=start, say=_say)
        # Written after every case, should a later one be interrupted.
        record = {
            "settings": {"adjoint": options.adjoint, "rounds": options.rounds},
            "cases": {done.name: done._asdict() for done in cases[: cases.index(case) + 1]},
            "outcomes": [outcome._asdict() for outcome in outcomes],
            **environment(outcomes),
        }
        write_json(options.output / "comparison.json", record)
    print(table(outcomes))
    devices = {outcome.device for outcome in outcomes} - {None}
    if len(devices) > 1:
        print(f"Beware: not all ran on the same kind of device, but on {', '.join(devices)}.")
    print(f"All rounds are in {options.output / 'comparison.json'}.")
    return 0 if any(outcome.median_ms for outcome in outcomes) else 1


def _run_check(cases: Sequence[Case], options: argparse.Namespace, start: StartFn) -> int:
    lines = []
    for case in cases:
        records = check(case, options.peers, start=start, say=_say)
        for r in records:
            if "error" not in r:
                numbers = f"loss {r['loss']:.6g}, meta-gradient's norm {r['gradient_norm']:.6g}"
                print(f"{r['case']:<12}  {r['peer']:<8}  {numbers}", flush=True)
        lines += disagreements(records)
    print("\n".join(lines) or f"All agree to {TOLERANCE:g}, relative.")
    return 1 if lines else 0


def _attempt(
    peer: str,
    workers: Mapping[str, Worker],
    keep: Callable[[str, dict[str, Any]], None],
    command: str,
    errors: dict[str, str],
) -> None:
    try:
        keep(peer, workers[peer].ask(command))
    except WorkerError as error:
        errors[peer] = str(error)
        workers[peer].close()


def _check_adjoint(name: str, parser: argparse.ArgumentParser) -> None:
    # In a process of its own: what this one holds in memory counts as the workers' at their start.
    code = "from metajax.inner.adjoints import ADJOINTS; print(*ADJOINTS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    known = found.stdout.split()
    if name not in known:
        parser.error(f"--adjoint={name} is unknown; {_nearest(name, known)}")


def _names(text: str, *, known: Mapping[str, Any]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split(",") if name))
    if not names:
        raise argparse.ArgumentTypeError(f"names nothing; use some of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; {_nearest(name, list(known))}")
    return names


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}."


def _positive(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} above zero.")
        return value

    return read


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
