"""A learner that answers each query alone, so that no answer depends on the other queries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.learners.states import put_behind, require_like, zeros_of
from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Tree

TOGETHER = 8  # queries that are answered at once, each in a batch with all support inputs


class OneQueryFast(NamedTuple):
    """What one task leaves behind.

    Attributes:
      fast: The learner's own fast state.
      inputs: Support inputs [C, ...], those seen so far first.
      weights: Their weights [C], zero where there is room.
    """

    fast: Fast
    inputs: Tree
    weights: Array


def one_query_at_a_time(learner: Learner) -> Learner:
    """Answers each query by itself, in one batch with the support inputs.

    Under batch norm this is the way to an answer that does not depend on the other queries.

    Args:
      learner: Any learner whose output for an example stands at the example's place.

    Returns:
      A learner of the same meta-parameters, with `OneQueryFast`, whose `start` needs `like`. The batch of a
      query always has as many rows as there is room for: padding takes no room, and where there is more room
      than examples, the examples are repeated in turn to fill it, which batch norm sees. Before the first
      example the rows are zeros. Answers are NaN where a compiled program had no room for all examples.

    Reference: Nichol et al., 2018 (https://arxiv.org/abs/1803.02999), section 6.1.
    """

    def start(meta: Meta, key: Key, like: Batch | None = None) -> OneQueryFast:
        inputs = zeros_of(require_like(like).inputs)
        weights = jnp.zeros(trees.count(inputs), jnp.float32)
        return OneQueryFast(learner.start(meta, key, like), inputs, weights)

    def adapt(meta: Meta, fast: OneQueryFast, key: Key, batch: Batch) -> OneQueryFast:
        kept = put_behind(fast.inputs, fast.weights, batch.inputs, batch.weights)
        return OneQueryFast(learner.adapt(meta, fast.fast, key, batch), *kept)

    def predict(meta: Meta, fast: OneQueryFast, inputs: Tree) -> Tree:
        room, seen = len(fast.weights), jnp.sum(fast.weights != 0)
        rows = trees.take(fast.inputs, jnp.arange(room) % jnp.maximum(seen, 1))

        def answer(query: Tree) -> Tree:
            outputs = learner.predict(meta, fast.fast, trees.append(rows, query))
            return trees.take(outputs, -1)

        # Inputs of integers do not say that there was no room; weights do.
        full = jnp.sum(jnp.where(jnp.isnan(fast.weights), fast.weights, 0))
        outputs = jax.lax.map(answer, inputs, batch_size=TOGETHER)
        return jax.tree.map(lambda leaf: leaf + full.astype(leaf.dtype), outputs)

    return Learner(learner.init, start, adapt, predict, lambda fast: learner.adapted(fast.fast))
