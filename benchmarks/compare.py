"""metajax beside its peers: the same meta-steps, each peer in a process of its own, measured in turn.

    python -m benchmarks.compare [--cases=maml_1,maml_5] [--peers=metajax,higher,naive] [--rounds=5]
    python -m benchmarks.compare --check     # the same loss and meta-gradient from every peer?
    python -m benchmarks.compare --list

All workers of a case are started and warmed up one after another; then, round after round, each in turn
takes as many meta-steps as fit half a second. Only one works at a time. A meta-step is the gradient of the
mean loss over tasks, and Adam's step with it, on tasks that are on the device already. The command prints a
table and writes comparison.json: medians over rounds, all the rounds, versions and the machine.

"ratio" is tasks a second over those of higher. "peak" and "step" are the most memory used, of the device on a
GPU, elsewhere of the whole process with its libraries: "peak" ever, the compiler included, and "step" of a
process since the compiler was done (Linux only). "compile" is what JAX takes before the first step.
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

# Not the transformer: higher's Adam adds its epsilon outside of the square root alone.
CHECKED = tuple(case.name for case in CASES.values() if case.kind != "transformer")
CHECKED_BY_DEFAULT = ("maml_1", "maml_5")


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


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; what is wrong with them is one line, and status 2."""
    parser = shared.Parser("benchmarks.compare", __doc__)
    cases, peers = (functools.partial(shared.names, known=known) for known in (CASES, PEERS))
    parser.add_argument("--cases", type=cases, help="[all]")
    parser.add_argument("--peers", type=peers, default=tuple(PEERS), help="[all]")
    parser.add_argument("--tasks", type=shared.positive(int), help="tasks a meta-step [the case's]")
    parser.add_argument("--adjoint", help="of metajax's inner loop [the library's default]")
    shared.add_measuring(parser, rounds=5, output="runs/comparison")
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
        shared.check_adjoints([options.adjoint], parser)
    shared.make_output(options.output, parser)
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
    start = functools.partial(start_worker, adjoint=options.adjoint, allowance=options.timeout)
    try:
        return (_run_check if options.check else _run_comparison)(cases, options, start)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


def _run_comparison(cases: Sequence[Case], options: argparse.Namespace, start: StartFn) -> int:
    outcomes = []
    for case in cases:
        outcomes += measure(case, options.peers, rounds=options.rounds, start=start, say=say)
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
        records = check(case, options.peers, start=start, say=say)
        for r in records:
            if "error" not in r:
                numbers = f"loss {r['loss']:.6g}, meta-gradient's norm {r['gradient_norm']:.6g}"
                print(f"{r['case']:<12}  {r['peer']:<8}  {numbers}", flush=True)
        lines += disagreements(records)
    print("\n".join(lines) or f"All agree to {TOLERANCE:g}, relative.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
