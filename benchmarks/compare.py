"""Compares metajax with its peers: the same meta-steps, one process per peer, measured in turn.

    python -m benchmarks.compare [--cases=maml_1,maml_5] [--peers=metajax,higher,naive] [--rounds=5]
    python -m benchmarks.compare --check     # compare losses and meta-gradients instead of times
    python -m benchmarks.compare --list

The workers of a case are started and warmed up one after another; then, in every round, each in turn takes
as many meta-steps as fit half a second. Only one works at a time. A meta-step is the gradient of the mean
loss over tasks followed by a step of Adam, on tasks that are on the device already. The command prints a
table and writes comparison.json: medians over rounds, all rounds, versions and the machine.

"ratio" is tasks per second relative to higher. "peak" and "step" are peak memory, of the device on a
GPU, elsewhere of the whole process with its libraries: "peak" since its start, compiler included, and "step"
since compilation ended (Linux only). "compile" is the time that JAX needs before the first step.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import options as shared
from benchmarks.harness.cases import CASES, Case
from benchmarks.harness.outcomes import TOLERANCE, disagreements, environment, table
from benchmarks.harness.processes import PEERS, StartFn, WorkerError, measure, say, start_worker
from experiments.runtime.files import write_json

# Without the transformer: higher's Adam has no epsilon inside the square root.
CHECKED = tuple(case.name for case in CASES.values() if case.kind != "transformer")
CHECKED_BY_DEFAULT = ("maml_1", "maml_5")


def check(
    case: Case, peers: Sequence[str], *, start: StartFn, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Asks each peer for its loss and meta-gradient at the same parameters and tasks.

    Args:
      case: Case to check.
      peers: Names of peers.
      start: Function from case and peer to a worker.
      log: Function that prints a line of progress.

    Returns:
      A record per peer: `case`, `peer`, and `loss` and `gradient_norm`, or `error`.
    """
    found = []
    for peer in peers:
        log(f"{case.name}: {peer}, checking")
        record = {"case": case.name, "peer": peer}
        with contextlib.closing(start(case, peer)) as worker:
            try:
                record.update(worker.ask("check"))
            except WorkerError as error:
                record["error"] = str(error)
        found.append(record)
    return found


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.compare", __doc__)
    cases, peers = (functools.partial(shared.names, known=known) for known in (CASES, PEERS))
    parser.add_argument("--cases", type=cases, help="[all]")
    parser.add_argument("--peers", type=peers, default=tuple(PEERS), help="[all]")
    parser.add_argument(
        "--tasks", type=shared.positive(int), help="tasks per meta-step [the case's]"
    )
    parser.add_argument("--adjoint", help="adjoint of metajax's inner loop [the library's default]")
    shared.add_measuring(parser, rounds=5, output="runs/comparison")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare losses and meta-gradients instead of times; without --cases, of "
        f"{', '.join(CHECKED_BY_DEFAULT)}",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and peers")
    options = parser.parse_args(args)
    options.cases = options.cases or (CHECKED_BY_DEFAULT if options.check else tuple(CASES))
    unchecked = [name for name in options.cases if name not in CHECKED]
    if options.check and unchecked:
        parser.error(
            f"--cases={','.join(unchecked)} cannot be checked: its peers' inner Adams differ by "
            f"an epsilon; use {', '.join(CHECKED)}."
        )
    if options.check and len(options.peers) < 2:
        parser.error(f"--peers={options.peers[0]} is a single peer; name at least two to compare.")
    if options.adjoint:
        shared.check_adjoints([options.adjoint], parser)
    shared.make_output(options.output, parser)
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Runs the comparison.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    if options.list:
        print("\n".join(f"{name:<16}  {case.describe()}" for name, case in CASES.items()))
        print("\n".join(f"{name:<16}  {text}" for name, text in PEERS.items()))
        return 0
    cases = [
        CASES[name]._replace(tasks=options.tasks or CASES[name].tasks) for name in options.cases
    ]
    start = functools.partial(start_worker, adjoint=options.adjoint, allowance=options.timeout)
    try:
        return (_run_check if options.check else _run_comparison)(cases, options, start)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


def _run_comparison(cases: Sequence[Case], options: argparse.Namespace, start: StartFn) -> int:
    """Measures all cases; prints and writes the outcomes."""
    outcomes = []
    for case in cases:
        outcomes += measure(case, options.peers, rounds=options.rounds, start=start, log=say)
        # Written after every case, in case a later one is interrupted.
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
        print(f"Warning: peers ran on different kinds of devices: {', '.join(devices)}.")
    print(f"All rounds are in {options.output / 'comparison.json'}.")
    return 0 if any(outcome.median_ms for outcome in outcomes) else 1


def _run_check(cases: Sequence[Case], options: argparse.Namespace, start: StartFn) -> int:
    """Compares losses and meta-gradients of all cases; prints differences."""
    lines = []
    for case in cases:
        records = check(case, options.peers, start=start, log=say)
        for r in records:
            if "error" not in r:
                numbers = f"loss {r['loss']:.6g}, meta-gradient's norm {r['gradient_norm']:.6g}"
                print(f"{r['case']:<12}  {r['peer']:<8}  {numbers}", flush=True)
        lines += disagreements(records)
    print("\n".join(lines) or f"All agree to {TOLERANCE:g}, relative.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
