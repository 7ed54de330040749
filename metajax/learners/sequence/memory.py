"""The memory-augmented network: a controller that writes to the slots used least and reads by content."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.learners.sequence.recurrent import SequenceModel
from metajax.learners.states import unit
from metajax.nn import recurrent as cells
from metajax.types import Array, Key


class MannParams(NamedTuple):
    """Attributes:
    controller: an LSTM that reads a vector and what was read from memory before it.
    keys: [H, R W] of what each of R heads looks for, and writes.
    gates: [H, R] of whether a head writes where it read last, or to a slot used least.
    """

    controller: cells.CellParams
    keys: Array
    gates: Array


class MannState(NamedTuple):
    """Attributes:
    controller: its state.
    memory: [M, W].
    usage: [M], how much each slot was lately read and written.
    weights: [R, M], where each head read last.
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
    """A memory with least-recently-used access, as a reader of sequences.

    Args:
      units: H, of the controller.
      slots: M.
      slot_width: W, numbers a slot.
      heads: R, each of which reads, and writes.
      scale: what cosines are multiplied by before the softmax of the reading: 1 in the paper, by which no
        slot is read more than e^2 times as much as another, however many there are.
      decay: what is left of a slot's usage after a step, gamma.

    Returns:
      A reader, for `reading`, whose output is the controller's hidden state and what the heads read,
      [H + R W]. As `reading` gives it an example and its label at once, and no label with a query, the slot
      read last is that of the pair before.

    Reference: Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), eq. 2 to 8.
    """
    width = slot_width
    given = {"units": units, "slots": slots, "slot_width": width, "heads": heads}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; use 1 or more.")
    if scale <= 0:
        raise ValueError(f"scale is {scale}; use one above 0, such as 1.")
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
        # Not quite zero, where a cosine has no direction.
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
        # By the memory before this write: the slot just written equals the key and would always win.
        weights = jax.nn.softmax(scale * cosines(keys, state.memory))
        usage = decay * state.usage + jnp.sum(weights, axis=0) + jnp.sum(written, axis=0)
        output = jnp.concatenate([hidden, (weights @ memory).reshape(-1)])
        return MannState(controller, memory, usage, weights), output

    return SequenceModel(init, start, step)


def write(state: MannState, keys: Array, gates: Array) -> tuple[Array, Array]:
    """Writes keys [R, W] where each head read last (gate 1) or to the slots used least (gate 0), eq. 5 to 7.

    Returns:
      The memory [M, W], of which the slot used least was wiped first, and the weights [R, M] of the writing.
    """
    heads, slots = state.weights.shape
    _, least = jax.lax.top_k(-state.usage, heads)
    spare = jnp.sum(jax.nn.one_hot(least, slots, dtype=keys.dtype), axis=0)
    weights = gates * state.weights + (1 - gates) * spare
    kept = 1 - jax.nn.one_hot(least[0], slots, dtype=keys.dtype)
    return kept[:, None] * state.memory + weights.T @ keys, weights


def cosines(keys: Array, memory: Array) -> Array:
    """Cosine similarities of keys [R, W] and slots [M, W], [R, M]."""
    return unit(keys) @ unit(memory).T
