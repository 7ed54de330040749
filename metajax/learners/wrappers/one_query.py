"""One query at a time: predictions that do not depend on the other queries of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.learners.states import put_behind, require_like, zeros_of
from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Tree

TOGETHER = 8  # queries computed in parallel, each in its own batch with all support inputs


class OneQueryFast(NamedTuple):
    """Fast state of a learner that predicts one query at a time.

    Attributes:
      fast: Fast state of the wrapped learner.
      inputs: Support inputs [C, ...], the examples so far first.
      weights: Float weights [C]; zero in unused rows.
    """

    fast: Fast
    inputs: Tree
    weights: Array


def one_query_at_a_time(learner: Learner, *, together: int | None = TOGETHER) -> Learner:
    """Predicts each query in its own batch, together with the support inputs.

    With batch norm, this makes predictions independent of the other queries: not transductive. The batch of a
    query always has C + 1 rows, where C is the number of examples in the `like` of `start`. Padding takes no
    row. If fewer than C examples were seen, they are repeated in turn to fill the rows, which batch norm
    sees; before the first example the rows are zeros.

    Args:
      learner: Learner whose output for an example is at the position of the example.
      together: Number of queries that are computed in parallel, each in its own batch; None computes one
        after another, and allows a symbolic number of queries, as `jax.export` has it.

    Returns:
      A learner with the same meta-parameters and fast state `OneQueryFast`; its `start` requires `like`.
      Predictions are NaN if a compiled program exceeded the capacity C.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = one_query_at_a_time(metajax.protonet(metajax.toys.toy_model(None), ways=3))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Nichol et al., 2018 (https://arxiv.org/abs/1803.02999), section 6.1.
    """

    def start(meta: Meta, key: Key, like: Batch | None = None) -> OneQueryFast:
        inputs = zeros_of(require_like(like).inputs)
        weights = jnp.zeros(trees.count(inputs), jnp.float32)
        return OneQueryFast(learner.start(meta, key, like), inputs, weights)

    def adapt(meta: Meta, fast: OneQueryFast, key: Key, batch: Batch) -> OneQueryFast:
        inputs, weights = put_behind(fast.inputs, fast.weights, batch.inputs, batch.weights)
        return OneQueryFast(learner.adapt(meta, fast.fast, key, batch), inputs, weights)

    def predict(meta: Meta, fast: OneQueryFast, inputs: Tree) -> Tree:
        room, seen = fast.weights.shape[0], jnp.sum(fast.weights != 0)
        rows = trees.take(fast.inputs, jnp.arange(room) % jnp.maximum(seen, 1))

        def answer(query: Tree) -> Tree:
            outputs = learner.predict(meta, fast.fast, trees.append(rows, query))
            return trees.take(outputs, -1)

        # Integer inputs cannot be NaN where the capacity was exceeded; weights can.
        full = jnp.sum(jnp.where(jnp.isnan(fast.weights), fast.weights, 0))
        outputs = jax.lax.map(answer, inputs, batch_size=together)
        return jax.tree.map(lambda leaf: leaf + full.astype(leaf.dtype), outputs)

    return Learner(learner.init, start, adapt, predict, lambda fast: learner.adapted(fast.fast))
