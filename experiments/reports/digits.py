"""Handwritten digits and a table of results, shared by the examples on digits."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.metrics import confidence_interval
from metajax.types import Array, Batch

from ..runtime.files import write_json
from . import report

TEST_DIGITS = 500


def digits() -> Batch:
    """Loads the UCI handwritten digits of scikit-learn.

    Returns:
      A batch of inputs [1797, 64] in [0, 1], with labels.

    Raises:
      ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits are part of scikit-learn, which is not installed; "
            "pip install scikit-learn, or pip install 'metajax[examples]'."
        ) from error
    inputs, targets = load_digits(return_X_y=True)
    return Batch(jnp.asarray(inputs / 16, jnp.float32), jnp.asarray(targets, jnp.int32))


def take(batch: Batch, chosen: Array) -> Batch:
    """Selects examples of a batch.

    Args:
      batch: Batch of B examples.
      chosen: Indices of examples, int32.

    Returns:
      The batch of these examples, in the order of the indices.
    """
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def shown(scores: np.ndarray, unit: str = "%") -> str:
    """Formats the mean over runs with its 95% interval.

    Args:
      scores: Scores [R], one per run.
      unit: Unit to print; "%" prints shares as percentages, "" prints numbers.

    Returns:
      A text such as "93.1% +- 0.4".
    """
    mean, width = confidence_interval(scores)
    if unit == "%":
        return f"{100 * mean:.1f}% +- {100 * width:.1f}"
    return f"{mean:.3f} +- {width:.3f}"


def finish(settings: Any, rows: list[tuple[str, str]], result: Mapping[str, Any]) -> int:
    """Prints a table, and writes result.json into `--workdir` if there is one.

    Args:
      settings: Settings of the example, a dataclass with the field `workdir`.
      rows: Pairs of name and text for `report.table`.
      result: Fields of result.json; settings and versions are added.

    Returns:
      Exit status 0.
    """
    print(report.table(rows), flush=True)
    if settings.workdir:
        run_as = {"settings": dataclasses.asdict(settings), "versions": report.versions()}
        write_json(Path(settings.workdir).expanduser() / "result.json", {**result, **run_as})
    return 0
