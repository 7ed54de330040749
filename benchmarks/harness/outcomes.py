"""Statistics and tables of a comparison, with the versions and the machine that they depend on."""

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
    """Measurements of one peer at one case; fields are None if the peer failed before.

    Attributes:
      case: Name of the case.
      peer: Name of the peer.
      device: Kind of device: "cpu", or the name of the GPU.
      median_ms: Milliseconds per meta-step, the median over rounds.
      tasks_per_second: Tasks per second at that median.
      ratio: Tasks per second relative to the baseline.
      peak_bytes: Peak memory of the device on a GPU, else of the process.
      step_peak_bytes: Peak memory since compilation; None if the system cannot measure it.
      program_bytes: Memory that the compiled meta-step holds, arguments included; None if not compiled.
      compile_seconds: Time before the first step.
      rounds_ms: Milliseconds per meta-step, by round.
      steps_per_round: Number of meta-steps per round.
      error: Reason of a failure or an early stop.
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
    """Lists differences above TOLERANCE between the answers of `check` at one case.

    Args:
      records: Records of the peers.

    Returns:
      A line per difference or error.
    """
    answers = [record for record in records if "error" not in record]
    lines = [f"{r['case']}: {r['peer']} {r['error']}" for r in records if "error" in r]
    for name in ("loss", "gradient_norm"):
        values = {record["peer"]: record[name] for record in answers}
        low, high = (pick(values.values(), default=0.0) for pick in (min, max))
        # Comparisons with NaN are false, so NaN counts as a difference.
        close = high - low <= TOLERANCE * max(abs(low), abs(high))
        if not (close and all(map(math.isfinite, values.values()))):
            listed = ", ".join(f"{peer} {value:.6g}" for peer, value in values.items())
            lines.append(f"{answers[0]['case']}: {name} differs: {listed}")
    return lines


def summarize(
    case: Case,
    peer: str,
    prepared: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
    error: str | None,
) -> Outcome:
    """Summarizes a worker's answers, without the ratio.

    Args:
      case: Case.
      peer: Name of the peer.
      prepared: Answer to `prepare`; None if there was none.
      rounds: Answers to `round`.
      error: Reason of a failure; None if there was none.

    Returns:
      The outcome.
    """
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
        # Peaks never fall from one round to the next, so the last ones are the largest.
        peak_bytes=rounds[-1]["peak_bytes"],
        step_peak_bytes=rounds[-1]["step_peak_bytes"],
        rounds_ms=each,
        steps_per_round=rounds[0]["steps"],
    )


def with_ratios(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Computes ratios to the baseline.

    Args:
      outcomes: Outcomes of one case.

    Returns:
      The outcomes with `ratio`, unchanged if the baseline was not measured.
    """
    base = next((o.tasks_per_second for o in outcomes if o.peer == BASELINE), None)
    return [
        o._replace(ratio=o.tasks_per_second / base) if base and o.tasks_per_second else o
        for o in outcomes
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """Formats outcomes in columns, one per row; a failed one has a reason.

    Args:
      outcomes: Outcomes of any cases.

    Returns:
      Lines of a table.
    """
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
    """Aligns cells in columns: the first two to the left, the others to the right, and the last as it is.

    Args:
      rows: Rows of equally many cells.

    Returns:
      Lines joined by line breaks.
    """
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
    """Formats a scaled number.

    Args:
      value: Number; None for an unknown one.
      spec: Format specification, such as ",.1f".
      scale: Factor.

    Returns:
      The text; a dash for None.
    """
    return "-" if value is None else f"{scale * value:{spec}}"


def environment(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Describes the versions and the machine that outcomes depend on.

    Args:
      outcomes: Outcomes, for the names of devices.

    Returns:
      Mappings `versions` and `machine`.
    """
    versions = {"python": platform.python_version()}
    for name in ("metajax", "jax", "jaxlib", "torch", "higher"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpus = sorted({o.device for o in outcomes} - {None, "cpu"})
    machine = {"cpu": _cpu_model(), "cores": cores(), "gpu": ", ".join(gpus) or None}
    return {"versions": versions, "machine": machine}


def _cpu_model() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
