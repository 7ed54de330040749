"""Pictures of policies: returns after each adaptation, and paths on the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.pictures import TRAIN, VALID, WRONG, figure_of, save_figure

_COLORS = {"random": "0.55", "multitask": VALID, "oracle": "#008a4e"}
_TASKS_SHOWN, _EPISODES_SHOWN, _POSTURES_SHOWN = 4, 5, 6


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
    bodies: Sequence[np.ndarray],
    alive: Sequence[np.ndarray],
    goals: np.ndarray,
    names: Sequence[str],
    title: str,
) -> Path:
    """Draws paths on the plane, one row of panels per number of adaptations, one column per task.

    A body of several points, such as an arm, is also drawn itself, at some moments of the first episode.

    Args:
      path: File to write, PNG.
      bodies: Points [tasks, N, H, P, 2] for each row; the path is that of the last point.
      alive: Steps that were taken, bool [tasks, N, H], for each row.
      goals: Goals [tasks, 2] to mark.
      names: Names of the rows.
      title: Title of the picture.

    Returns:
      The path.
    """
    columns = min(_TASKS_SHOWN, len(goals))
    figure, axes = figure_of(len(bodies), columns, width=2.4, height=2.5)
    for row, (moved, taken, name) in enumerate(zip(bodies, alive, names, strict=True)):
        walked = moved[..., -1, :]
        for column in range(columns):
            axis = axes[row, column]
            for episode in range(min(_EPISODES_SHOWN, walked.shape[1])):
                line = walked[column, episode][taken[column, episode]]
                axis.plot(line[:, 0], line[:, 1], color=TRAIN, linewidth=0.9, alpha=0.8)
            postures = moved[column, 0][taken[column, 0]]
            if postures.shape[1] > 1:
                chosen = np.unique(np.linspace(0, len(postures) - 1, _POSTURES_SHOWN).round())
                for time, index in enumerate(chosen.astype(int), 1):
                    style = dict(color="0.2", linewidth=1.6, alpha=time / len(chosen))
                    axis.plot(postures[index, :, 0], postures[index, :, 1], **style)
            axis.plot(*goals[column], marker="*", markersize=12, color=WRONG, zorder=3)
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(name)
    figure.suptitle(title)
    return save_figure(figure, path)
