"""Ranking metrics: the area under the ROC curve, average precision and discounted cumulative gain."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.losses import check_labels, one_or_nan
from metajax.metrics.arrays import logits_of, weights_of
from metajax.metrics.reach import Metric, mean_where_defined
from metajax.types import Array, Batch, Tree


def auroc() -> Metric:
    """Makes the area under the ROC curve: the share of pairs in the right order, ties counting half.

    `of_task` maps logits and labels to a scalar in [0, 1]. Logits [B] or [B, 1] belong to class 1 of two;
    logits [B, 2] are ranked by their difference; for logits [B, N] each class is compared with all others by
    its probability, and the classes are averaged. An example with a NaN among its logits loses its
    comparisons.

    Returns:
      A metric that is NaN if a class has no example, or a label is out of range; such tasks are left out of
      the mean and counted. The values equal `sklearn.metrics.roc_auc_score(multi_class="ovr")`.

    Example:
      >>> auroc()(jnp.array([0.1, 0.8, 0.8]), metajax.Batch(None, jnp.array([0, 1, 0]))).item()
      0.75

    Reference: Mann and Whitney, 1947 (https://doi.org/10.1214/aoms/1177730491); Fawcett, 2006
    (https://doi.org/10.1016/j.patrec.2005.10.010), sections 7 and 9.
    """
    return Metric(_over_classes(_area_under_roc), mean_where_defined)


def average_precision() -> Metric:
    """Makes the average precision: the precision at each rank, weighted by the increase of recall there.

    `of_task` maps the logits and labels of `auroc` to a scalar in [0, 1]: the sum of (R_n - R_{n-1}) P_n over
    the thresholds between distinct scores. It is a sum of steps, not the area under a line through the
    points, which is larger. An example with a NaN among its logits ranks last if it is positive, and first
    otherwise.

    Returns:
      A metric that is NaN if no example is positive, or a label is out of range; such tasks are left out of
      the mean and counted. The values equal `sklearn.metrics.average_precision_score`.

    Example:
      >>> labels = metajax.Batch(None, jnp.array([1, 0, 1, 0]))
      >>> average_precision()(jnp.array([0.9, 0.8, 0.1, 0.1]), labels).item()
      0.75

    Reference: Manning et al., 2008 (https://nlp.stanford.edu/IR-book/), section 8.4.
    """
    return Metric(_over_classes(_step_precision), mean_where_defined)


def delta_auprc() -> Metric:
    """Makes the average precision minus that of a random order: the share of the positive examples.

    `of_task` maps the logits and labels of `auroc` to a scalar in (-1, 1), zero for chance, so that tasks of
    different shares can be averaged. The share is that of the scored examples.

    Returns:
      A metric that is NaN if no example is positive, or a label is out of range; such tasks are left out of
      the mean and counted.

    Example:
      >>> labels = metajax.Batch(None, jnp.array([1, 0, 1, 0]))
      >>> delta_auprc()(jnp.array([0.9, 0.8, 0.1, 0.1]), labels).item()  # 0.75 - 2 / 4
      0.25

    Reference: Stanley et al., 2021, FS-Mol (https://github.com/microsoft/FS-Mol).
    """
    return Metric(_over_classes(_precision_above_chance), mean_where_defined)


def ndcg(k: int, *, gain: str) -> Metric:
    """Makes the normalized discounted cumulative gain of the k examples with the largest scores.

    `of_task` maps scores [B] or [B, 1] and relevances of the same shape, numbers of 0 or more, to a scalar in
    [0, 1]: the sum of gain / log2(rank + 1) up to rank k, divided by the same sum in the best order. Equal
    scores share their places: each gets the mean of their gains, whatever the order of examples. An example
    whose score is NaN takes the first place and gains nothing.

    Args:
      k: Number of places that count, an int of 1 or more.
      gain: Gain of a relevance r: "linear" (r) or "exponential" (2^r - 1). Results of the two are not
        comparable, so there is no default; put the choice into the metric's name.

    Returns:
      A metric that is NaN if no example has any gain, or a relevance is negative; such tasks are left out of
      the mean and counted. The values equal `sklearn.metrics.ndcg_score(ignore_ties=False)`, which has only
      the linear gain, and returns 0 if no example has any.

    Raises:
      ValueError: If `k` is below 1 or `gain` has another value; when measuring, if scores are not [B] or
        [B, 1].

    Example:
      >>> scores, relevance = jnp.array([2.0, 1.0]), metajax.Batch(None, jnp.array([3.0, 5.0]))
      >>> [round(ndcg(1, gain=g)(scores, relevance).item(), 4) for g in ("linear", "exponential")]
      [0.6, 0.2258]

    Reference: Jaervelin and Kekaelaeinen, 2002 (https://doi.org/10.1145/582415.582418); ties as in McSherry
    and Najork, 2008 (https://doi.org/10.1007/978-3-540-78646-7_38); 2^r - 1 of Burges et al., 2005
    (https://doi.org/10.1145/1102351.1102363).
    """
    if k < 1:
        raise ValueError(f"k is {k}; use 1 or more places.")
    if gain not in _GAINS:
        raise ValueError(f"gain is {gain!r}; use {' or '.join(map(repr, _GAINS))}.")
    discounts = np.cumsum(np.append(0.0, 1 / np.log2(np.arange(2, k + 2))))

    def discounted(places: Array) -> Array:
        """Sums the discounts of the first places, a possibly fractional number of them."""
        of_first = (jnp.asarray(array, places.dtype) for array in (np.arange(k + 1), discounts))
        return jnp.interp(jnp.minimum(places, k), *of_first)

    def cumulative(scores: Array, gains: Array, weights: Array) -> Array:
        # A group of equal scores occupies the places from `ahead` to `ahead + tied`, and each of its examples
        # gets the mean discount of these places.
        below, tied = _below_and_tied(scores, weights)
        ahead = jnp.sum(weights) - below - tied
        mean_discount = (discounted(ahead + tied) - discounted(ahead)) / jnp.where(
            tied > 0, tied, 1
        )
        return jnp.sum(weights * gains * mean_discount)

    def of_task(outputs: Array, batch: Batch) -> Array:
        chex.assert_equal_shape([outputs, batch.targets])
        dtype = trees.float_dtype(outputs)
        weights = weights_of(batch, outputs.shape[0], dtype)
        scores, relevance = (_column(array, dtype) for array in (outputs, batch.targets))
        known = ~jnp.isnan(scores)
        # Padding may hold any relevance, so its gain is set to zero before it is weighted.
        gains = jnp.where(weights > 0, _GAINS[gain](relevance), 0)
        reached = cumulative(jnp.where(known, scores, jnp.inf), gains * known, weights)
        wrong = jnp.any((relevance < 0) & (weights > 0))
        return jnp.where(wrong, jnp.nan, reached / cumulative(gains, gains, weights))

    return Metric(of_task, mean_where_defined)


_GAINS = {"linear": lambda relevance: relevance, "exponential": lambda r: jnp.exp2(r) - 1}


def _over_classes(measure: Callable[[Array, Array, Array], Array]) -> Callable[[Tree, Batch], Tree]:
    """Turns a measure of one class into a measure of logits and labels, averaged over classes.

    Args:
      measure: Function of scores [B], booleans [B] of the positive examples, and weights [B].

    Returns:
      `(outputs, batch) -> scalar`.
    """

    def of_task(outputs: Array, batch: Batch) -> Array:
        logits = logits_of(outputs)
        ways = logits.shape[1]
        check_labels(batch, ways, examples=logits.shape[0])
        # Two classes give the same value by symmetry, so only class 1 is measured.
        classes = jnp.arange(1, 2) if ways == 2 else jnp.arange(ways)
        scores = logits[:, 1:] - logits[:, :1] if ways == 2 else _log_odds(logits)
        positive = batch.targets[:, None] == classes
        weights = weights_of(batch, logits.shape[0], logits.dtype)
        each = jax.vmap(measure, (1, 1, None))(scores, positive, weights)
        return jnp.mean(each) * one_or_nan(batch, ways, each.dtype)

    return of_task


def _area_under_roc(scores: Array, positive: Array, weights: Array) -> Array:
    """Computes P(score of a positive > score of a negative) + P(equal) / 2; all arguments are [B]."""
    positives, negatives = weights * positive, weights * ~positive
    known = ~jnp.isnan(scores)
    below, tied = _below_and_tied(jnp.where(known, scores, 0), negatives * known)
    won = jnp.sum(positives * known * (below + tied / 2))
    return won / (jnp.sum(positives) * jnp.sum(negatives))


def _step_precision(scores: Array, positive: Array, weights: Array) -> Array:
    """Averages, over positives, the precision among the examples with scores at least as large."""
    positives, negatives = weights * positive, weights * ~positive
    known = ~jnp.isnan(scores)
    scores = jnp.where(known, scores, 0)
    hits, others = (
        jnp.sum(of * known) - _below_and_tied(scores, of * known)[0]
        for of in (positives, negatives)
    )
    found = hits + others + jnp.sum(negatives * ~known)
    return jnp.sum(positives * known * hits / jnp.where(found > 0, found, 1)) / jnp.sum(positives)


def _precision_above_chance(scores: Array, positive: Array, weights: Array) -> Array:
    """Subtracts the share of the positives from the average precision."""
    share = jnp.sum(weights * positive) / jnp.sum(weights)
    return _step_precision(scores, positive, weights) - share


def _below_and_tied(scores: Array, weights: Array) -> tuple[Array, Array]:
    """Sums the weights of examples with smaller and with equal scores, for each example; both [B]."""
    # Scores that are computed again where they are read may be rounded in another way, so that one is not
    # found among its own: what the sort returns is compared with itself alone.
    ranked, order = jax.lax.sort((scores, jnp.arange(scores.shape[0])), num_keys=1)
    sums = jnp.append(jnp.zeros(1, weights.dtype), jnp.cumsum(weights[order]))
    places = jnp.zeros_like(order).at[order].set(jnp.arange(scores.shape[0]))
    below, up_to = (
        sums[jnp.searchsorted(ranked, ranked, side)][places] for side in ("left", "right")
    )
    return below, up_to - below


def _log_odds(logits: Array) -> Array:
    """Computes log(p / (1 - p)) [B, N], which still ranks predictions whose probabilities round to one."""
    # log(1 - p) of the largest class is a logsumexp over the others, since 1 - p would round to zero.
    top = jnp.arange(logits.shape[1]) == jnp.argmax(logits, axis=1, keepdims=True)
    others = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=1, keepdims=True)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return jnp.where(top, logits - others, log_p - jnp.log1p(-jnp.exp(log_p)))


def _column(array: Array, dtype: jnp.dtype) -> Array:
    """Flattens an array [B] or [B, 1] to [B]."""
    if array.size != array.shape[0]:
        raise ValueError(f"outputs have shape {array.shape}; use scores [B] or [B, 1].")
    return array.reshape(-1).astype(dtype)
