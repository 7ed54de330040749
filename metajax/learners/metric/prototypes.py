"""Learners that compare a query with the support set: prototypical, matching and relation networks.

Their fast state is what they remember of the support set, and adapting to it in pieces, in any order, is
adapting to the whole, if the encoder's answer to an example does not depend on its batch (not under batch
norm), nor on their order (not under full context embeddings).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.inner.scalars import Positive, as_positive
from metajax.learners.states import (
    ClassSums,
    Kept,
    class_means,
    counts_of,
    exact,
    features_by,
    init_encoder,
    keeping,
    mask_absent,
    summing,
    unit,
)
from metajax.losses import check_labels, one_hot, one_or_nan, weighted_mean
from metajax.types import Array, Batch, Key, Learner, Model, Params, Tree

DISTANCES = ("euclidean", "cosine")


class MetricMeta(NamedTuple):
    """What learners that compare learn across tasks.

    Attributes:
      params: those of the encoder.
      scale: Logarithm of the factor of similarities, a scalar; () where that is fixed.
      comparer: those of what compares or embeds in context; () where there is none.
    """

    params: Params
    scale: Any
    comparer: Params = ()


def protonet(
    encoder: Model,
    *,
    ways: int,
    distance: str = "euclidean",
    scale: float | Positive = 1.0,
) -> Learner[MetricMeta, ClassSums]:
    """Prototypical networks: a class is the mean of its support features, and a query is near one.

    Args:
      encoder: gives features [B, D], without a head.
      ways: N. Learners that differ in it share their meta-parameters: train at more ways than you test.
      distance: `"euclidean"`: logits are minus squared distances, of eq. 2; `"cosine"`: cosine similarities.
      scale: Factor of the logits, the inverse of a temperature; `learned(10.0)` learns it from 10 on. Cosines
        want some 10.

    Returns:
      A learner with `MetricMeta` and `ClassSums`. A class without examples has the logit `support.ABSENT`.

    Reference: Snell et al., 2017 (https://arxiv.org/abs/1703.05175), eq. 1 and 2; a learned scale, Oreshkin
    et al., 2018 (https://arxiv.org/abs/1805.10123), section 2.1.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; use one of {', '.join(DISTANCES)}.")
    _check(ways)
    encoder, factor = exact(encoder), as_positive(scale, name="scale")

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params, _, dtype = init_encoder(encoder, key, inputs)
        return MetricMeta(params, factor.init(dtype))

    def predict(meta: MetricMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries = encoder.apply(meta.params, inputs)
        similar = similarities(queries, class_means(fast), distance=distance)
        return mask_absent(similar * factor.value(meta.scale), fast.counts)

    return Learner(init, *summing(features_by(encoder, "params"), ways), predict)


def matching(
    encoder: Model,
    *,
    ways: int,
    scale: float | Positive = 1.0,
    context: Any = None,
) -> Learner[MetricMeta, Kept]:
    """Matching networks: a query's label is a mean of support labels, weighted by softmax of cosines.

    Args:
      encoder: gives features [B, D], without a head.
      ways: N. Learners that differ in it share their meta-parameters.
      scale: Factor of the cosines before the softmax, 1 in the paper; `learned(1.0)` learns it from 1 on.
      context: full context embeddings, such as `full_context(...)`; None compares features as they are.

    Returns:
      A learner with `MetricMeta` and `Kept`; its outputs are logarithms of probabilities.

    Reference: Vinyals et al., 2016 (https://arxiv.org/abs/1606.04080), eq. 1 and 2.
    """
    _check(ways)
    encoder, factor = exact(encoder), as_positive(scale, name="scale")

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params_key, context_key = jax.random.split(key)
        params, dim, dtype = init_encoder(encoder, params_key, inputs)
        learned = () if context is None else context.init(context_key, dim, dtype)
        return MetricMeta(params, factor.init(dtype), learned)

    def predict(meta: MetricMeta, fast: Kept, inputs: Tree) -> Array:
        support, targets, weights = fast.examples
        queries = encoder.apply(meta.params, inputs)
        if context is not None:
            support, queries = context.apply(meta.comparer, support, weights, queries)
        similar = similarities(queries, support, distance="cosine") * factor.value(meta.scale)
        # Weights count as multiplicities; padding, whose weight is zero, gets no attention.
        attention = jax.nn.log_softmax(mask_absent(similar + _log(weights), weights))
        members = one_hot(targets, ways, bool, axis=0)
        by_class = jnp.where(members, attention[:, None], -jnp.inf)
        present = counts_of(fast.examples, ways)
        # All of an absent class is -inf, and so would be its sum: the gradient of that is NaN.
        by_class = jnp.where((present == 0)[:, None], 0, by_class)
        return mask_absent(jax.nn.logsumexp(by_class, axis=-1), present)

    return Learner(init, *keeping(features_by(encoder, "params"), ways), predict)


def relation(encoder: Model, comparer: Model, *, ways: int) -> Learner[MetricMeta, ClassSums]:
    """Relation networks: a learned network tells from features whether class and query belong together.

    Train it on `relation_loss`, the paper's; its outputs are logits of the relation score, and any loss that
    takes logits will do.

    Args:
      encoder: gives features [B, ..., C]: maps, in the paper.
      comparer: takes [B, ..., 2 C], class and query side by side, and gives the logit [B, 1] of their score.
      ways: N. Learners that differ in it share their meta-parameters.

    Returns:
      A learner with `MetricMeta` and `ClassSums`.

    Reference: Sung et al., 2018 (https://arxiv.org/abs/1711.06025), eq. 1 and 2. The features of a class are
    summed there, and averaged here, so that shots may vary.
    """
    _check(ways)
    encoder = exact(encoder)

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params_key, comparer_key = jax.random.split(key)
        params = encoder.init(params_key, inputs)
        features = jax.eval_shape(encoder.apply, params, inputs)
        pairs = jnp.zeros((*features.shape[:-1], 2 * features.shape[-1]), features.dtype)
        learned = trees.require_floats(comparer.init(comparer_key, pairs))
        return MetricMeta(params, (), learned)

    def predict(meta: MetricMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries, classes = encoder.apply(meta.params, inputs), class_means(fast)
        count, shape = queries.shape[0], queries.shape[1:]
        pairs = jnp.concatenate(
            [
                jnp.broadcast_to(classes, (count, ways, *shape)),
                jnp.broadcast_to(queries[:, None], (count, ways, *shape)),
            ],
            axis=-1,
        )
        scores = comparer.apply(meta.comparer, pairs.reshape(count * ways, *pairs.shape[2:]))
        return mask_absent(scores.reshape(count, ways), fast.counts)

    return Learner(init, *summing(features_by(encoder, "params"), ways), predict)


def relation_loss(outputs: Array, batch: Batch) -> Array:
    """Squared error of relation scores against one where class and query agree and zero elsewhere, eq. 2.

    Args:
      outputs: [B, N] logits of the scores.
      batch: `targets` [B] int in [0, N); of examples with weight zero any int.

    Returns:
      A scalar: the sum over classes, the mean over examples; NaN if a label is out of range.
    """
    examples, ways = outputs.shape
    check_labels(batch, ways, examples=examples)
    # In bfloat16 a score near one has no digits left.
    outputs = outputs.astype(trees.float_dtype(outputs))
    labels = one_hot(batch.targets, ways, outputs.dtype)
    errors = jnp.sum(jnp.square(jax.nn.sigmoid(outputs) - labels), axis=-1)
    return weighted_mean(errors, batch.weights) * one_or_nan(batch, ways, errors.dtype)


def similarities(queries: Array, others: Array, *, distance: str) -> Array:
    """Compares queries [B, D] with others [N, D]: minus squared distances, or cosines, [B, N]."""
    if distance == "cosine":
        return unit(queries) @ unit(others).T
    # Distances stay as they are if all move alike, and rounding is least around the middle.
    middle = jax.lax.stop_gradient(jnp.mean(others, axis=0))
    queries, others = queries - middle, others - middle
    squares = [jnp.sum(jnp.square(x), axis=-1) for x in (queries, others)]
    return 2 * queries @ others.T - squares[0][:, None] - squares[1]


def _log(weights: Array) -> Array:
    """Logarithms; zero where the weight is zero."""
    return jnp.log(jnp.where(weights > 0, weights, 1))


def _check(ways: int) -> None:
    if ways < 1:
        raise ValueError(f"ways is {ways}; use 1 or more.")
