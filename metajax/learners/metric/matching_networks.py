"""Matching networks: attention over the support examples, by the cosines of features."""

import jax
import jax.numpy as jnp

from metajax.inner.scalars import Positive, as_positive
from metajax.learners.metric.base import MetricMeta, require_ways, similarities
from metajax.learners.metric.context import Context
from metajax.learners.states import (
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


def matching(
    encoder: Model,
    *,
    ways: int,
    scale: float | Positive = 1.0,
    context: Context | None = None,
) -> Learner[MetricMeta, Kept]:
    """Makes matching networks: a query's class probabilities are an average of the support labels.

    The weights of the average, the attention a of eq. 1, are a softmax over the cosines of query and support
    features, times `scale`.

    Args:
      encoder: Network without a head, with features [B, D].
      ways: Number of classes N. Learners of different N share their meta-parameters.
      scale: Factor of the cosines before the softmax, above 0; 1 in the paper. `metajax.learned(1.0)` learns
        it, starting at 1.
      context: Full context embeddings, made by `full_context_embeddings`; None compares features directly.

    Returns:
      A learner with meta-parameters `MetricMeta` and fast state `Kept`. Its outputs are log-probabilities
      [B, N]; the output of a class without examples is `states.ABSENT`.

    Raises:
      ValueError: If `ways` is below 1 or `scale` is invalid.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = matching(metajax.toys.toy_model(None), ways=3, scale=metajax.learned(10.0))
      >>> meta = jax.jit(learner.init)(jax.random.key(1), task.support.inputs)
      >>> answer = jax.jit(lambda key: metajax.objectives.query_outputs(learner, meta, key, task))
      >>> np.allclose(np.exp(answer(jax.random.key(2))).sum(axis=1), 1, atol=1e-5)
      True

    Reference: Vinyals et al., 2016 (https://arxiv.org/abs/1606.04080), eq. 1 and section 2.1.1.
    """
    require_ways(ways)
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
        # A weight w counts as w copies: softmax of s + log w. Rows of weight zero get no attention.
        attention = jax.nn.log_softmax(mask_absent(similar + _log(weights), weights))
        # log P(y = k | query) = logsumexp of the log-attention on the examples of class k.
        members = one_hot(targets, ways, jnp.dtype(bool), axis=0)
        by_class = jnp.where(members, attention[:, None], -jnp.inf)
        present = counts_of(fast.examples, ways)
        # For an absent class every term is -inf, where logsumexp has a NaN gradient; zeros do not, and
        # mask_absent replaces the result.
        by_class = jnp.where((present == 0)[:, None], 0, by_class)
        return mask_absent(jax.nn.logsumexp(by_class, axis=-1), present)

    return Learner(init, *keeping(features_by(encoder, "params"), ways), predict)


def _log(weights: Array) -> Array:
    """Computes logarithms of weights; zero where the weight is zero."""
    return jnp.log(jnp.where(weights > 0, weights, 1))
