"""Pictures of policies: returns after each adaptation, and paths on the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.pictures import TRAIN, VALID, WRONG, figure_of, save_figure

_COLORS = {"random": "0.55", "multitask": VALID, "oracle": "#008a4e"}
_TASKS_SHOWN, _EPISODES_SHOWN = 4, 5


def adaptation(path: Path, *, learner: str, scores: Mapping[str, Any], title: str) -> Path:
    """Draws the return after each adaptation, with 95% intervals, next to the yardsticks.

    Args:
      path: File to write, PNG.
      learner: Name of the learner.
      scores: Fields of result.json: `test_return_0` and so on, and the yardsticks'.
      title: Title of the picture.

    Returns:
      The path.
    """
    figure, axes = figure_of(1, 1, width=5.2, height=3.8)
    axis = axes[0, 0]
    for name, prefix, color in (
        (learner, "test", TRAIN),
        ("policy of all tasks, fine-tuned", "multitask", _COLORS["multitask"]),
    ):
        means, widths = _curve(scores, prefix)
        if means:
            axis.errorbar(
                range(len(means)), means, widths, label=name, color=color, marker="o", capsize=3
            )
    for name in ("random", "oracle"):
        if f"{name}_return" in scores:
            axis.axhline(scores[f"{name}_return"], color=_COLORS[name], linestyle="--", label=name)
    axis.set(xlabel="adaptations", ylabel="return")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title)
    return save_figure(figure, path)


def _curve(scores: Mapping[str, Any], prefix: str) -> tuple[list[float], list[float]]:
    """Collects the returns after 0, 1, 2, ... adaptations, and half the widths of their intervals."""
    means, widths = [], []
    while (value := scores.get(f"{prefix}_return_{len(means)}")) is not None:
        name = f"{prefix}_return_{len(means)}".removeprefix("test_")
        widths.append(scores.get(f"{name}_ci95") or 0.0)
        means.append(value)
    return means, widths


def paths(
    path: Path,
    *,
    places: Sequence[np.ndarray],
    alive: Sequence[np.ndarray],
    goals: np.ndarray | None,
    names: Sequence[str],
    title: str,
) -> Path:
    """Draws paths on the plane, one row of panels per number of adaptations, one column per task.

    Args:
      path: File to write, PNG.
      places: Positions [tasks, N, H, 2] for each row.
      alive: Steps that were taken, bool [tasks, N, H], for each row.
      goals: Goals [tasks, 2] to mark; None without.
      names: Names of the rows.
      title: Title of the picture.

    Returns:
      The path.
    """
    columns = min(_TASKS_SHOWN, len(places[0]))
    figure, axes = figure_of(len(places), columns, width=2.4, height=2.5)
    for row, (walked, taken, name) in enumerate(zip(places, alive, names, strict=True)):
        for column in range(columns):
            axis = axes[row, column]
            for episode in range(min(_EPISODES_SHOWN, walked.shape[1])):
                line = walked[column, episode][taken[column, episode]]
                axis.plot(line[:, 0], line[:, 1], color=TRAIN, linewidth=0.9, alpha=0.8)
            if goals is not None:
                axis.plot(*goals[column], marker="*", markersize=12, color=WRONG, zorder=3)
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(name)
    figure.suptitle(title)
    return save_figure(figure, path)
