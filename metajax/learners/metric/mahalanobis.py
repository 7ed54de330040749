"""Prototypical networks whose distance knows how the support features vary: Mahalanobis distances."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.inner.scalars import Positive, as_positive
from metajax.learners.metric.base import MetricMeta
from metajax.learners.metric.positive_definite import inverse
from metajax.learners.states import (
    Examples,
    Kept,
    counts_of,
    exact,
    features_by,
    init_encoder,
    keeping,
    mask_absent,
)
from metajax.losses import one_hot
from metajax.types import Array, Key, Learner, Model, Tree


class ClassShapes(NamedTuple):
    """Means and covariances of the support features of each class.

    Attributes:
      means: Means [N, D].
      precisions: Inverses of the regularized covariances, [N, D, D].
      counts: Total weight of the examples of each class, [N].
    """

    means: Array
    precisions: Array
    counts: Array


def mahalanobis_protonet(
    encoder: Model,
    *,
    ways: int,
    ridge: float | Positive = 0.1,
    own: float = 0.1,
) -> Learner[MetricMeta, Kept]:
    """Makes prototypical networks with a Mahalanobis distance per class.

    The logit of class k is -(f - c_k)^T Q_k^-1 (f - c_k) with Q_k = a S_k + (1 - a) S + ridge I. Here S_k and
    S are the covariances of the support features of the class and of the task, and a = n_k / (n_k + 1), at
    most `own`.

    Args:
      encoder: Network without a head, with features [B, D]; small D, since Q_k is [D, D].
      ways: Number of classes N, 2 or more.
      ridge: Variance that is added to all directions, a number above 0; `metajax.learned(0.1)` learns it.
      own: Largest share of a class's own covariance, in [0, 1]; 1 sets no limit.

    Returns:
      A learner with meta-parameters `MetricMeta`, whose `scale` belongs to the ridge, and fast state `Kept`,
      whose `made` is `ClassShapes`. The logit of a class without examples is `states.ABSENT`.

    Raises:
      ValueError: If `ways` is below 2, `ridge` is not above 0, or `own` is outside [0, 1].

    Example:
      >>> from metajax.learners import mahalanobis_protonet
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = mahalanobis_protonet(metajax.toys.toy_model(None), ways=3)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task).shape
      (12, 3)

    Reference: Bateni et al., 2020 (https://arxiv.org/abs/1912.03432), eq. 2 to 4, where `own` is 1; Stanley
    et al., 2021 (https://openreview.net/forum?id=701FtuyLlAd), whose code has 0.1 for both options.
    """
    if ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more.")
    if not 0 <= own <= 1:
        raise ValueError(f"own is {own}; use a share from 0 to 1.")
    encoder, extra = exact(encoder), as_positive(ridge, name="ridge")

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params, _, dtype = init_encoder(encoder, key, inputs)
        return MetricMeta(params, extra.init(dtype))

    def shapes(meta: MetricMeta, key: Key, examples: Examples) -> ClassShapes:
        del key
        features = examples.features
        members = one_hot(examples.targets, ways, features.dtype, axis=0) * examples.weights
        means, spread = _moments(features, members)
        _, common = _moments(features, examples.weights[None])
        counts = counts_of(examples, ways)
        share = jnp.minimum(counts / (counts + 1), own)[:, None, None]
        diagonal = extra.value(meta.scale) * jnp.eye(features.shape[1], dtype=features.dtype)
        covariances = share * spread + (1 - share) * common + diagonal
        return ClassShapes(means, jax.vmap(inverse)(covariances), counts)

    def predict(meta: MetricMeta, fast: Kept, inputs: Tree) -> Array:
        queries, made = encoder.apply(meta.params, inputs), fast.made

        def distances(mean: Array, precision: Array) -> Array:
            """Computes the squared distances [B] of all queries from a class."""
            away = queries - mean
            return jnp.sum((away @ precision) * away, axis=1)

        return mask_absent(-jax.vmap(distances)(made.means, made.precisions).T, made.counts)

    return Learner(init, *keeping(features_by(encoder, "params"), ways, shapes), predict)


def _moments(features: Array, weights: Array) -> tuple[Array, Array]:
    """Computes means [N, D] and unbiased covariances [N, D, D] by weights [N, B]."""
    counts = jnp.sum(weights, axis=1)
    means = weights @ features / jnp.where(counts > 0, counts, 1)[:, None]
    # From the means, not from sums of squares, which cancel where the means are large.
    away = features - means[:, None]
    squares = jnp.einsum("nb,nbd,nbe->nde", weights, away, away)
    return means, squares / jnp.maximum(counts - 1, 1)[:, None, None]
