"""Constant predictions, and the mean of the nearest support rows."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metajax import trees
from metajax.losses import one_hot
from metajax.types import Array, Batch

# (support, queries [Q, D]) -> outputs, logits [Q, N] or values [Q, 1].
Baseline = Callable[[Batch, Array], Array]

# Pseudo-examples that are spread over the classes, so that the logarithm of a share of zero is finite. They
# are too few to change the order of two shares.
_SMOOTHING = 1e-3


def constant(*, ways: int | None) -> Baseline:
    """Makes the baseline that predicts the share of each class, or the mean, of the support set.

    Args:
      ways: Number of classes N; None for values.

    Returns:
      `(support, queries) -> outputs`; the queries are read for their number alone.

    Example:
      >>> support = metajax.Batch(jnp.zeros((4, 2)), jnp.array([[1.0], [2.0], [3.0], [9.0]]))
      >>> constant(ways=None)(support, jnp.zeros((2, 2))).tolist()
      [[3.75], [3.75]]
    """

    def predict(support: Batch, queries: Array) -> Array:
        targets, weights = coded(support, ways), weights_of(support)
        mean = weights @ targets / jnp.maximum(jnp.sum(weights), 1e-9)
        outputs = mean if ways is None else log_shares(mean, ways)
        return jnp.broadcast_to(outputs, (len(queries), len(outputs)))

    return predict


def nearest_neighbors(k: int = 4, *, similarity: str = "euclidean", ways: int | None) -> Baseline:
    """Makes the baseline that predicts the mean over the k nearest support rows, all alike.

    Args:
      k: Number of neighbors, an int of 1 or more; a smaller support set counts as a whole.
      similarity: Order of the neighbors, a key of `SIMILARITIES`: "euclidean"; "cosine"; or "tanimoto", the
        sum of minima over the sum of maxima of counts.
      ways: Number of classes N; None for values.

    Returns:
      `(support, queries) -> outputs`: the logarithms of the shares of the classes among the neighbors, or the
      mean of their values. Of equally near rows the first ones count.

    Raises:
      ValueError: If `k` is below 1 or `similarity` is unknown.

    Example:
      >>> support = metajax.Batch(jnp.array([[0.0], [1.0], [5.0]]), jnp.array([[1.0], [3.0], [8.0]]))
      >>> nearest_neighbors(2, ways=None)(support, jnp.array([[0.4], [4.0]])).tolist()
      [[2.0], [5.5]]

    Reference: Stanley et al., 2021, the "kNN" of FS-Mol, which has k = 4 and Euclidean distances of counts
    (https://github.com/microsoft/FS-Mol).
    """
    if k < 1:
        raise ValueError(f"k is {k}; use 1 or more neighbors.")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; use {', '.join(SIMILARITIES)}.")
    similar = SIMILARITIES[similarity]

    def predict(support: Batch, queries: Array) -> Array:
        rows = support.inputs
        chex.assert_rank([rows, queries], 2)
        chex.assert_equal_shape_suffix([rows, queries], 1)
        weights = weights_of(support)
        scores = jnp.where(weights > 0, similar(queries, rows), -jnp.inf)
        best, places = jax.lax.top_k(scores, min(k, len(rows)))
        counted = jnp.isfinite(best).astype(weights.dtype)  # a padded row is no neighbor
        sums = jnp.einsum("qk,qkn->qn", counted, coded(support, ways)[places])
        mean = sums / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1e-9)
        return mean if ways is None else log_shares(mean, ways)

    return predict


def coded(support: Batch, ways: int | None) -> Array:
    """Codes targets as rows of numbers.

    Args:
      support: Examples with labels [B], or values [B, Y].
      ways: Number of classes N; None for values.

    Returns:
      One-hot codes [B, N], or the values, in float32 at least.
    """
    targets = support.targets
    if ways is None:
        return jnp.asarray(targets, trees.float_dtype(targets))
    return one_hot(targets, ways, jnp.float32)


def weights_of(support: Batch) -> Array:
    """Returns the weights [B] of a support set, ones if it has none."""
    if support.weights is None:
        return jnp.ones(len(support.targets))
    return jnp.asarray(support.weights, jnp.float32)


def log_shares(shares: Any, ways: int) -> Array:
    """Converts shares [..., N] to logits, finite where a share is zero."""
    return jnp.log((shares + _SMOOTHING / ways) / (1 + _SMOOTHING))


def _euclidean(queries: Array, rows: Array) -> Array:
    """Computes minus the squared distances [Q, B]; exact for counts, so that ties stay ties."""
    queries, rows = (jnp.asarray(x, trees.float_dtype(x)) for x in (queries, rows))
    squares = [jnp.sum(jnp.square(x), axis=1) for x in (queries, rows)]
    return 2 * queries @ rows.T - squares[0][:, None] - squares[1]


def _cosine(queries: Array, rows: Array) -> Array:
    """Computes cosines [Q, B]; a row of zeros has a cosine of zero with all."""

    def unit(x: Array) -> Array:
        x = jnp.asarray(x, trees.float_dtype(x))
        norm = jnp.linalg.norm(x, axis=1, keepdims=True)
        return x / jnp.where(norm > 0, norm, 1)

    return unit(queries) @ unit(rows).T


def _tanimoto(queries: Array, rows: Array) -> Array:
    """Computes sums of minima over sums of maxima [Q, B], one support row at a time to spare memory."""
    queries, rows = (jnp.asarray(x, trees.float_dtype(x)) for x in (queries, rows))

    def of_row(row: Array) -> Array:
        shared = jnp.sum(jnp.minimum(queries, row), axis=1)
        either = jnp.sum(jnp.maximum(queries, row), axis=1)
        return shared / jnp.where(either > 0, either, 1)

    return jax.lax.map(of_row, rows).T


SIMILARITIES: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"euclidean": _euclidean, "cosine": _cosine, "tanimoto": _tanimoto}
)
"""Functions (queries [Q, D], rows [B, D]) -> similarities [Q, B] by name."""
