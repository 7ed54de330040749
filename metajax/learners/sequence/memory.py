"""Memory-augmented neural network (MANN): an LSTM with an external memory, read by content.

Letters: `H` units of the controller, `R` heads, `M` slots, `W` numbers per slot.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.learners.sequence.recurrent import SequenceModel
from metajax.learners.states import unit
from metajax.nn import recurrent as cells
from metajax.types import Array, Key


class MannParams(NamedTuple):
    """Parameters of the memory-augmented network.

    Attributes:
      controller: LSTM that reads a vector and the last memory reads.
      keys: Weights [H, R W] of the keys k, which heads search for and write.
      gates: Weights [H, R] of the write gates alpha: 1 writes to the slot read last, 0 to the least used.
    """

    controller: cells.CellParams
    keys: Array
    gates: Array


class MannState(NamedTuple):
    """State of the memory-augmented network.

    Attributes:
      controller: State of the controller.
      memory: Memory [M, W].
      usage: Decayed sums [M] of the read and write weights of each slot.
      weights: Read weights [R, M] of the last step.
    """

    controller: cells.LstmState
    memory: Array
    usage: Array
    weights: Array


def mann_model(
    *,
    units: int = 200,
    slots: int = 128,
    slot_width: int = 40,
    heads: int = 4,
    scale: float = 1.0,
    decay: float = 0.99,
) -> SequenceModel:
    """Makes a sequence model with a memory whose least recently used slots are overwritten.

    Args:
      units: Number of units H of the controller, an LSTM.
      slots: Number of memory slots M, at least R.
      slot_width: Number of values W per slot.
      heads: Number of heads R; each reads and writes.
      scale: Factor of the cosines before the softmax of reading, above 0. With 1, as in the paper, no slot
        is read more than e^2 times as much as another, however many slots there are.
      decay: Decay gamma of the usage per step.

    Returns:
      A sequence model for `recurrent_learner`. Its output [H + R W] is the hidden state of the controller,
      then the values that the heads read. `recurrent_learner` presents an example together with its label,
      so the slot read last belongs to the pair before.

    Raises:
      ValueError: If a size is below 1, `scale` is not above 0, or there are more heads than slots.

    Example:
      >>> model = mann_model(units=8, slots=16, slot_width=4, heads=2)
      >>> params = jax.eval_shape(lambda key: model.init(key, 3, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(3))
      >>> state, output = jax.eval_shape(read, params)
      >>> state.memory.shape, output.shape
      ((16, 4), (16,))

    Reference: Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), eq. 2 to 8.
    """
    width = slot_width
    given = {"units": units, "slots": slots, "slot_width": width, "heads": heads}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; use 1 or more.")
    if scale <= 0:
        raise ValueError(f"scale is {scale}; use a number above 0, such as 1.")
    if heads > slots:
        raise ValueError(f"{heads} heads write to {slots} slots; use as many slots or more.")

    def init(key: Key, features: int, dtype: Any) -> MannParams:
        controller_key, keys_key, gates_key = jax.random.split(key, 3)
        glorot = jax.nn.initializers.glorot_uniform()
        return MannParams(
            cells.init_lstm(controller_key, features + heads * width, units, dtype),
            glorot(keys_key, (units, heads * width), dtype),
            glorot(gates_key, (units, heads), dtype),
        )

    def start(params: MannParams) -> MannState:
        dtype = params.keys.dtype
        # Not quite zero: the cosine with a vector of zeros is undefined.
        memory = jnp.full((slots, width), 1e-6, dtype)
        return MannState(
            cells.lstm_zeros(units, dtype=dtype),
            memory,
            jnp.zeros(slots, dtype),
            jnp.zeros((heads, slots), dtype),
        )

    def step(params: MannParams, state: MannState, vector: Array) -> tuple[MannState, Array]:
        before = (state.weights @ state.memory).reshape(-1)
        controller = cells.lstm(
            params.controller, state.controller, jnp.concatenate([vector, before])
        )
        hidden = controller.hidden
        keys = jnp.tanh(hidden @ params.keys).reshape(heads, width)
        gates = jax.nn.sigmoid(hidden @ params.gates)[:, None]
        memory, written = write(state, keys, gates)
        # Read weights, eq. 2 and 3, use the memory before this write: the slot just written equals the key
        # and would always win.
        weights = jax.nn.softmax(scale * cosines(keys, state.memory))
        # Eq. 5: usage decays, and grows by the read and write weights.
        usage = decay * state.usage + jnp.sum(weights, axis=0) + jnp.sum(written, axis=0)
        output = jnp.concatenate([hidden, (weights @ memory).reshape(-1)])
        return MannState(controller, memory, usage, weights), output

    return SequenceModel(init, start, step)


def write(state: MannState, keys: Array, gates: Array) -> tuple[Array, Array]:
    """Writes keys to memory: least recently used access, eq. 6 to 8.

    A head writes to the slot that it read last (gate 1) or to the R least used slots (gate 0). The least used
    slot is cleared first.

    Args:
      state: State before the write.
      keys: Float keys [R, W].
      gates: Float write gates [R, 1] in [0, 1].

    Returns:
      The new memory [M, W] and the write weights [R, M].
    """
    chex.assert_rank([keys, gates], 2)
    heads, slots = state.weights.shape
    _, least = jax.lax.top_k(-state.usage, heads)
    spare = jnp.sum(jax.nn.one_hot(least, slots, dtype=keys.dtype), axis=0)
    weights = gates * state.weights + (1 - gates) * spare  # eq. 7
    kept = 1 - jax.nn.one_hot(least[0], slots, dtype=keys.dtype)
    return kept[:, None] * state.memory + weights.T @ keys, weights  # eq. 8


def cosines(keys: Array, memory: Array) -> Array:
    """Computes the cosine similarities of keys and memory slots, eq. 2.

    Args:
      keys: Float keys [R, W].
      memory: Memory [M, W].

    Returns:
      Cosines [R, M]; zero for a vector of zeros.
    """
    chex.assert_rank([keys, memory], 2)
    return unit(keys) @ unit(memory).T
