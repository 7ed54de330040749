"""Error metrics of regression, and the calibration error of class probabilities."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.losses import check_labels, one_or_nan, weighted_mean
from metajax.metrics.arrays import logits_of, weights_of
from metajax.metrics.reach import Metric, Summary
from metajax.types import Array, Batch


def mae() -> Metric:
    """Makes the mean absolute error, averaged over output dimensions, examples and then tasks.

    `of_task` maps outputs [B, ...] and targets of the same shape to a scalar. A NaN among them makes it NaN,
    and the mean over tasks too.

    Returns:
      A metric of 0 or more, in the unit of the targets.

    Example:
      >>> mae()(jnp.array([1.0, 2.0]), metajax.Batch(None, jnp.array([1.0, 5.0]))).item()
      1.5
    """
    return Metric(lambda outputs, batch: _mean_error(jnp.abs, outputs, batch))


def rmse() -> Metric:
    """Makes the root mean squared error of each task, averaged over tasks.

    `of_task` maps outputs [B, ...] and targets of the same shape to a scalar; NaN as in `mae`. The root of
    the mean over the examples of all tasks is `pooled(rmse())`; it is never smaller if all tasks have one
    size.

    Returns:
      A metric of 0 or more, in the unit of the targets.

    Example:
      >>> rmse()(jnp.array([1.0, 2.0]), metajax.Batch(None, jnp.array([2.0, 9.0]))).item()
      5.0
    """
    return Metric(lambda outputs, batch: jnp.sqrt(_mean_error(jnp.square, outputs, batch)))


def calibration_error(bins: int = 15) -> Metric:
    """Makes the expected calibration error: the distance of accuracy from confidence over the whole test set.

    `of_task` maps logits [B], [B, 1] or [B, N] and labels [B] to sums [M] of weights, confidences and hits
    over the examples whose confidence, the largest probability, lies in each bin ((m - 1) / M, m / M].
    `combine` adds them over tasks and averages |accuracy - confidence| over bins, weighted by their examples.
    An example with a NaN among its logits counts as wrong, with confidence one.

    Args:
      bins: Number of bins M of equal width, an int of 1 or more.

    Returns:
      A metric in [0, 1], without an interval; NaN if a label is out of range. It is not a mean over tasks:
      the error of few examples is mostly chance, and does not average out because it is never negative.

    Raises:
      ValueError: If `bins` is below 1; when measuring, if labels are known to be out of range.

    Example:
      >>> metric = calibration_error()
      >>> logits, labels = jnp.log(jnp.array([[0.7, 0.3], [0.3, 0.7]])), jnp.array([0, 0])
      >>> sums = jax.vmap(metric)(logits[None], metajax.Batch(None, labels[None]))
      >>> round(metric.combine(sums).value, 4)  # accuracy 0.5, confidence 0.7
      0.2

    Reference: Guo et al., 2017 (https://arxiv.org/abs/1706.04599), eq. 3.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; use 1 or more.")

    def of_task(outputs: Array, batch: Batch) -> dict[str, Array]:
        logits = logits_of(outputs)
        ways = logits.shape[1]
        check_labels(batch, ways, examples=logits.shape[0])
        known = ~jnp.isnan(logits).any(axis=1)
        confidence = jnp.where(known, jnp.max(jax.nn.softmax(logits, axis=1), axis=1), 1)
        hits = (jnp.argmax(logits, axis=1) == batch.targets) & known
        weights = weights_of(batch, logits.shape[0], logits.dtype) * one_or_nan(
            batch, ways, logits.dtype
        )
        # Bins are open on the left: a confidence of exactly m / M belongs to bin m.
        places = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1)
        inside = places[:, None] == jnp.arange(bins)
        each = {"weight": weights, "confidence": weights * confidence, "hits": weights * hits}
        return {
            name: jnp.sum(jnp.where(inside, of[:, None], 0), axis=0) for name, of in each.items()
        }

    def combine(values: dict[str, np.ndarray]) -> Summary:
        sums = {name: np.sum(np.asarray(of, np.float64), axis=0) for name, of in values.items()}
        total = np.sum(sums["weight"])
        distance = np.sum(np.abs(sums["hits"] - sums["confidence"]))
        return Summary(float(distance / total) if total else math.nan)

    return Metric(of_task, combine)


def _mean_error(of: Callable[[Array], Array], outputs: Array, batch: Batch) -> Array:
    """Averages a function of the errors over output dimensions and examples."""
    chex.assert_equal_shape([outputs, batch.targets])
    errors = of(outputs.astype(trees.float_dtype(outputs)) - batch.targets)
    errors = jnp.mean(errors, axis=tuple(range(1, errors.ndim)))
    weights = weights_of(batch, len(errors), errors.dtype)
    # Padding may hold NaN, and 0 * NaN is NaN.
    return weighted_mean(jnp.where(weights > 0, errors, 0), weights)
