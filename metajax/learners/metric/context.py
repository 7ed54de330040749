"""Full context embeddings of matching networks: features in view of the whole support set."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.nn import recurrent as cells
from metajax.types import Array, Key, Params


class Context(NamedTuple):
    """What embeds features in view of the support set.

    Attributes:
      init: (key, features D, dtype) -> params.
      apply: (params, support [n, D], weights [n], queries [B, D]) -> support [n, D] and queries [B, D].
    """

    init: Callable[[Key, int, Any], Params]
    apply: Callable[[Params, Array, Array, Array], tuple[Array, Array]]


class FullContextParams(NamedTuple):
    """LSTMs over the support set, in its order and against it, and that of a query that attends to it."""

    forward: cells.CellParams
    backward: cells.CellParams
    query: cells.CellParams


def full_context_embeddings(steps: int = 5) -> Context:
    """A bidirectional LSTM over the support set, and for each query an LSTM that attends to it.

    Args:
      steps: K, how often a query reads the support set.

    Reference: Vinyals et al., 2016 (https://arxiv.org/abs/1606.04080), section 2.1.2 and appendix A.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; use 0 or more.")

    def init(key: Key, features: int, dtype: Any) -> FullContextParams:
        *keys, query_key = jax.random.split(key, 3)
        both = (cells.init_lstm(k, features, features, dtype) for k in keys)
        return FullContextParams(*both, cells.init_lstm(query_key, 2 * features, features, dtype))

    def apply(
        params: FullContextParams, support: Array, weights: Array, queries: Array
    ) -> tuple[Array, Array]:
        there = _read(params.forward, support, weights)
        back = _read(params.backward, support[::-1], weights[::-1])[::-1]
        support = support + there + back
        return support, jax.vmap(lambda query: _attend(params.query, support, weights, query))(
            queries
        )

    def _attend(params: cells.CellParams, support: Array, weights: Array, query: Array) -> Array:
        def step(state, _):
            scores = jnp.where(weights > 0, support @ state.hidden, -1e9)
            read = jax.nn.softmax(scores) @ support
            state = cells.lstm(params, state, jnp.concatenate([query, read]))
            return state._replace(hidden=state.hidden + query), None

        state = cells.lstm_zeros(len(query), dtype=query.dtype)._replace(hidden=query)
        return jax.lax.scan(step, state, length=steps)[0].hidden

    return Context(init, apply)


def _read(params: cells.CellParams, support: Array, weights: Array) -> Array:
    """Hidden states [n, D] of an LSTM over the support set."""
    start = cells.lstm_zeros(support.shape[1], dtype=support.dtype)
    step = functools.partial(cells.lstm, params)
    return cells.read(step, start, support, weights, keep=lambda state: state.hidden)[1]
