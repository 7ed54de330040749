"""What a comparison found: its statistics, its table, and what they depend on."""

import contextlib
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.cases import Case
from experiments.runtime.devices import cores

BASELINE = "higher"
TOLERANCE = 1e-3  # relative


class Outcome(NamedTuple):
    """What came of one peer at one case; None where it failed before.

    Attributes:
      case: its name.
      peer: its name.
      device: "cpu", or what the GPU is called.
      median_ms: median over rounds of the milliseconds of a meta-step.
      tasks_per_second: at that median.
      ratio: tasks a second over those of the baseline.
      peak_bytes: the most memory used, of the device on a GPU, else of the process.
      step_peak_bytes: the same, of a process since it compiled; None where systems do not count that.
      program_bytes: what the compiled meta-step holds, its arguments included; None where none is compiled.
      compile_seconds: before the first step.
      rounds_ms: of a meta-step, by round.
      steps_per_round: meta-steps in each round.
      error: why it failed, or stopped early.
    """

    case: str
    peer: str
    device: str | None = None
    median_ms: float | None = None
    tasks_per_second: float | None = None
    ratio: float | None = None
    peak_bytes: int | None = None
    step_peak_bytes: int | None = None
    program_bytes: int | None = None
    compile_seconds: float | None = None
    rounds_ms: tuple[float, ...] = ()
    steps_per_round: int | None = None
    error: str | None = None


def disagreements(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says where the answers of `check` at one case lie further apart than TOLERANCE, a line each."""
    answers = [record for record in records if "error" not in record]
    lines = [f"{r['case']}: {r['peer']} {r['error']}" for r in records if "error" in r]
    for name in ("loss", "gradient_norm"):
        values = {record["peer"]: record[name] for record in answers}
        low, high = (pick(values.values(), default=0.0) for pick in (min, max))
        # Written so that a NaN is a disagreement too.
        close = high - low <= TOLERANCE * max(abs(low), abs(high))
        if not (close and all(map(math.isfinite, values.values()))):
            listed = ", ".join(f"{peer} {value:.6g}" for peer, value in values.items())
            lines.append(f"{answers[0]['case']}: {name} differs: {listed}")
    return lines


def summarise(
    case: Case,
    peer: str,
    prepared: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
    error: str | None,
) -> Outcome:
    """Turns a worker's answers into an outcome, without the ratio."""
    outcome = Outcome(case.name, peer, error=error)
    if prepared:
        names = ("device", "compile_seconds", "program_bytes")
        outcome = outcome._replace(**{name: prepared[name] for name in names})
    if not rounds:
        return outcome
    each = tuple(1000 * answer["seconds"] / answer["steps"] for answer in rounds)
    median = statistics.median(each)
    return outcome._replace(
        median_ms=median,
        tasks_per_second=1000 * case.tasks / median,
        # Neither ever falls from one round to the next.
        peak_bytes=rounds[-1]["peak_bytes"],
        step_peak_bytes=rounds[-1]["step_peak_bytes"],
        rounds_ms=each,
        steps_per_round=rounds[0]["steps"],
    )


def with_ratios(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Fills in the ratios of one case's outcomes; None where the baseline was not measured."""
    base = next((o.tasks_per_second for o in outcomes if o.peer == BASELINE), None)
    return [
        o._replace(ratio=o.tasks_per_second / base) if base and o.tasks_per_second else o
        for o in outcomes
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """Lays out outcomes in columns, a row each; one that failed says why."""
    rows = [("case", "peer", "ms", "tasks/s", "ratio", "peak MB", "step MB", "compile s", "")]
    for o in outcomes:
        numbers = (
            shown(o.median_ms, ",.1f"),
            shown(o.tasks_per_second, ",.1f"),
            shown(o.ratio, ".2f"),
            shown(o.peak_bytes, ",.0f", scale=1e-6),
            shown(o.step_peak_bytes, ",.0f", scale=1e-6),
            shown(o.compile_seconds, ".1f"),
        )
        rows.append((o.case, o.peer, *numbers, o.error or ""))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lays out cells in columns: the first two to the left, others to the right, the last as it comes."""
    *columns, _ = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *cells, last in rows:
        padded = [
            f"{cell:{'<' if i < 2 else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(cells, columns, strict=True))
        ]
        lines.append("  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


def shown(value: float | None, spec: str, *, scale: float = 1.0) -> str:
    """Formats `scale` times a number; a dash where there is none."""
    return "-" if value is None else f"{scale * value:{spec}}"


def environment(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The versions and the machine that the outcomes depend on."""
    versions = {"python": platform.python_version()}
    for name in ("metajax", "jax", "jaxlib", "torch", "higher"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpus = sorted({o.device for o in outcomes} - {None, "cpu"})
    machine = {"cpu": _cpu_model(), "cores": cores(), "gpu": ", ".join(gpus) or None}
    return {"versions": versions, "machine": machine}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
