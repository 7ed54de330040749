"""Films of policies: how arms and robots move before and after they adapt, as animated GIFs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import TRAIN, WRONG, figure_of
from .policies import TASKS_SHOWN

# Frames of a film at most, milliseconds and colors of one.
_FRAMES, _FRAME_TIME, _COLORS = 50, 80, 64
# Bodies that travel over more than this many times their own size are followed.
_FOLLOWED = 3.0


def film(
    path: Path,
    *,
    bodies: Sequence[np.ndarray],
    alive: Sequence[np.ndarray],
    goals: Sequence[np.ndarray] | None,
    names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
) -> Path:
    """Films the first episode of each task, one row of panels per number of adaptations, one column per task.

    Panels share one scale. Where bodies travel far, each view follows its own along the marks of the axes.

    Args:
      path: File to write, GIF; it is replaced as a whole.
      bodies: Points [tasks, N, H, P, 2] for each row, with NaN between lines; the last is the middle of the
        view where it follows.
      alive: Steps that were taken, bool [tasks, N, H], for each row; after an end the last posture stays.
      goals: Goals [2] to mark, one per task; None marks nothing.
      names: Names of the rows.
      title: Title of the film.
      captions: Titles of the columns, one per task.

    Returns:
      The path.
    """
    columns = min(TASKS_SHOWN, len(bodies[0]))
    moves = np.stack(
        [
            [_postures(moved[task, 0], taken[task, 0]) for task in range(columns)]
            for moved, taken in zip(bodies, alive, strict=True)
        ]
    )
    places = np.zeros((0, 2)) if goals is None else np.stack(goals)[:columns]
    middles, half = _views(moves, places)
    figure, axes = figure_of(len(moves), columns, width=2.2, height=2.1)
    lines = [axis.plot([], [], color=TRAIN, linewidth=1.8)[0] for axis in axes.flat]
    for axis, (row, column) in zip(axes.flat, np.ndindex(axes.shape), strict=True):
        if goals is not None:
            axis.plot(*places[column], marker="*", markersize=10, color=WRONG)
        axis.set_aspect("equal")
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        if column == 0:
            axis.set_ylabel(names[row])
        if row == 0 and captions is not None:
            axis.set_title(captions[column], fontsize=9)
    figure.suptitle(title)
    steps = moves.shape[2]

    def show(time: int) -> None:
        for axis, line, place in zip(axes.flat, lines, np.ndindex(axes.shape), strict=True):
            line.set_data(*moves[place][time].T)
            (x, y) = middles[place][time]
            axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half))

    times = np.linspace(0, steps - 1, min(steps, _FRAMES)).round().astype(int)
    return _save(path, figure, show, times)


def _postures(points: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Repeats the last posture [P, 2] of points [H, P, 2] after the last step that was taken."""
    return points[np.maximum.accumulate(np.where(taken, np.arange(len(taken)), 0))]


def _views(moves: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, float]:
    """Chooses what panels show of bodies [rows, columns, H, P, 2] and of places [G, 2].

    Returns:
      The middle of each panel's view at each time, [rows, columns, H, 2], and half the width of all views.
    """
    sizes = np.nanmax(moves, axis=3) - np.nanmin(moves, axis=3)
    every = np.concatenate([moves.reshape(-1, 2), places])
    low, high = np.nanmin(every, axis=0), np.nanmax(every, axis=0)
    size, extent = max(float(sizes.max()), 1e-6), float((high - low).max())
    if extent > _FOLLOWED * size:
        return moves[..., -1, :], size
    return np.broadcast_to((low + high) / 2, (*moves.shape[:3], 2)), 0.55 * max(extent, size)


def _save(path: Path, figure: Any, show: Any, times: np.ndarray) -> Path:
    """Writes a figure as an animated GIF atomically, as `show` changes it from time to time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, frames = FigureCanvasAgg(figure), []
    for time in times.tolist():
        show(time)
        canvas.draw()
        # Found once: panels that jump from frame to frame would look like movement.
        figure.set_layout_engine("none")
        frame = Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB")
        frames.append(frame.quantize(_COLORS, dither=Image.Dither.NONE))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        frames[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=_FRAME_TIME,
            loop=0,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
