"""What a search leaves: a table, trials.csv, search.png and best.flags."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.names import shown

from ..flags.settings import LONGEST_LINE, PACKAGE
from ..reports import report
from ..reports.pictures import TRAIN, VALID, WRONG, figure_of, save_figure
from ..runtime.files import write_rows, write_text
from .rows import Finished, Row
from .space import Choice, Space
from .trials import in_words, shown_score

SHOWN_TRIALS = 10
_COLUMNS = 4  # of the picture


def trials_table(rows: Sequence[Row], score: str, *, space: Space) -> str:
    """Formats the best trials.

    Args:
      rows: Rows, the best first.
      score: Name of the score.
      space: Options that trials try.

    Returns:
      Lines joined by line breaks.
    """
    head = ["trial", f"valid {score}", "to the best", "steps", "tasks/s", *space]
    lines = [head]
    complete = [row for row in rows if row.state == "complete"]
    for row in [*complete, *(row for row in rows if row.state == "pruned")][:SHOWN_TRIALS]:
        steps = f"{row.steps:,}" if row.steps else "-"
        speed = f"{row.tasks_per_second:,.0f}" if row.tasks_per_second else "-"
        lines.append(
            [
                str(row.number),
                _with_width(score, row.score, row.width),
                "best"
                if row is rows[0]
                else _with_width(score, row.difference, row.difference_width, "+"),
                steps + (" pruned" if row.state == "pruned" else ""),
                speed,
                *(shown(row.chosen.get(name, "-"), 30) for name in space),
            ]
        )
    return _aligned(lines)


def finals_table(found: Sequence[Finished], score: str) -> str:
    """Formats the last runs.

    Args:
      found: Means over seeds, the best first.
      score: Name of the score.

    Returns:
      Lines joined by line breaks.
    """
    lines = [["trial", "seeds", f"valid {score}", f"test {score}", "to the first"]]
    for each in found:
        lines.append(
            [
                str(each.number),
                str(each.seeds),
                shown_score(score, each.valid),
                _with_width(score, each.test, each.width),
                "first"
                if each is found[0]
                else _with_width(score, each.difference, each.difference_width, "+"),
            ]
        )
    return _aligned(lines)


def write_trials(path: Path, rows: Sequence[Row], score: str, *, space: Space) -> None:
    """Writes all trials as CSV.

    Args:
      path: File to write.
      rows: Rows.
      score: Name of the score.
      space: Options that trials try.

    Raises:
      WriteError: If the disk does not accept it.
    """
    write_rows(
        path,
        [
            {
                "trial": row.number,
                "state": row.state,
                f"valid_{score}": row.score,
                "ci95": row.width,
                "difference": row.difference,
                "difference_ci95": row.difference_width,
                "steps": row.steps,
                "tasks_per_second": row.tasks_per_second,
                "seconds": row.seconds,
                **{name: row.chosen.get(name) for name in space},
                "reason": row.reason,
            }
            for row in sorted(rows)
        ],
    )


def draw_search(
    path: Path,
    rows: Sequence[Row],
    score: str,
    *,
    space: Space,
    importances: Mapping[str, float],
    higher_is_better: bool,
) -> Path:
    """Draws the history of the search, the importance of options, and the score over each of them.

    Args:
      path: File to write.
      rows: Rows.
      score: Name of the score.
      space: Options that trials try.
      importances: Importances by option, which add up to 1; may be empty.
      higher_is_better: Whether the largest score is the best.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    panels = 2 + len(space)
    columns = min(panels, _COLUMNS)
    figure, axes = figure_of(math.ceil(panels / columns), columns, width=3.6, height=3.0)
    flat = list(axes.flat)
    for axis in flat[panels:]:
        axis.set_axis_off()
    scored = [row for row in sorted(rows) if row.score is not None and math.isfinite(row.score)]
    _scatter(flat[0], scored, [row.number for row in scored])
    ended = [row for row in scored if row.state == "complete"]
    if ended:
        running = np.maximum if higher_is_better else np.minimum
        best = running.accumulate([row.score for row in ended])
        flat[0].step([row.number for row in ended], best, where="post", color=TRAIN)
    flat[0].set(xlabel="trial", ylabel=f"validation {score.replace('_', ' ')}", title="history")
    _bars(flat[1], importances)
    for axis, (name, values) in zip(flat[2:], space.items(), strict=False):
        with_it = [row for row in scored if name in row.chosen]
        places = [row.chosen[name] for row in with_it]
        if isinstance(values, Choice):
            known = [str(value) for value in values.values]
            axis.set_xticks(range(len(known)), known, rotation=30)
            places = [known.index(str(place)) for place in places]
        else:
            axis.set_xscale("log" if values.log else "linear")
            axis.set_xlim(values.low / 1.1 if values.log else values.low, values.high)
        _scatter(axis, with_it, places)
        axis.set(xlabel=name)
    return save_figure(figure, path)


def best_flags(
    path: Path,
    driver: str,
    flags: Sequence[str],
    *,
    head: Sequence[str],
    result: Mapping[str, Any],
    score: str,
    prefix: str = "",
) -> None:
    """Writes the flags of the best run, with a head like a recipe's.

    Args:
      path: File to write.
      driver: Name of the driver.
      flags: Flags of the run.
      head: First lines, without comment signs: the name, and what was searched.
      result: Fields of result.json, or of validation.json of a run without a test.
      score: Name of the score.
      prefix: Words before the command, such as those that pin it to a core.

    Raises:
      WriteError: If the disk does not accept it.
    """
    shown_rows = dict(report.result_rows(result))
    tested = f"test_{score}" in result
    name = ("test " if tested else "best valid ") + score.replace("_", " ")
    number = shown_rows.get(name) or next(
        text for row, text in shown_rows.items() if row.lower() == name.lower()
    )
    episodes = result.get("episodes") if tested else result.get("valid_episodes")
    versions = result.get("versions", {})
    kind = "test" if tested else "validation"
    measured = number.replace("%", "")
    lines = [
        f"# {head[0]}",
        "#",
        f"#   {prefix}python -m {PACKAGE}.{driver} --flagfile={shlex.quote(str(path))}"
        + ("" if tested else " --skip_test"),
        "#",
        *(f"# {line}" for line in head[1:]),
        f"# Measured: {measured} ({score} of {episodes} {kind} episodes, seed {result.get('seed')}),",
        f"#   on {versions.get('device', 'an unknown device')}, jax {versions.get('jax', '?')}.",
        *(flag.replace("\n", " ") for flag in flags),
    ]
    write_text(path, "\n".join(lines) + "\n")


def search_in_words(space: Space) -> str:
    """Formats the space of a search as `--search` reads it."""
    parts = []
    for name, values in space.items():
        if isinstance(values, Choice):
            parts.append(f"{name}={'|'.join(map(_plain, values.values))}")
        else:
            log = "log:" if values.log else ""
            parts.append(f"{name}={log}{values.low:g}..{values.high:g}")
    return shown("; ".join(parts), LONGEST_LINE)


def counts(rows: Sequence[Row]) -> str:
    """Counts trials by state, such as "12 complete, 3 pruned"."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(sorted(states)))


def failures(rows: Sequence[Row]) -> list[str]:
    """Lists a line of each failed trial."""
    return [
        f"trial {row.number} ({in_words(row.chosen)}) failed: {shown(row.reason, 400)}"
        for row in rows
        if row.state == "failed"
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_width(score: str, value: float | None, width: float | None, sign: str = "") -> str:
    words = shown_score(score, value, sign=sign)
    if value is None or width is None or not math.isfinite(width):
        return words
    return f"{words} +- {shown_score(score, width).rstrip('%')}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _scatter(axis: Any, rows: Sequence[Row], places: Sequence[Any]) -> None:
    for state, color, marker in (("complete", VALID, "o"), ("pruned", WRONG, "x")):
        points = [
            (place, row.score)
            for place, row in zip(places, rows, strict=True)
            if row.state == state
        ]
        if points:
            axis.scatter(*zip(*points, strict=True), color=color, marker=marker, s=18, label=state)
    axis.grid(alpha=0.3)


def _bars(axis: Any, importances: Mapping[str, float]) -> None:
    axis.set(title="importance")
    if not importances:
        axis.text(0.5, 0.5, "too few trials", ha="center", transform=axis.transAxes)
        return
    names = [*importances][::-1]
    axis.barh(names, [importances[name] for name in names], color=TRAIN)
