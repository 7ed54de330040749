"""Recurrent cells as pure functions of parameters, a state and one input."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array


class CellParams(NamedTuple):
    """Of a cell with G gates, H units and inputs of D features.

    Attributes:
      input: [D, G H].
      hidden: [H, G H].
      bias: [G H].
    """

    input: Array
    hidden: Array
    bias: Array


class LstmState(NamedTuple):
    """Attributes:
    hidden: [..., H] what the cell says.
    cell: [..., H] what it remembers.
    """

    hidden: Array
    cell: Array


def init_lstm(key: Key, features: int, units: int, dtype: jnp.dtype = jnp.float32) -> CellParams:
    """Draws an LSTM's parameters; the forget gate's bias starts at one."""
    params = _init(key, features, units, 4, dtype)
    return params._replace(bias=params.bias.at[units : 2 * units].set(1))


def lstm(params: CellParams, state: LstmState, inputs: Array) -> LstmState:
    """One step of long short-term memory on inputs [..., D]; gates are input, forget, candidate, output.

    Reference: Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, section 3.
    """
    gates = inputs @ params.input + state.hidden @ params.hidden + params.bias
    write, keep, candidate, show = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(keep) * state.cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return LstmState(jax.nn.sigmoid(show) * jnp.tanh(cell), cell)


def lstm_zeros(
    units: int, shape: tuple[int, ...] = (), dtype: jnp.dtype = jnp.float32
) -> LstmState:
    """The state [..., H] before the first input."""
    zeros = jnp.zeros((*shape, units), dtype)
    return LstmState(zeros, zeros)


def init_gru(key: Key, features: int, units: int, dtype: jnp.dtype = jnp.float32) -> CellParams:
    """Draws a GRU's parameters."""
    return _init(key, features, units, 3, dtype)


def gru(params: CellParams, state: Array, inputs: Array) -> Array:
    """One step of a gated recurrent unit from state [..., H] on inputs [..., D]; returns the state.

    Reference: Cho et al., 2014 (https://arxiv.org/abs/1406.1078), eq. 5 to 8, with the reset gate after the
    product, as in cuDNN.
    """
    update_in, reset_in, new_in = jnp.split(inputs @ params.input + params.bias, 3, axis=-1)
    update_of, reset_of, new_of = jnp.split(state @ params.hidden, 3, axis=-1)
    update = jax.nn.sigmoid(update_in + update_of)
    new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_of) * new_of)
    return (1 - update) * new + update * state


def read(
    step: Callable[[Any, Array], Any],
    state: Any,
    sequence: Array,
    weights: Array,
    *,
    keep: Callable[[Any], Any] = lambda state: None,
) -> tuple[Any, Any]:
    """Reads a sequence, of which padding leaves the state as it was.

    Args:
      step: (state, vector) -> the state after it.
      state: before the first vector.
      sequence: [n, ...].
      weights: [n]; zero marks padding.
      keep: what to return of each state.

    Returns:
      The last state, and what was kept of each, [n, ...].
    """

    def go_on(state: Any, vector_and_weight: tuple[Array, Array]) -> tuple[Any, Any]:
        vector, weight = vector_and_weight
        after = step(state, vector)
        after = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, state)
        return after, keep(after)

    return jax.lax.scan(go_on, state, (sequence, weights))


def _init(key: Key, features: int, units: int, gates: int, dtype: jnp.dtype) -> CellParams:
    input_key, hidden_key = jax.random.split(key)
    square = jax.nn.initializers.orthogonal()
    hidden = [square(key, (units, units), dtype) for key in jax.random.split(hidden_key, gates)]
    return CellParams(
        jax.nn.initializers.glorot_uniform()(input_key, (features, gates * units), dtype),
        jnp.concatenate(hidden, axis=1),
        jnp.zeros(gates * units, dtype),
    )
