r"""Measures the growth of a meta-step's time and memory with inner steps or with tasks.

    python -m benchmarks.growth --case=maml_1 --over=steps --counts=1,2,5,10,20,50,100 \\
        --adjoints=reverse,remat,mixed,recursive --tasks=2
    python -m benchmarks.growth --case=maml_1 --over=tasks --counts=1,4,16,64 --peers=metajax,higher

Every point is measured in a separate process. The adjoints or peers of one count are measured together, in
turn as by benchmarks.compare; if memory may not suffice for all of them, measure one at a time. A point that
fails becomes a row with the reason. The command prints a table, and writes growth.json after every count and
growth.png.

"program" is the memory that the compiled meta-step holds, arguments included: of one GPU, or of all cores
together. "step" is peak memory: of the device on a GPU, elsewhere of the whole process since it compiled,
libraries included (Linux only). "x" is either divided by that of the smallest count. A CPU takes tasks one
at a time on as many cores as divide them, so that a single task uses one core.
"""

import argparse
import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import options as shared
from benchmarks.harness.cases import CASES, Case
from benchmarks.harness.outcomes import Outcome, aligned, environment, shown
from benchmarks.harness.processes import PEERS, StartFn, Worker, measure, say, start_worker
from benchmarks.harness.worker import in_words
from experiments.runtime.files import write_json

MEMORY = {  # fields of an outcome with their labels; the first one that is known is drawn
    "program_bytes": "memory of the compiled meta-step",
    "step_peak_bytes": "peak memory while stepping",
    "peak_bytes": "peak memory, compiling included",
}
FIELDS = {"steps": "inner_steps", "tasks": "tasks"}  # fields of a case, by their names in --over


class Point(NamedTuple):
    """Measurement of one line at one count.

    Attributes:
      count: Number of inner steps or tasks.
      case: Case at that count.
      outcome: Measurements; `peer` is the name of the line, an adjoint or a peer.
      program_growth: Program memory divided by that of the smallest count; None if either is unknown.
      step_growth: Peak memory while stepping, divided likewise.
    """

    count: int
    case: Case
    outcome: Outcome
    program_growth: float | None = None
    step_growth: float | None = None

    @property
    def ms_each(self) -> float | None:
        """Milliseconds per inner step and task; per task if there are no inner steps."""
        each = self.case.tasks * max(self.case.inner_steps, 1)
        return self.outcome.median_ms and self.outcome.median_ms / each

    def record(self) -> dict[str, Any]:
        """Collects all fields for JSON.

        Returns:
          Values by name.
        """
        sizes = {"tasks": self.case.tasks, "inner_steps": self.case.inner_steps}
        return {
            **self.outcome._asdict(),
            **sizes,
            "ms_each": self.ms_each,
            "program_growth": self.program_growth,
            "step_growth": self.step_growth,
        }


def sweep(
    case: Case,
    lines: Sequence[str],
    counts: Sequence[int],
    *,
    over: str,
    rounds: int,
    start: StartFn,
    log: Callable[[str], None],
    keep: Callable[[list[Point]], None],
) -> list[Point]:
    """Measures every line at every count.

    Args:
      case: Case whose steps or tasks are varied.
      lines: Names of adjoints or peers.
      counts: Numbers of steps or tasks, in ascending order.
      over: Varied quantity, a key of FIELDS.
      rounds: Number of rounds per point.
      start: Function from case and line to a new worker.
      log: Function that prints a line of progress.
      keep: Function that stores all points so far, called after every count.

    Returns:
      A point per count and line, in this order.
    """
    points = []
    for count in counts:
        log(f"{over}: {count:,}")
        sized = case._replace(**{FIELDS[over]: count})
        outcomes = measure(sized, lines, rounds=rounds, start=start, log=say)
        points += [Point(count, sized, outcome) for outcome in outcomes]
        points = with_growth(points)
        keep(points)
    return points


def with_growth(points: Sequence[Point]) -> list[Point]:
    """Computes memory relative to the same line at the smallest count.

    Args:
      points: Points of one sweep.

    Returns:
      The points with `program_growth` and `step_growth`.
    """
    least = min(point.count for point in points)
    first = {point.outcome.peer: point.outcome for point in points if point.count == least}

    def growth(outcome, name):
        value, base = getattr(outcome, name), getattr(first[outcome.peer], name)
        return value / base if value and base else None

    return [
        point._replace(
            program_growth=growth(point.outcome, "program_bytes"),
            step_growth=growth(point.outcome, "step_peak_bytes"),
        )
        for point in points
    ]


def table(points: Sequence[Point], *, over: str) -> str:
    """Formats points in columns, line by line; a point that failed has a reason.

    Args:
      points: Points of one sweep.
      over: Varied quantity, a key of FIELDS.

    Returns:
      Lines of a table.
    """
    memory = ("program MB", "x", "step MB", "x")
    times = ("ms", "ms/step/task", "tasks/s", "compile s")
    rows = [("case", "adjoint/peer", over, *times, *memory, "")]
    names = list(dict.fromkeys(point.outcome.peer for point in points))
    for point in sorted(points, key=lambda point: names.index(point.outcome.peer)):
        o = point.outcome
        numbers = (
            f"{point.count:,}",
            shown(o.median_ms, ",.1f"),
            shown(point.ms_each, ",.2f"),
            shown(o.tasks_per_second, ",.1f"),
            shown(o.compile_seconds, ".1f"),
            shown(o.program_bytes, ",.1f", scale=1e-6),
            shown(point.program_growth, ".2f"),
            shown(o.step_peak_bytes, ",.0f", scale=1e-6),
            shown(point.step_growth, ".2f"),
        )
        rows.append((o.case, o.peer, *numbers, o.error or ""))
    return aligned(rows)


def draw(points: Sequence[Point], path: Path, *, over: str) -> None:
    """Draws memory and time of the measured points against their counts, as PNG.

    Args:
      points: Points of one sweep, at least one of them measured.
      path: File to write.
      over: Varied quantity, a key of FIELDS.
    """
    from matplotlib.figure import Figure

    measured = [point for point in points if point.outcome.median_ms]
    # Peers that are not compiled have no program, and not every system can reset the peak of a process.
    memory = next(
        name for name in MEMORY if all(getattr(point.outcome, name) for point in measured)
    )
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    left, right = figure.subplots(1, 2)
    _panel(left, measured, lambda outcome: getattr(outcome, memory) / 1e6, f"{MEMORY[memory]} (MB)")
    _panel(right, measured, lambda outcome: outcome.median_ms, "time of a meta-step (ms)")
    figure.supxlabel("inner steps" if over == "steps" else "tasks per meta-step", fontsize="medium")
    left.legend(frameon=False)
    case = measured[0].case
    fixed = f"tasks: {case.tasks:,}" if over == "steps" else f"inner steps: {case.inner_steps}"
    devices = sorted({point.outcome.device for point in measured})
    figure.suptitle(f"{case.name} ({fixed}) on {', '.join(devices)}", fontsize="medium")
    figure.savefig(path, dpi=150)


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.growth", __doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--over", choices=FIELDS, required=True, help="quantity to vary")
    parser.add_argument(
        "--counts", type=shared.counts, required=True, help="numbers of steps or tasks"
    )
    peers = functools.partial(shared.names, known=PEERS)
    parser.add_argument("--peers", type=peers, default=("metajax",), help="[metajax]")
    parser.add_argument(
        "--adjoints",
        type=lambda text: tuple(dict.fromkeys(text.split(","))),
        default=(),
        help="adjoints of metajax's inner loop, a line each [the library's default]",
    )
    parser.add_argument(
        "--tasks", type=shared.positive(int), help="tasks per meta-step [the case's]"
    )
    shared.add_measuring(parser, rounds=3, output="runs/growth")
    options = parser.parse_args(args)
    if options.over == "steps" and not CASES[options.case].inner_steps:
        parser.error(f"--case={options.case} has no inner loop; use --over=tasks.")
    if options.over == "tasks" and options.tasks:
        parser.error(f"--tasks={options.tasks} is what --over=tasks varies; use --counts.")
    if options.adjoints and "metajax" not in options.peers:
        parser.error("--adjoints are metajax's; name it in --peers.")
    if options.adjoints:
        shared.check_adjoints(options.adjoints, parser)
    if importlib.util.find_spec("matplotlib") is None:
        parser.error(in_words(ModuleNotFoundError(name="matplotlib")))
    shared.make_output(options.output, parser)
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints and draws.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    case = CASES[options.case]
    case = case._replace(tasks=options.tasks or case.tasks)
    lines = _lines(options.peers, options.adjoints)

    def start(case: Case, line: str) -> Worker:
        peer, adjoint = lines[line]
        return start_worker(case, peer, adjoint=adjoint, allowance=options.timeout)

    def keep(points: list[Point]) -> None:
        record = {
            "settings": {"case": case.name, "over": options.over, "rounds": options.rounds},
            "points": [point.record() for point in points],
            **environment([point.outcome for point in points]),
        }
        write_json(options.output / "growth.json", record)

    try:
        points = sweep(
            case,
            tuple(lines),
            options.counts,
            over=options.over,
            rounds=options.rounds,
            start=start,
            log=say,
            keep=keep,
        )
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    print(table(points, over=options.over))
    if not any(point.outcome.median_ms for point in points):
        return 1
    draw(points, options.output / "growth.png", over=options.over)
    print(f"All rounds are in {options.output / 'growth.json'}, and a picture is in growth.png.")
    return 0


def _lines(peers: Sequence[str], adjoints: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Maps the name of each line to its peer and adjoint."""
    ours = {name: ("metajax", name) for name in adjoints} or {"metajax": ("metajax", None)}
    lines = {}
    for peer in peers:
        lines.update(ours if peer == "metajax" else {peer: (peer, None)})
    return lines


def _panel(
    axes: Any, points: Sequence[Point], value: Callable[[Outcome], float], label: str
) -> None:
    """Draws a line per name on logarithmic axes, with decimal numbers as ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    names = dict.fromkeys(point.outcome.peer for point in points)
    for name, marker in zip(names, itertools.cycle("osD^vP")):
        line = [(p.count, value(p.outcome)) for p in points if p.outcome.peer == name]
        axes.plot(*zip(*line, strict=True), marker=marker, markersize=5, label=name)
    counts = sorted({point.count for point in points})
    low, high = (pick(value(point.outcome) for point in points) for pick in (min, max))
    # Whole decades, so that slow growth looks slow.
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    limits = (10.0**bottom, 10.0 ** max(top, bottom + 1))
    axes.set(xscale="log", yscale="log", ylabel=label, ylim=limits)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
