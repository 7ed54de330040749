"""Full context embeddings of matching networks: features that depend on the whole support set."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.nn import recurrent as cells
from metajax.types import Array, Key, Params


class Context(NamedTuple):
    """Network that embeds features in the context of the support set.

    Attributes:
      init: Function (key, number of features D, dtype) -> params.
      apply: Function (params, support [C, D], weights [C], queries [B, D]) -> (support [C, D], queries
        [B, D]).
    """

    init: Callable[[Key, int, Any], Params]
    apply: Callable[[Params, Array, Array, Array], tuple[Array, Array]]


class FullContextParams(NamedTuple):
    """Parameters of full context embeddings.

    Attributes:
      forward: LSTM that reads the support set in its order.
      backward: LSTM that reads it in reverse order.
      query: LSTM of a query, which attends to the support set.
    """

    forward: cells.CellParams
    backward: cells.CellParams
    query: cells.CellParams


def full_context_embeddings(steps: int = 5) -> Context:
    """Makes the full context embeddings g and f of matching networks.

    A bidirectional LSTM embeds the support set, g(x, S) = g'(x) + forward + backward hidden state; an LSTM
    with attention to the result embeds each query, f(x, S).

    Args:
      steps: Number K of times that a query attends to the support set, 0 or more.

    Returns:
      A network for the option `context` of `matching`.

    Raises:
      ValueError: If `steps` is negative.

    Example:
      >>> context = full_context_embeddings(steps=2)
      >>> learner = metajax.matching(metajax.toys.toy_model(None), ways=3, context=context)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((6, 2)))
      >>> meta.comparer.query.hidden.shape  # an LSTM of D = 8 units has 4 gates
      (8, 32)

    Reference: Vinyals et al., 2016 (https://arxiv.org/abs/1606.04080), section 2.1.2 and appendix A.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")

    def init(key: Key, features: int, dtype: Any) -> FullContextParams:
        forward_key, backward_key, query_key = jax.random.split(key, 3)
        return FullContextParams(
            cells.init_lstm(forward_key, features, features, dtype),
            cells.init_lstm(backward_key, features, features, dtype),
            cells.init_lstm(query_key, 2 * features, features, dtype),
        )

    def apply(
        params: FullContextParams, support: Array, weights: Array, queries: Array
    ) -> tuple[Array, Array]:
        chex.assert_rank([support, weights, queries], [2, 1, 2])
        chex.assert_equal_shape_prefix([support, weights], 1)
        forward = _read(params.forward, support, weights)
        backward = _read(params.backward, support[::-1], weights[::-1])[::-1]
        support = support + forward + backward
        return support, jax.vmap(lambda query: _attend(params.query, support, weights, query))(
            queries
        )

    def _attend(params: cells.CellParams, support: Array, weights: Array, query: Array) -> Array:
        """Embeds one query [D] by the attention LSTM, eq. 3 to 6."""

        def step(state, _):
            scores = jnp.where(weights > 0, support @ state.hidden, -1e9)
            read = jax.nn.softmax(scores) @ support  # eq. 5 and 6
            state = cells.lstm(params, state, jnp.concatenate([query, read]))  # eq. 3
            return state._replace(hidden=state.hidden + query), None  # eq. 4

        state = cells.lstm_zeros(query.shape[0], dtype=query.dtype)._replace(hidden=query)
        return jax.lax.scan(step, state, length=steps)[0].hidden

    return Context(init, apply)


def _read(params: cells.CellParams, support: Array, weights: Array) -> Array:
    """Returns the hidden states [C, D] of an LSTM over the support set [C, D]."""
    start = cells.lstm_zeros(support.shape[1], dtype=support.dtype)
    step = functools.partial(cells.lstm, params)
    return cells.read(step, start, support, weights, keep=lambda state: state.hidden)[1]
