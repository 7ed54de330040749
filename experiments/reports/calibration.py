"""Calibration of predicted normal distributions: the coverage of their central intervals."""

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
