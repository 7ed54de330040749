"""The reach of a metric: how the measurements of all tasks become the number that is reported."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.metrics.arrays import weights_of
from metajax.types import Array, Batch, Tree


class Summary(NamedTuple):
    """The number that is reported of a test set.

    Attributes:
      value: Float; NaN where it is not defined.
      ci95: Half-width of the 95% interval, a float; None where there is none to tell.
      left_out: Number of tasks without a value, left out of the mean, an int; None if none ever is.
    """

    value: float
    ci95: float | None = None
    left_out: int | None = None


def confidence_interval(scores: np.ndarray) -> tuple[float, float]:
    """Mean of scores [n] and the half-width of its 95% interval, 1.96 s / sqrt(n); NaN for one score."""
    scores = np.asarray(scores, np.float64)
    if len(scores) < 2:
        return float(np.mean(scores)), math.nan
    return float(np.mean(scores)), float(1.96 * np.std(scores, ddof=1) / math.sqrt(len(scores)))


def mean_over_tasks(values: np.ndarray) -> Summary:
    """Averages values [E] over tasks; a task without a value makes the mean NaN."""
    return Summary(*confidence_interval(values))


def mean_where_defined(values: np.ndarray) -> Summary:
    """Averages values [E] over the tasks that have one, and counts the others, whose value is NaN.

    Example:
      >>> mean_where_defined(np.array([0.5, np.nan, 1.0])).value
      0.75
    """
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    mean, ci95 = confidence_interval(defined) if defined.size else (math.nan, math.nan)
    return Summary(mean, ci95, values.size - defined.size)


def mean_over_repeats(repeats: int) -> Callable[[np.ndarray], Summary]:
    """Averages over the repeats of each assay, and then over assays, whose scatter gives the interval.

    Args:
      repeats: Number of tasks of each assay, an int; they follow one another.

    Returns:
      A `combine` for values [assays * repeats]. Tasks whose value is NaN are left out and counted.

    Example:
      >>> from metajax import metrics
      >>> metric = metrics.auroc()._replace(combine=mean_over_repeats(2))
      >>> metric.combine(np.array([0.5, 0.7, 0.8, np.nan])).value
      0.7
    """

    def combine(values: np.ndarray) -> Summary:
        values = np.asarray(values, np.float64)
        if len(values) % repeats:
            raise ValueError(
                f"{len(values)} tasks are no whole number of assays of {repeats} repeats; use a multiple."
            )
        of_assay = [mean_where_defined(own) for own in values.reshape(-1, repeats)]
        over_assays = mean_where_defined(np.array([own.value for own in of_assay]))
        return over_assays._replace(left_out=sum(own.left_out for own in of_assay))

    return combine


class Metric(NamedTuple):
    """A metric and its reach; callable, so that it stands wherever a function `(outputs, batch)` does.

    Attributes:
      of_task: (outputs [B, ...], batch) -> tree of arrays of fixed shapes: the measurement of one task, a
        pure function that works under `jit` and `vmap`.
      combine: tree of NumPy arrays [E, ...], the measurements of E tasks -> the number that is reported.

    Example:
      >>> largest = Metric(lambda outputs, batch: jnp.max(outputs), lambda values: Summary(values.max()))
      >>> largest(jnp.array([0.5, 2.0]), Batch(None, None)).item()
      2.0
    """

    of_task: Callable[[Tree, Batch], Tree]
    combine: Callable[[Tree], Summary] = mean_over_tasks

    def __call__(self, outputs: Tree, batch: Batch) -> Tree:
        """Measures one task."""
        return self.of_task(outputs, batch)


def as_metric(metric: Callable[[Tree, Batch], Tree]) -> Metric:
    """Gives a plain function its reach, the mean over tasks; a `Metric` has its own."""
    return metric if isinstance(metric, Metric) else Metric(metric)


def pooled(metric: Callable[[Tree, Batch], Tree]) -> Metric:
    """Measures the examples of all tasks together, as if they were of one task.

    Args:
      metric: A `Metric` or plain function; it may read outputs, targets and weights, but no inputs.

    Returns:
      A metric that keeps the outputs of every task until the end. It has no interval: examples of one task
      are not independent.

    Example:
      >>> from metajax import metrics
      >>> metric = pooled(metrics.rmse())
      >>> values = jax.vmap(metric)(jnp.array([[0.0], [0.0]]), Batch(None, jnp.array([[3.0], [1.0]])))
      >>> round(metric.combine(values).value, 4)  # sqrt((9 + 1) / 2), where rmse() has (3 + 1) / 2
      2.2361
    """
    metric = as_metric(metric)

    def of_task(outputs: Tree, batch: Batch) -> tuple[Tree, Batch]:
        weights = weights_of(batch, trees.count(outputs, "outputs"), trees.float_dtype(outputs))
        return outputs, Batch(None, batch.targets, weights)

    def combine(values: tuple[Tree, Batch]) -> Summary:
        def join(leaf: np.ndarray) -> Array:
            exact = np.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
            return jnp.asarray(np.reshape(leaf, (-1, *leaf.shape[2:])), exact)

        # Sums over a whole test set have more digits than float32.
        with jax.enable_x64(True):
            measured = metric.of_task(*jax.tree.map(join, values))
            whole = jax.tree.map(lambda leaf: np.asarray(leaf)[None], measured)
        return Summary(metric.combine(whole).value)

    return Metric(of_task, combine)
