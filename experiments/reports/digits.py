"""What the examples on handwritten digits share: the digits, and a table at the end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reports import report
from experiments.runtime.files import write_json
from metajax.metrics import confidence_interval
from metajax.types import Array, Batch

TEST_DIGITS = 500


def digits() -> Batch:
    """The UCI handwritten digits that come with scikit-learn: [1797, 64] in [0, 1], with labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed; "
            "pip install scikit-learn, or pip install 'metajax[examples]'."
        ) from error
    inputs, targets = load_digits(return_X_y=True)
    return Batch(jnp.asarray(inputs / 16, jnp.float32), jnp.asarray(targets, jnp.int32))


def take(batch: Batch, chosen: Array) -> Batch:
    """Takes the examples of these numbers."""
    return jax.tree.map(lambda leaf: leaf[chosen], batch)


def shown(scores: np.ndarray, unit: str = "%") -> str:
    """A mean over runs and its 95% interval."""
    mean, width = confidence_interval(scores)
    if unit == "%":
        return f"{100 * mean:.1f}% +- {100 * width:.1f}"
    return f"{mean:.3f} +- {width:.3f}"


def finish(settings: Any, rows: list[tuple[str, str]], result: Mapping[str, Any]) -> int:
    """Prints the table, and writes the result where `--workdir` says."""
    print(report.table(rows), flush=True)
    if settings.workdir:
        run_as = {"settings": dataclasses.asdict(settings), "versions": report.versions()}
        write_json(Path(settings.workdir).expanduser() / "result.json", {**result, **run_as})
    return 0
