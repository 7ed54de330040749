"""Parts that metric learners share: their meta-parameters and the comparison of features.

The fast state of a metric learner is its memory of the support set. Adapting piece by piece, in any order,
equals adapting to the whole set, with two exceptions: an encoder with batch norm, whose features depend on
the batch, and full context embeddings, which depend on the order of the examples.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.learners.states import unit
from metajax.types import Array, Params

DISTANCES = ("euclidean", "cosine")


class MetricMeta(NamedTuple):
    """Meta-parameters of metric learners.

    Attributes:
      params: Parameters of the encoder.
      scale: Logarithm of the scale of similarities, a scalar; () if the scale is fixed.
      comparer: Parameters of the comparison network or of the context embeddings; () without either.
    """

    params: Params
    scale: Any
    comparer: Params = ()


def similarities(queries: Array, others: Array, *, distance: str) -> Array:
    """Compares features of queries with features of examples or classes, pair by pair.

    Args:
      queries: Float features [B, D].
      others: Float features [N, D].
      distance: One of `DISTANCES`: "euclidean" gives minus the squared distance, "cosine" the cosine.

    Returns:
      Similarities [B, N].
    """
    chex.assert_rank([queries, others], 2)
    if distance == "cosine":
        return unit(queries) @ unit(others).T
    # |q - o|^2 = |q|^2 - 2 q.o + |o|^2. Moving both by the mean changes no distance, and keeps the terms, and
    # so the rounding error of their sum, small.
    middle = jax.lax.stop_gradient(jnp.mean(others, axis=0))
    queries, others = queries - middle, others - middle
    squares = [jnp.sum(jnp.square(x), axis=-1) for x in (queries, others)]
    return 2 * queries @ others.T - squares[0][:, None] - squares[1]


def require_ways(ways: int) -> None:
    """Checks a number of classes.

    Args:
      ways: Number of classes N.

    Raises:
      ValueError: If it is below 1.
    """
    if ways < 1:
        raise ValueError(f"ways is {ways}; use 1 or more.")
