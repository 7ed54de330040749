"""Full context embeddings, against their equations written out in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.learners.metric.context import full_context_embeddings
from metajax.nn import recurrent as cells

KEY = jax.random.key(0)


def test_embeddings_are_their_equations(float64):
    context, dim = full_context_embeddings(3), 4
    params = context.init(KEY, dim, jnp.float64)
    support = jax.random.normal(KEY, (3, dim), jnp.float64)
    queries = jax.random.normal(jax.random.key(1), (2, dim), jnp.float64)
    embedded, asked = context.apply(params, support, jnp.ones(3), queries)

    def states(cell, sequence):
        state, found = cells.lstm_zeros(dim, dtype=jnp.float64), []
        for vector in sequence:
            state = cells.lstm(cell, state, vector)
            found.append(np.asarray(state.hidden))
        return found

    there, back = states(params.forward, support), states(params.backward, support[::-1])[::-1]
    g = np.asarray(support) + there + back  # g(x_i, S) = h_i forward + h_i backward + g'(x_i)
    np.testing.assert_allclose(embedded, g, rtol=1e-9)
    for query, got in zip(queries, asked, strict=True):
        state = cells.LstmState(query, jnp.zeros(dim))
        for _ in range(3):
            read = jax.nn.softmax(g @ state.hidden) @ g  # eq. 5 and 6
            state = cells.lstm(params.query, state, jnp.concatenate([query, read]))  # eq. 3
            state = state._replace(hidden=state.hidden + query)  # eq. 4: h_k = h^_k + f'(x)
        np.testing.assert_allclose(got, state.hidden, rtol=1e-9)


def test_padding_is_neither_read_nor_attended_to(float64):
    context = full_context_embeddings(2)
    params = context.init(KEY, 4, jnp.float64)
    support = jax.random.normal(KEY, (3, 4), jnp.float64)
    padded = jnp.concatenate(
        [support[:1], jnp.full((1, 4), 7.0), support[1:], jnp.full((1, 4), 9.0)]
    )
    weights = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    embedded, asked = context.apply(params, padded, weights, support)
    expected, answers = context.apply(params, support, jnp.ones(3), support)
    np.testing.assert_allclose(embedded[np.array([0, 2, 3])], expected, rtol=1e-12)
    np.testing.assert_allclose(asked, answers, rtol=1e-12)


def test_a_negative_number_of_readings_is_refused():
    with pytest.raises(ValueError, match="steps is -1; use 0 or more"):
        full_context_embeddings(-1)
