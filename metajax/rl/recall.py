"""A memory from observations to what followed them, next to a sequence model: for policies that read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.learners.sequence.recurrent import SequenceModel
from metajax.types import Array, Key, Params


class RecallParams(NamedTuple):
    """Parameters of `with_recall`.

    Attributes:
      model: Parameters of the sequence model.
      keys: Weights [D + 1, K] from an observation, and one, to keys.
      values: Weights [D', 2 V] from an observation, a decision and the observation after it to values and
        their gates.
      bias: Biases [2 V] of both.
    """

    model: Params
    keys: Array
    values: Array
    bias: Array


class RecallState(NamedTuple):
    """State of `with_recall`.

    Attributes:
      model: State of the sequence model.
      memory: Fast weights [K, V] from keys to sums of values.
    """

    model: Any
    memory: Array


def with_recall(
    sequence_model: SequenceModel, *, decision: int, keys: int = 32, values: int = 32
) -> SequenceModel:
    """Adds a memory that is asked what followed observations like the present one.

    The memory is a matrix of fast weights. Each step adds to it the outer product of a key of unit length,
    made of the observation that was answered, and a value, made of the whole transition: what the table of a
    Markov decision process holds, summed over visits. It is read by the key of the present observation, made
    with the same weights, so that it is of use before anything is learned. What it returns goes into the
    sequence model and into the output.

    Args:
      sequence_model: Sequence model, such as `metajax.learners.gru_model(64)`.
      decision: Number of features of a decision, between the two observations of a step: A + 2 in
        `reading_policy`, which must read transitions.
      keys: Numbers K of a key.
      values: Numbers V of a value.

    Returns:
      A sequence model with outputs [H + V], of the vectors of `reading_policy(transitions=True)`.

    Raises:
      ValueError: If a number is below 1.

    Example:
      >>> model = with_recall(metajax.learners.gru_model(4), decision=5, keys=3, values=2)
      >>> params = jax.eval_shape(lambda key: model.init(key, 9, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(9))
      >>> jax.eval_shape(read, params)[1].shape
      (6,)

    Reference: linear attention as fast weights, Schlag et al., 2021 (https://arxiv.org/abs/2102.11174),
    section 3; one network for keys and queries as in neural episodic control, Pritzel et al., 2017
    (https://arxiv.org/abs/1703.01988), section 3.
    """
    for name, number in (("decision", decision), ("keys", keys), ("values", values)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")

    def init(key: Key, features: int, dtype: Any) -> RecallParams:
        model_key, key_key, value_key = jax.random.split(key, 3)
        observed, rest = divmod(features - decision, 2)
        if rest or observed < 1:
            raise ValueError(
                f"Vectors of {features} numbers are no two observations and a decision of {decision}; use "
                "reading_policy(transitions=True)."
            )
        # The last row is of one: small next to an observation, and the key where there is nothing to see.
        to_keys = jax.random.normal(key_key, (observed + 1, keys), dtype)
        draw = jax.nn.initializers.glorot_uniform()
        return RecallParams(
            sequence_model.init(model_key, features + values, dtype),
            to_keys.at[-1].multiply(0.1),
            draw(value_key, (features, 2 * values), dtype),
            jnp.zeros(2 * values, dtype),
        )

    def start(params: RecallParams) -> RecallState:
        shape = params.keys.shape[1], params.bias.shape[0] // 2
        return RecallState(sequence_model.start(params.model), jnp.zeros(shape, params.bias.dtype))

    def key_of(params: RecallParams, observed: Array) -> Array:
        key = observed @ params.keys[:-1] + params.keys[-1]
        return key * jax.lax.rsqrt(jnp.sum(key**2) + 1e-12)

    def step(params: RecallParams, state: RecallState, vector: Array) -> tuple[RecallState, Array]:
        observed = params.keys.shape[0] - 1
        now, before = vector[:observed], vector[observed + decision :]
        # A product, since what counts is the reward of an action: a sum over visits of r times one-hot a.
        value, gate = jnp.split(vector @ params.values + params.bias, 2)
        memory = state.memory + jnp.outer(key_of(params, before), value * jnp.tanh(gate))
        recalled = key_of(params, now) @ memory
        model, hidden = sequence_model.step(
            params.model, state.model, jnp.concatenate([vector, recalled])
        )
        return RecallState(model, memory), jnp.concatenate([hidden, recalled])

    return SequenceModel(init, start, step)
