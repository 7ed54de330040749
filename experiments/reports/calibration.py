"""Calibration of predictions: coverage of intervals, and reliability of probabilities."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Array

from . import pictures

NOMINAL = np.linspace(0.05, 0.95, 19)


def coverage(errors: Array, nominal: Array = NOMINAL) -> Array:
    """Computes the share of a task's errors within the central interval of each probability.

    Args:
      errors: Errors in predicted standard deviations, of any shape.
      nominal: Probabilities [P] of the intervals.

    Returns:
      Shares [P], equal to `nominal` in expectation if the errors are standard normal.
    """
    # A central interval of probability p ends at the quantile (1 + p) / 2: half of the rest lies above it.
    within = jax.scipy.stats.norm.ppf((1 + nominal) / 2)
    return jnp.mean(jnp.abs(errors.reshape(-1, 1)) <= within, axis=0)


def measure_calibration(workdir: Path, covered: np.ndarray, *, title: str) -> dict[str, float]:
    """Draws calibration.png, and measures how far the coverage is from the intervals' probabilities.

    Args:
      workdir: Folder of the picture.
      covered: Coverage [T, P] of tasks with equally many targets, at `NOMINAL`.
      title: Title of the picture.

    Returns:
      Fields of result.json: the mean absolute difference of share and probability, and the share in the 90%
      interval.
    """
    shares = covered.mean(axis=0)
    pictures.calibration_picture(
        workdir / "calibration.png", nominal=NOMINAL, covered=shares, title=title
    )
    return {
        "calibration_error": float(np.abs(shares - NOMINAL).mean()),
        "covered_by_90_percent": float(shares[-2]),
    }


def draw_reliability(
    path: Path, bins: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> Path:
    """Draws the share of right answers against their probability, and how many answers have it.

    Args:
      path: PNG file to write.
      bins: Bins `before` and `after` the temperature, as `metajax.deploy.reliability` returns them.
      title: Title of the picture.

    Returns:
      Path of the picture.

    Raises:
      OSError: If it cannot be written.
    """
    figure, axes = pictures.figure_of(1, 2, width=4.2, height=4.0)
    shares, counts = axes[0]
    shares.plot([0, 1], [0, 1], "--", color="0.35", linewidth=1.6, label="calibrated")
    for name, color in (("before", pictures.WRONG), ("after", pictures.RIGHT)):
        found, style = (
            bins[name],
            {"color": color, "linewidth": 1.6, "marker": "o", "markersize": 3},
        )
        shares.plot(found["confidence"], found["accuracy"], label=f"{name} temperature", **style)
        counts.plot(found["confidence"], found["examples"], **style)
    shares.set(xlabel="probability of the answer", ylabel="share that is right", aspect="equal")
    counts.set(xlabel="probability of the answer", ylabel="queries", yscale="log", xlim=(0, 1))
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    shares.legend()
    figure.suptitle(title)
    return pictures.save_figure(figure, path)
