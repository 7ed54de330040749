"""Metrics with a combination over tasks, and the ways to combine."""

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
    """The reported result of a metric on a test set.

    Attributes:
      value: Float; NaN if it is undefined.
      ci95: Half-width of the 95% confidence interval, a float; None for metrics without an interval.
      left_out: Number of tasks without a value, which are left out of the mean, an int; None for metrics that
        never leave out a task.

    Example:
      >>> metajax.metrics.Summary(0.5, ci95=0.1)
      Summary(value=0.5, ci95=0.1, left_out=None)
    """

    value: float
    ci95: float | None = None
    left_out: int | None = None


def confidence_interval(scores: np.ndarray) -> tuple[float, float]:
    """Computes the mean of scores and the half-width of its 95% interval, 1.96 s / sqrt(T).

    Args:
      scores: Numbers [T], one per independent task; at least one.

    Returns:
      Mean and half-width, floats; the half-width of a single score is NaN.

    Example:
      >>> mean, half_width = confidence_interval(np.array([0.0, 1.0, 1.0, 0.0]))
      >>> mean, round(half_width, 3)
      (0.5, 0.566)
    """
    scores = np.asarray(scores, np.float64)
    if len(scores) < 2:
        return float(np.mean(scores)), math.nan
    return float(np.mean(scores)), float(1.96 * np.std(scores, ddof=1) / math.sqrt(len(scores)))


def mean_over_tasks(values: np.ndarray) -> Summary:
    """Averages values over tasks; a NaN makes the mean NaN.

    Args:
      values: Numbers [T].

    Returns:
      Summary with the 95% interval.

    Example:
      >>> mean_over_tasks(np.array([0.5, 1.0])).value
      0.75
    """
    return Summary(*confidence_interval(values))


def mean_where_defined(values: np.ndarray) -> Summary:
    """Averages values over the tasks on which they are defined, and counts the others.

    Args:
      values: Numbers [T]; NaN marks a task without a value.

    Returns:
      Summary with the 95% interval and the number of tasks left out.

    Example:
      >>> mean_where_defined(np.array([0.5, np.nan, 1.0])).value
      0.75
    """
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    mean, ci95 = confidence_interval(defined) if defined.size else (math.nan, math.nan)
    return Summary(mean, ci95, values.size - defined.size)


def mean_over_repeats(repeats: int) -> Callable[[np.ndarray], Summary]:
    """Averages over the repeats of each assay and then over assays, whose spread gives the interval.

    Args:
      repeats: Number of consecutive tasks per assay, an int.

    Returns:
      A `combine` function of values [assays * repeats]; tasks with the value NaN are left out and counted.

    Raises:
      ValueError: When combining, if the number of tasks is not a multiple of `repeats`.

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
                f"{len(values)} tasks do not divide into assays of {repeats} repeats; use a multiple of "
                f"{repeats}."
            )
        of_assay = [mean_where_defined(own) for own in values.reshape(-1, repeats)]
        over_assays = mean_where_defined(np.array([own.value for own in of_assay]))
        return over_assays._replace(left_out=sum(own.left_out or 0 for own in of_assay))

    return combine


class Metric(NamedTuple):
    """A measurement of one task and a combination over tasks; callable like a function `(outputs, batch)`.

    Attributes:
      of_task: Pure function `(outputs [B, ...], batch) -> tree of arrays`, the measurement of one task; it
        works under `jit` and `vmap`.
      combine: Function from the measurements of all tasks, a tree of NumPy arrays [T, ...], to a `Summary`.

    Example:
      >>> largest = metajax.Metric(lambda outputs, batch: jnp.max(outputs))
      >>> largest(jnp.array([0.5, 2.0]), metajax.Batch(None, None)).item()
      2.0
      >>> largest.combine(np.array([2.0, 3.0])).value
      2.5
    """

    of_task: Callable[[Tree, Batch], Tree]
    combine: Callable[[Tree], Summary] = mean_over_tasks

    def __call__(self, outputs: Tree, batch: Batch) -> Tree:
        """Measures one task."""
        return self.of_task(outputs, batch)


def as_metric(metric: Callable[[Tree, Batch], Tree]) -> Metric:
    """Wraps a plain function as a `Metric` that is averaged over tasks.

    Args:
      metric: Function `(outputs, batch) -> scalar`, or a `Metric`.

    Returns:
      A `Metric`; unchanged if it was one.

    Example:
      >>> as_metric(metajax.accuracy).combine(np.array([0.5, 1.0])).value
      0.75
    """
    return metric if isinstance(metric, Metric) else Metric(metric)


def pooled(metric: Callable[[Tree, Batch], Tree]) -> Metric:
    """Measures the examples of all tasks together, as if they belonged to one task.

    Args:
      metric: A `Metric` or plain function; it may read outputs, targets and weights, but not inputs.

    Returns:
      A metric that keeps the outputs of every task until the end. It has no interval: examples of one task
      are not independent.

    Example:
      >>> metric = pooled(metajax.metrics.rmse())
      >>> targets = metajax.Batch(None, jnp.array([[3.0], [1.0]]))
      >>> values = jax.vmap(metric)(jnp.array([[0.0], [0.0]]), targets)
      >>> round(metric.combine(values).value, 4)  # sqrt((9 + 1) / 2); rmse() has (3 + 1) / 2
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

        # Sums over a whole test set need more digits than float32 has.
        with jax.enable_x64(True):
            measured = metric.of_task(*jax.tree.map(join, values))
            whole = jax.tree.map(lambda leaf: np.asarray(leaf)[None], measured)
        return Summary(metric.combine(whole).value)

    return Metric(of_task, combine)
