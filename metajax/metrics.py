"""Metrics with a reach: what is measured on one task, and how the values of all tasks become one number.

A plain function `(outputs, batch) -> scalar`, such as `losses.accuracy`, is a metric whose reach is the mean
over tasks. A `Metric` says what else is to be done with the values: tasks on which AUROC is not defined are
left out and counted, calibration error is a function of the whole test set, `mean_over_repeats` averages per
assay first, and `pooled` measures the examples of all tasks as if they were one.

Weights are sample weights: an example of weight 2 counts as two examples, and one of weight 0 is padding,
whatever its outputs and targets. An example with a NaN among its outputs counts as badly as it can, or makes
the value NaN; it is never right.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.losses import check_labels, one_or_nan, weighted_mean
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
      >>> metric = auroc()._replace(combine=mean_over_repeats(2))
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
      >>> values = jax.vmap(pooled(rmse()))(jnp.array([[0.0], [0.0]]), Batch(None, jnp.array([[3.0], [1.0]])))
      >>> round(pooled(rmse()).combine(values).value, 4)  # sqrt((9 + 1) / 2), where rmse() has (3 + 1) / 2
      2.2361
    """
    metric = as_metric(metric)

    def of_task(outputs: Tree, batch: Batch) -> tuple[Tree, Batch]:
        weights = _weights(batch, trees.count(outputs, "outputs"), trees.float_dtype(outputs))
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


def auroc() -> Metric:
    """Area under the ROC curve: the share of pairs that are in the right order, of which ties count half.

    `of_task` maps logits and labels to a scalar in [0, 1]. Logits [B] or [B, 1] are those of class 1 of two,
    logits [B, 2] count by their difference, and of logits [B, N] each class is compared with all others by
    its probability, and classes are averaged. An example whose logits hold a NaN loses its comparisons.

    Returns:
      A metric that is NaN where a class has no example, or a label is out of range; such tasks are left out
      of the mean and counted. The values are those of `sklearn.metrics.roc_auc_score(multi_class="ovr")`.

    Reference: Mann and Whitney, 1947 (https://doi.org/10.1214/aoms/1177730491); Fawcett, 2006
    (https://doi.org/10.1016/j.patrec.2005.10.010), sections 7 and 9.

    Example:
      >>> auroc()(jnp.array([0.1, 0.8, 0.8]), Batch(None, jnp.array([0, 1, 0]))).item()
      0.75
    """
    return Metric(_over_classes(_area_under_roc), mean_where_defined)


def average_precision() -> Metric:
    """Average precision: the precision at each rank where recall rises, weighted by how far it rises.

    `of_task` maps logits and labels as those of `auroc` to a scalar in [0, 1]: the sum of
    (R_n - R_{n-1}) P_n over the thresholds, those between equal scores left out. It is a sum of steps and
    not the area under a line through the points, which is larger. An example whose logits hold a NaN is
    found last where it is positive, and first where it is not.

    Returns:
      A metric that is NaN where no example is positive, or a label is out of range; such tasks are left out
      of the mean and counted. The values are those of `sklearn.metrics.average_precision_score`.

    Example:
      >>> average_precision()(jnp.array([0.9, 0.8, 0.1, 0.1]), Batch(None, jnp.array([1, 0, 1, 0]))).item()
      0.75
    """
    return Metric(_over_classes(_step_precision), mean_where_defined)


def ndcg(k: int, *, gain: str) -> Metric:
    """Normalised discounted cumulative gain of the k examples of the largest scores.

    `of_task` maps scores [B] or [B, 1] and relevances of the same shape, numbers of 0 or more, to a scalar in
    [0, 1]: the sum of gain / log2(rank + 1) up to rank k, divided by that of the best order. Equal scores
    share their places: each has the mean of their gains, whatever the order of examples. An example whose
    score is NaN takes the first place, and gains nothing.

    Args:
      k: Number of places that count, an int of 1 or more.
      gain: "linear", which is the relevance r itself, or "exponential", 2^r - 1. Results of the two are not
        comparable, so that it has no default; have it in the metric's name.

    Returns:
      A metric that is NaN where no example has any gain, or a relevance is negative; such tasks are left out
      of the mean and counted. The values are those of `sklearn.metrics.ndcg_score(ignore_ties=False)`, which
      says 0 where none has a gain; it knows the linear gain alone.

    Reference: Jaervelin and Kekaelaeinen, 2002 (https://doi.org/10.1145/582415.582418); ties as in McSherry
    and Najork, 2008 (https://doi.org/10.1007/978-3-540-78646-7_38); 2^r - 1 of Burges et al., 2005
    (https://doi.org/10.1145/1102351.1102363).

    Example:
      >>> relevance = Batch(None, jnp.array([3.0, 5.0]))
      >>> metrics = {"ndcg1_linear": ndcg(1, gain="linear"), "ndcg1_exponential": ndcg(1, gain="exponential")}
      >>> [round(metric(jnp.array([2.0, 1.0]), relevance).item(), 4) for metric in metrics.values()]
      [0.6, 0.2258]
    """
    if k < 1:
        raise ValueError(f"k is {k}; use 1 or more places.")
    if gain not in _GAINS:
        raise ValueError(f"gain is {gain!r}; use {' or '.join(map(repr, _GAINS))}.")
    discounts = np.cumsum(np.append(0.0, 1 / np.log2(np.arange(2, k + 2))))

    def discounted(places: Array) -> Array:
        """Sums the discounts of the first places, of which there may be a fraction."""
        of_first = (jnp.asarray(array, places.dtype) for array in (np.arange(k + 1), discounts))
        return jnp.interp(jnp.minimum(places, k), *of_first)

    def cumulative(scores: Array, gains: Array, weights: Array) -> Array:
        below, tied = _below_and_tied(scores, weights)
        ahead = jnp.sum(weights) - below - tied
        mean_discount = (discounted(ahead + tied) - discounted(ahead)) / jnp.where(
            tied > 0, tied, 1
        )
        return jnp.sum(weights * gains * mean_discount)

    def of_task(outputs: Array, batch: Batch) -> Array:
        chex.assert_equal_shape([outputs, batch.targets])
        dtype = trees.float_dtype(outputs)
        weights = _weights(batch, outputs.shape[0], dtype)
        scores, relevance = (_column(array, dtype) for array in (outputs, batch.targets))
        known = ~jnp.isnan(scores)
        gains = jnp.where(weights > 0, _GAINS[gain](relevance), 0)
        reached = cumulative(jnp.where(known, scores, jnp.inf), gains * known, weights)
        wrong = jnp.any((relevance < 0) & (weights > 0))
        return jnp.where(wrong, jnp.nan, reached / cumulative(gains, gains, weights))

    return Metric(of_task, mean_where_defined)


def mae() -> Metric:
    """Mean absolute error over the examples and dimensions of a task, and then the mean over tasks.

    `of_task` maps outputs [B, ...] and targets of the same shape to a scalar. A NaN among them makes it NaN,
    and the mean over tasks too.

    Example:
      >>> mae()(jnp.array([1.0, 2.0]), Batch(None, jnp.array([1.0, 5.0]))).item()
      1.5
    """
    return Metric(lambda outputs, batch: _mean_error(jnp.abs, outputs, batch))


def rmse() -> Metric:
    """Root of the mean squared error of each task, and then the mean over tasks.

    `of_task` maps outputs [B, ...] and targets of the same shape to a scalar; NaN as for `mae`. The root of
    the mean over the examples of all tasks is `pooled(rmse())`; it is never smaller where tasks are of one
    size.

    Example:
      >>> rmse()(jnp.array([1.0, 2.0]), Batch(None, jnp.array([2.0, 9.0]))).item()
      5.0
    """
    return Metric(lambda outputs, batch: jnp.sqrt(_mean_error(jnp.square, outputs, batch)))


def calibration_error(bins: int = 15) -> Metric:
    """Expected calibration error: how far accuracy is from confidence, over the whole test set.

    `of_task` maps logits [B], [B, 1] or [B, N] and labels [B] to sums [bins] of weights, confidences and
    hits over the examples whose confidence, the largest probability, lies in each bin ((m - 1) / M, m / M].
    `combine` adds them over tasks: the mean of |accuracy - confidence| over bins, weighted by their examples.
    An example whose logits hold a NaN is wrong, with a confidence of one.

    Args:
      bins: Number of bins M of equal width, an int of 1 or more.

    Returns:
      A metric in [0, 1], without an interval; NaN if a label is out of range. It is no mean over tasks: the
      error of few examples is mostly chance, and does not average out, for it is never negative.

    Reference: Guo et al., 2017 (https://arxiv.org/abs/1706.04599), eq. 3.

    Example:
      >>> metric = calibration_error()
      >>> logits, labels = jnp.log(jnp.array([[0.7, 0.3], [0.3, 0.7]])), jnp.array([0, 0])
      >>> sums = jax.vmap(metric)(logits[None], Batch(None, labels[None]))
      >>> round(metric.combine(sums).value, 4)  # half is right, and 0.7 was promised
      0.2
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; use 1 or more.")

    def of_task(outputs: Array, batch: Batch) -> dict[str, Array]:
        logits = _logits(outputs)
        ways = logits.shape[1]
        check_labels(batch, ways, examples=logits.shape[0])
        known = ~jnp.isnan(logits).any(axis=1)
        confidence = jnp.where(known, jnp.max(jax.nn.softmax(logits, axis=1), axis=1), 1)
        hits = (jnp.argmax(logits, axis=1) == batch.targets) & known
        weights = _weights(batch, logits.shape[0], logits.dtype) * one_or_nan(
            batch, ways, logits.dtype
        )
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


_GAINS = {"linear": lambda relevance: relevance, "exponential": lambda r: jnp.exp2(r) - 1}


def _over_classes(measure: Callable[[Array, Array, Array], Array]) -> Callable[[Tree, Batch], Tree]:
    """Makes a metric of logits and labels from one of scores [B], whether they are positive [B], weights."""

    def of_task(outputs: Array, batch: Batch) -> Array:
        logits = _logits(outputs)
        ways = logits.shape[1]
        check_labels(batch, ways, examples=logits.shape[0])
        # Of two classes the one is as far from the other as the other from it.
        classes = jnp.arange(1, 2) if ways == 2 else jnp.arange(ways)
        scores = logits[:, 1:] - logits[:, :1] if ways == 2 else _log_odds(logits)
        positive = batch.targets[:, None] == classes
        weights = _weights(batch, logits.shape[0], logits.dtype)
        each = jax.vmap(measure, (1, 1, None))(scores, positive, weights)
        return jnp.mean(each) * one_or_nan(batch, ways, each.dtype)

    return of_task


def _area_under_roc(scores: Array, positive: Array, weights: Array) -> Array:
    positives, negatives = weights * positive, weights * ~positive
    known = ~jnp.isnan(scores)
    below, tied = _below_and_tied(jnp.where(known, scores, 0), negatives * known)
    won = jnp.sum(positives * known * (below + tied / 2))
    return won / (jnp.sum(positives) * jnp.sum(negatives))


def _step_precision(scores: Array, positive: Array, weights: Array) -> Array:
    positives, negatives = weights * positive, weights * ~positive
    known = ~jnp.isnan(scores)
    scores = jnp.where(known, scores, 0)
    hits, others = (
        jnp.sum(of * known) - _below_and_tied(scores, of * known)[0]
        for of in (positives, negatives)
    )
    found = hits + others + jnp.sum(negatives * ~known)
    return jnp.sum(positives * known * hits / jnp.where(found > 0, found, 1)) / jnp.sum(positives)


def _below_and_tied(scores: Array, weights: Array) -> tuple[Array, Array]:
    """Sums the weights of the examples with smaller scores, and of those with equal ones: both [B]."""
    order = jnp.argsort(scores)
    ranked = scores[order]
    sums = jnp.append(jnp.zeros(1, weights.dtype), jnp.cumsum(weights[order]))
    below, up_to = (sums[jnp.searchsorted(ranked, scores, side)] for side in ("left", "right"))
    return below, up_to - below


def _logits(outputs: Array) -> Array:
    """Logits [B, N] in float32 at least; those [B] or [B, 1] of class 1 get zeros of class 0 beside them."""
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs are of shape {outputs.shape}; use logits [B], [B, 1] or [B, N].")
    outputs = outputs.astype(trees.float_dtype(outputs))
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        column = outputs.reshape(-1, 1)
        return jnp.concatenate([jnp.zeros_like(column), column], axis=1)
    return outputs


def _log_odds(logits: Array) -> Array:
    """Logarithms [B, N] of p / (1 - p), which tell confident answers apart where probabilities are one."""
    top = jnp.arange(logits.shape[1]) == jnp.argmax(logits, axis=1, keepdims=True)
    others = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=1, keepdims=True)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return jnp.where(top, logits - others, log_p - jnp.log1p(-jnp.exp(log_p)))


def _mean_error(of: Callable[[Array], Array], outputs: Array, batch: Batch) -> Array:
    chex.assert_equal_shape([outputs, batch.targets])
    errors = of(outputs.astype(trees.float_dtype(outputs)) - batch.targets)
    errors = jnp.mean(errors, axis=tuple(range(1, errors.ndim)))
    weights = _weights(batch, len(errors), errors.dtype)
    return weighted_mean(jnp.where(weights > 0, errors, 0), weights)


def _weights(batch: Batch, examples: int, dtype: jnp.dtype) -> Array:
    if batch.weights is None:
        return jnp.ones(examples, dtype)
    chex.assert_shape(batch.weights, (examples,))
    return batch.weights.astype(dtype)


def _column(array: Array, dtype: jnp.dtype) -> Array:
    """Numbers [B] of an array [B] or [B, 1]."""
    if array.size != array.shape[0]:
        raise ValueError(f"outputs are of shape {array.shape}; use scores [B] or [B, 1].")
    return array.reshape(-1).astype(dtype)
