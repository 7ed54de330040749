"""Pictures of a run: curves of its metrics, test tasks and predictions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..runtime.metrics import read_metrics

# Blue and orange, green and red that remain distinct for color-blind readers and in print.
TRAIN, VALID, RIGHT, WRONG = "#1f6fb4", "#e07b00", "#008a4e", "#d01c2a"
UNSEEN = (0.12, 0.25, 0.69)  # color of pixels outside the context
QUERIES_SHOWN = 10
TASKS_SHOWN = 6


def curves(workdir: Path, *, metric: str, title: str) -> Path:
    """Draws the loss and a metric of both splits over the steps of metrics.csv.

    Args:
      workdir: Work directory; curves.png is written into it.
      metric: Name of the metric.
      title: Title of the picture.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    rows = read_metrics(workdir)
    names = list(dict.fromkeys(["loss", metric]))
    figure, axes = figure_of(1, len(names), width=5.2, height=3.6)
    for axis, name in zip(axes[0], names, strict=True):
        for split, color in (("train", TRAIN), ("valid", VALID)):
            points = [(r["step"], r[name]) for r in rows if r["split"] == split and name in r]
            if points:
                marker = "o" if split == "valid" or len(points) < 20 else ""
                style = dict(color=color, marker=marker, markersize=3.5, linewidth=1.3)
                axis.plot(*zip(*points, strict=True), label=split, **style)
        values = [r[name] for r in rows if np.isfinite(r.get(name, np.nan))]
        # On a linear axis a loss that falls by orders of magnitude would be a flat line.
        if values and min(values) > 0 and max(values) > 50 * min(values):
            axis.set_yscale("log")
        axis.set(xlabel="meta-step", ylabel=name.replace("_", " "))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.suptitle(title)
    return save_figure(figure, Path(workdir) / "curves.png")


def episodes_picture(
    path: Path,
    *,
    support_images: np.ndarray,
    support_labels: np.ndarray,
    query_images: np.ndarray,
    query_labels: np.ndarray,
    predictions: np.ndarray,
    title: str,
) -> Path:
    """Draws test tasks, one per row: support images by class, then queries with predictions.

    A correct prediction is green, a wrong one red with the true label. At most 6 tasks are shown, and 10
    queries of each: some of each class, and a mistake if there is one.

    Args:
      path: PNG file to write.
      support_images: Images [T, N K, H, W, C], uint8 in [0, 255] or float of any range; C is 1 or 3.
      support_labels: Labels [T, N K], int.
      query_images: Images [T, N Q, H, W, C] like the support images.
      query_labels: Labels [T, N Q], int.
      predictions: Predicted labels [T, N Q], int.
      title: Title of the picture.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    supports, queries = [], []
    for t in range(min(len(support_images), TASKS_SHOWN)):
        truths, answers = np.asarray(query_labels[t]), np.asarray(predictions[t])
        chosen = _choose_queries(truths, answers)
        images = _unit_images(support_images[t], np.asarray(query_images[t])[chosen])
        supports.append(_support_cells(images[0], np.asarray(support_labels[t])))
        # A single row of support images goes with a single row of queries, several rows with two.
        columns = QUERIES_SHOWN if max(cell.y for cell in supports[t]) == 0 else QUERIES_SHOWN // 2
        cells = _query_cells(images[1], truths[chosen], answers[chosen], columns=columns)
        queries.append(cells)
    return save_figure(_draw_tasks(supports, queries, title), Path(path))


def fits_picture(
    path: Path,
    *,
    grid: np.ndarray,
    truth: np.ndarray,
    fits: np.ndarray,
    support_x: np.ndarray,
    support_y: np.ndarray,
    title: str,
    deviations: np.ndarray | None = None,
) -> Path:
    """Draws regression tasks: the true function, the support points, and the fit after each inner step.

    Args:
      path: PNG file to write.
      grid: Inputs [T, G], or [G] shared by all tasks.
      truth: Values [T, G] of the true function.
      fits: Predictions [T, S+1, G] before adaptation and after each of S steps; if S is 0, after adaptation.
      support_x: Support inputs [T, K] or [T, K, 1]; at most 6 tasks are shown.
      support_y: Support targets, shaped like `support_x`.
      title: Title of the picture.
      deviations: Standard deviations [T, G] of the last predictions, of which two are shaded on either side;
        None for point predictions.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    import matplotlib

    tasks, steps = min(len(truth), TASKS_SHOWN), np.shape(fits)[1] - 1
    columns = 2 if tasks == 4 else min(tasks, 3)
    grids = np.broadcast_to(grid, np.shape(truth))
    figure, axes = figure_of(-(-tasks // columns), columns, width=4.2, height=3.2)
    # From light to dark, without the map's palest end.
    colors = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1.0, steps + 1))
    for t, axis in enumerate(axes.flat):
        if t >= tasks:
            axis.set_axis_off()
            continue
        axis.plot(grids[t], truth[t], "--", color="0.35", linewidth=1.6, label="truth")
        for step in range(steps + 1):
            label = "fit" if steps == 0 else "before" if step == 0 else f"step {step}"
            axis.plot(grids[t], fits[t][step], color=colors[step], linewidth=1.4, label=label)
        if deviations is not None:
            last, width = fits[t][-1], 2 * deviations[t]
            axis.fill_between(grids[t], last - width, last + width, color=colors[-1], alpha=0.2)
        points = np.ravel(support_x[t]), np.ravel(support_y[t])
        axis.plot(*points, "o", color=WRONG, markersize=5, label="support", zorder=3)
        axis.set(xlabel="x", ylabel="y")
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # One legend for all panels, which names only some of many steps.
    shown = {"truth", "support", "before", "fit", *(f"step {s}" for s in _spread(1, steps))}
    kept = [(h, label) for h, label in zip(handles, labels, strict=True) if label in shown]
    figure.legend(*zip(*kept, strict=True), loc="outside right center")
    figure.suptitle(title)
    return save_figure(figure, Path(path))


def completions_picture(
    path: Path,
    *,
    truth: np.ndarray,
    seen: np.ndarray,
    mean: np.ndarray,
    deviations: np.ndarray,
    points: Sequence[int],
    title: str,
) -> Path:
    """Draws image completions: context pixels with the rest in blue, mean and deviation of each pixel.

    Two images stand side by side, at most 6 in all; a column is a number of context points, and the last
    column is the true image. Deviations of several channels are averaged.

    Args:
      path: PNG file to write.
      truth: Images [T, H, W, C] in [0, 1]; C is 1 or 3.
      seen: Masks [P, T, H, W] of the context's pixels, bool.
      mean: Predicted means [P, T, H, W, C].
      deviations: Predicted standard deviations [P, T, H, W, C], positive.
      points: Numbers of context points, P of them.
      title: Title of the picture.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    import matplotlib

    tasks, across = min(len(truth), TASKS_SHOWN), min(len(truth), 2)
    spread = deviations[:, :tasks].mean(axis=-1)
    low, high = float(spread.min()), float(spread.max())
    # Small deviations are dark.
    shades = matplotlib.colormaps["inferno"]((spread - low) / max(high - low, 1e-6))[..., :3]
    cells = []
    for t in range(tasks):
        left, top = t % across * (1.08 * len(points) + 1.9), t // across * 3.7
        colors = np.broadcast_to(truth[t], (*truth.shape[1:3], 3))
        rows = np.where(seen[:, t, ..., None], colors, UNSEEN), mean[:, t].clip(0, 1), shades[:, t]
        for column, count in enumerate(points):
            for row, images in enumerate(rows):
                caption = "" if row else f"{count}"
                place = left + 1.08 * column, top + 1.08 * row
                cells.append(_Cell(*place, images[column], caption, "0.6"))
        cells.append(_Cell(left + 1.08 * len(points) + 0.2, top, truth[t], "truth", "0.6"))
    figure, axis = _canvas(cells, scale=0.8, margin=1.5)
    for row, label in enumerate(("context", "mean", f"deviation\n{low:.2f} to {high:.2f}")):
        for top in range(-(-tasks // across)):
            axis.text(
                -0.12, 3.7 * top + 1.08 * row + 0.5, label, fontsize=9, ha="right", va="center"
            )
    figure.suptitle(title)
    return save_figure(figure, Path(path))


def calibration_picture(
    path: Path, *, nominal: np.ndarray, covered: np.ndarray, title: str
) -> Path:
    """Draws the coverage of central intervals against their probabilities.

    Args:
      path: PNG file to write.
      nominal: Probabilities [P] of the intervals.
      covered: Shares [P] of targets within them.
      title: Title of the picture.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    figure, axes = figure_of(1, 1, width=4.2, height=4.0)
    axis = axes[0, 0]
    axis.plot([0, 1], [0, 1], "--", color="0.35", linewidth=1.6, label="calibrated")
    axis.plot(nominal, covered, color=RIGHT, linewidth=1.6, marker="o", markersize=3, label="test")
    axis.set(xlabel="probability of the interval", ylabel="targets within it", aspect="equal")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title)
    return save_figure(figure, Path(path))


def figure_of(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, np.ndarray]:
    """Makes a figure of panels, without a display.

    Args:
      rows: Number of rows of panels.
      columns: Number of columns of panels.
      width: Width of a panel in inches.
      height: Height of a panel in inches.

    Returns:
      The figure and its axes [rows, columns].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG atomically.

    Args:
      figure: Figure.
      path: File to write.

    Returns:
      The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        FigureCanvasAgg(figure).print_figure(partial, format="png", dpi=120)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _spread(first: int, last: int, count: int = 10) -> list[int]:
    """Lists at most `count` integers from first to last, evenly spaced, with both ends."""
    return sorted({round(float(i)) for i in np.linspace(first, last, count)})


def _choose_queries(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Picks at most 10 queries [B] of all classes, with a mistake if there is one."""
    ranks = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    # One of each class, then a second of each, and so on.
    order = np.lexsort((labels, ranks))
    classes = len(np.unique(labels))
    if classes > QUERIES_SHOWN:
        order = order[:classes][_spread(0, classes - 1)]
    chosen = order[:QUERIES_SHOWN]
    mistakes = np.flatnonzero(labels != predictions)
    if mistakes.size and not np.isin(chosen, mistakes).any():
        chosen = np.append(chosen[:-1], mistakes[0])
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _unit_images(*batches: np.ndarray) -> list[np.ndarray]:
    """Scales the images [B, H, W, C] of one task to floats in [0, 1], all by the same factor."""
    batches = [np.asarray(images) for images in batches]
    if all(images.dtype == np.uint8 for images in batches):
        return [images / 255.0 for images in batches]
    low = min(0.0, *(float(images.min()) for images in batches))
    high = max(low + 1e-6, *(float(images.max()) for images in batches))
    high = max(high, 1.0) if low == 0.0 else high
    return [(images.astype(float) - low) / (high - low) for images in batches]


class _Cell(NamedTuple):
    """A framed image on a canvas, whose unit of length is an image.

    Attributes:
      x: Distance of its left edge from the left.
      y: Distance of its upper edge from the top.
      image: Pixels [H, W, C] in [0, 1].
      caption: Text above it.
      color: Color of the frame.
    """

    x: float
    y: float
    image: np.ndarray
    caption: str
    color: str


def _support_cells(images: np.ndarray, labels: np.ndarray) -> list[_Cell]:
    """Arranges a task's support images, one column per class; at most 10 columns side by side."""
    classes, counts = np.unique(labels, return_counts=True)
    # Two rows of classes would be too tall with more than two images of each.
    shown = min(int(counts.max()), 5 if len(classes) <= 10 else 2)
    cells = []
    for i, label in enumerate(classes):
        top = (i // 10) * (shown * 1.06 + 0.4)
        for k, index in enumerate(np.flatnonzero(labels == label)[:shown]):
            caption = "" if k else str(label)
            cells.append(_Cell(i % 10 * 1.12, top + k * 1.06, images[index], caption, "0.6"))
    return cells


def _query_cells(
    images: np.ndarray, labels: np.ndarray, answers: np.ndarray, *, columns: int
) -> list[_Cell]:
    """Arranges a task's queries row by row, with the predictions as captions."""
    cells = []
    for i, (image, label, answer) in enumerate(zip(images, labels, answers, strict=True)):
        caption, color = (
            (f"{answer}", RIGHT) if answer == label else (f"{answer}, not {label}", WRONG)
        )
        cells.append(_Cell(i % columns * 1.12, i // columns * 1.46, image, caption, color))
    return cells


def _draw_tasks(supports: list[list[_Cell]], queries: list[list[_Cell]], title: str) -> Any:
    """Draws the support and query images of all tasks on one canvas."""
    right = [max(cell.x for cells in side for cell in cells) + 1 for side in (supports, queries)]
    left = right[0] + 0.9
    heights = [max(c.y for c in (*a, *b)) + 1 for a, b in zip(supports, queries, strict=True)]
    tops = np.cumsum([0.9, *(height + 0.75 for height in heights)])
    width, height = left + right[1] + 0.1, tops[-1] - 0.6
    figure, axes = figure_of(1, 1, width=max(5.0, 0.62 * width), height=0.62 * height + 0.4)
    axis = axes[0, 0]
    axis.text(0, 0.2, "support", fontsize=10, va="center")
    axis.text(left, 0.2, "queries and answers", fontsize=10, va="center")
    for top, *blocks in zip(tops[:-1], supports, queries, strict=True):
        for cells, start in zip(blocks, (0.0, left), strict=True):
            for cell in cells:
                _draw_cell(axis, cell._replace(x=start + cell.x, y=top + cell.y))
    axis.set(xlim=(-0.1, width), ylim=(height, 0), aspect="equal")
    axis.set_axis_off()
    figure.suptitle(title)
    return figure


def _canvas(cells: list[_Cell], *, scale: float, margin: float) -> tuple[Any, Any]:
    """Draws cells on one canvas of `scale` inches per image, with a margin on the left."""
    width, height = (max(getattr(cell, side) for cell in cells) + 1.1 for side in ("x", "y"))
    figure, axes = figure_of(
        1, 1, width=scale * (width + margin), height=scale * (height + 0.4) + 0.4
    )
    axis = axes[0, 0]
    for cell in cells:
        _draw_cell(axis, cell)
    axis.set(xlim=(-margin, width), ylim=(height, -0.4), aspect="equal")
    axis.set_axis_off()
    return figure, axis


def _draw_cell(axis: Any, cell: _Cell) -> None:
    """Draws an image with its frame and caption."""
    from matplotlib.patches import Rectangle

    x, y, image, caption, color = cell
    image = image[..., 0] if image.shape[-1] == 1 else image
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(x, x + 1, y + 1, y))
    answer = color in (RIGHT, WRONG)
    width = 3 if answer else 0.8
    axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=color, linewidth=width))
    style = dict(fontsize=8, ha="center", va="bottom", color=color if answer else "black")
    axis.text(x + 0.5, y - 0.07, caption, **style)
