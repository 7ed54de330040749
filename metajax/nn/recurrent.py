"""Recurrent cells as pure functions of parameters, a state and one input."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array


class CellParams(NamedTuple):
    """Parameters of a cell with G gates, H units and inputs of D features.

    Attributes:
      input: Weights [D, G H] of the input.
      hidden: Weights [H, G H] of the hidden state.
      bias: Biases [G H].
    """

    input: Array
    hidden: Array
    bias: Array


class LstmState(NamedTuple):
    """State of an LSTM with H units.

    Attributes:
      hidden: Hidden state [..., H], the output of the cell.
      cell: Cell state [..., H], its memory.
    """

    hidden: Array
    cell: Array


def init_lstm(key: Key, features: int, units: int, dtype: Any = jnp.float32) -> CellParams:
    """Draws an LSTM's parameters; the forget gate's bias starts at one.

    Args:
      key: Random key; consumed.
      features: Features D of an input.
      units: Units H.
      dtype: Dtype of the parameters.

    Returns:
      Parameters of four gates: input, forget, candidate, output.

    Example:
      >>> params = jax.eval_shape(lambda key: init_lstm(key, 3, 4), jax.random.key(0))
      >>> params.input.shape, params.hidden.shape
      ((3, 16), (4, 16))
    """
    params = _init(key, features, units, 4, dtype)
    return params._replace(bias=params.bias.at[units : 2 * units].set(1))


def lstm(params: CellParams, state: LstmState, inputs: Array) -> LstmState:
    """Takes one step of long short-term memory.

    Args:
      params: Parameters of four gates: input, forget, candidate, output.
      state: State [..., H] before the step.
      inputs: Float inputs [..., D].

    Returns:
      State [..., H] after the step.

    Example:
      >>> params = init_lstm(jax.random.key(0), 3, 4)
      >>> lstm(params, lstm_zeros(4), jnp.ones(3)).hidden.shape
      (4,)

    Reference: Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, section 3.
    """
    gates = inputs @ params.input + state.hidden @ params.hidden + params.bias
    write, keep, candidate, show = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(keep) * state.cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return LstmState(jax.nn.sigmoid(show) * jnp.tanh(cell), cell)


def lstm_zeros(units: int, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> LstmState:
    """Makes the state before the first input.

    Args:
      units: Units H.
      shape: Leading axes of the state.
      dtype: Dtype of the state.

    Returns:
      A state of zeros, [*shape, H].

    Example:
      >>> lstm_zeros(4, (2,)).cell.shape
      (2, 4)
    """
    zeros = jnp.zeros((*shape, units), dtype)
    return LstmState(zeros, zeros)


def init_gru(key: Key, features: int, units: int, dtype: Any = jnp.float32) -> CellParams:
    """Draws a GRU's parameters.

    Args:
      key: Random key; consumed.
      features: Features D of an input.
      units: Units H.
      dtype: Dtype of the parameters.

    Returns:
      Parameters of three gates: update, reset, candidate.

    Example:
      >>> params = jax.eval_shape(lambda key: init_gru(key, 3, 4), jax.random.key(0))
      >>> params.input.shape
      (3, 12)
    """
    return _init(key, features, units, 3, dtype)


def gru(params: CellParams, state: Array, inputs: Array) -> Array:
    """Takes one step of a gated recurrent unit.

    Args:
      params: Parameters of three gates: update, reset, candidate.
      state: Float state [..., H] before the step.
      inputs: Float inputs [..., D].

    Returns:
      State [..., H] after the step.

    Example:
      >>> params = init_gru(jax.random.key(0), 3, 4)
      >>> gru(params, jnp.zeros(4), jnp.ones(3)).shape
      (4,)

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
    """Runs a cell over a sequence; padding leaves the state unchanged.

    Args:
      step: Function (state, input) -> state after it.
      state: State before the first input, a tree of arrays.
      sequence: Float inputs [L, ...].
      weights: Float weights [L]; zero marks padding.
      keep: Function state -> tree of arrays to return for each input; by default nothing.

    Returns:
      The last state, and the kept trees, stacked to [L, ...].

    Example:
      >>> total, sums = read(lambda s, x: s + x, 0.0, jnp.ones(3), jnp.array([1, 1, 0]), keep=lambda s: s)
      >>> float(total), sums.tolist()
      (2.0, [1.0, 2.0, 2.0])
    """
    chex.assert_rank(weights, 1)

    def advance(state: Any, input_and_weight: tuple[Array, Array]) -> tuple[Any, Any]:
        vector, weight = input_and_weight
        after = step(state, vector)
        after = jax.tree.map(lambda new, old: jnp.where(weight > 0, new, old), after, state)
        return after, keep(after)

    return jax.lax.scan(advance, state, (sequence, weights))


def _init(key: Key, features: int, units: int, gates: int, dtype: Any) -> CellParams:
    """Draws Glorot-uniform input weights, one orthogonal matrix per gate, and zero biases."""
    input_key, hidden_key = jax.random.split(key)
    square = jax.nn.initializers.orthogonal()
    hidden = [square(key, (units, units), dtype) for key in jax.random.split(hidden_key, gates)]
    return CellParams(
        jax.nn.initializers.glorot_uniform()(input_key, (features, gates * units), dtype),
        jnp.concatenate(hidden, axis=1),
        jnp.zeros(gates * units, dtype),
    )
