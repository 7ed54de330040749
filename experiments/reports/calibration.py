"""How often targets lie within the intervals of the normal distributions predicted for them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reports import pictures
from metajax.types import Array

NOMINAL = np.linspace(0.05, 0.95, 19)


def coverage(errors: Array, nominal: Array = NOMINAL) -> Array:
    """How much of a task's errors lies in the central interval of each probability.

    Args:
      errors: of any shape, in standard deviations.
      nominal: [P] probabilities.

    Returns:
      [P] shares, equal to `nominal` where the errors are of a standard normal distribution.
    """
    # Of a normal distribution, half of what is outside lies above.
    within = jax.scipy.stats.norm.ppf((1 + nominal) / 2)
    return jnp.mean(jnp.abs(errors.reshape(-1, 1)) <= within, axis=0)


def measure_calibration(workdir: Path, covered: np.ndarray, *, title: str) -> dict[str, float]:
    """Draws calibration.png, and measures how far shares are from their probabilities.

    Args:
      workdir: of the picture.
      covered: [T, P] the `coverage` of tasks with as many targets each, at `NOMINAL`.
      title: stands above.

    Returns:
      Fields of result.json: the mean distance of share and probability, and the share of the 90% interval.
    """
    shares = covered.mean(axis=0)
    pictures.calibration_picture(
        workdir / "calibration.png", nominal=NOMINAL, covered=shares, title=title
    )
    return {
        "calibration_error": float(np.abs(shares - NOMINAL).mean()),
        "covered_by_90_percent": float(shares[-2]),
    }
