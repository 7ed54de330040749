"""Transformer and SNAIL as sequence models: they read one vector at a time and keep what they have read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import nn
from metajax.learners.sequence import convolutions, transformer
from metajax.learners.sequence.recurrent import SequenceModel
from metajax.types import Array, Key, Params


class TransformerParams(NamedTuple):
    """Parameters of `transformer_model`.

    Attributes:
      token: Weights [D, E] from vectors to tokens.
      places: Embeddings [L, E] of the positions.
      blocks: Parameters of all layers, every leaf [layers, ...].
      norm: Scale and bias [2, E] of the norm of the outputs.
    """

    token: Array
    places: Array
    blocks: transformer.Block
    norm: Array


class ReadSoFar(NamedTuple):
    """State of a sequence model that keeps what it has read.

    Attributes:
      kept: Tree of arrays with an axis [L] of positions.
      taken: Number of vectors read, an int scalar.
    """

    kept: Any
    taken: Array


def transformer_model(
    length: int, *, width: int = 64, layers: int = 2, heads: int = 4
) -> SequenceModel:
    """Makes a causal transformer with learned positions, which keeps keys and values of all it has read.

    Args:
      length: Largest number L of vectors of a sequence; outputs after more are NaN.
      width: Numbers E in a token, a multiple of `heads`.
      layers: Number of layers.
      heads: Number of attention heads.

    Returns:
      A sequence model for `recurrent_learner` and `metajax.rl.reading_policy`, with outputs [E].

    Raises:
      ValueError: If `length`, `width` or `layers` is below 1, or `heads` does not divide `width`.

    Example:
      >>> model = transformer_model(10, width=8, heads=2)
      >>> params = jax.eval_shape(lambda key: model.init(key, 2, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(2))
      >>> jax.eval_shape(read, params)[1].shape
      (8,)

    Reference: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), section 3, with norms before each
    layer; as a policy that reads its history, Mishra et al., 2018 (https://arxiv.org/abs/1707.03141), and
    Melo, 2022 (https://arxiv.org/abs/2206.06614), section 4.
    """
    _check(length=length, width=width, layers=layers, heads=heads)
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}; use a divisor.")

    def init(key: Key, features: int, dtype: Any) -> TransformerParams:
        token_key, place_key, block_key = jax.random.split(key, 3)
        draw = jax.nn.initializers.glorot_uniform()
        return TransformerParams(
            draw(token_key, (features, width), dtype),
            jax.random.normal(place_key, (length, width), dtype) / 10,
            transformer.init_blocks(block_key, layers, width, dtype),
            jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)]),
        )

    def start(params: TransformerParams) -> ReadSoFar:
        nothing = jnp.zeros((layers, length, width), params.token.dtype)
        return ReadSoFar((nothing, nothing), jnp.zeros((), jnp.int32))

    def step(params: TransformerParams, state: ReadSoFar, vector: Array) -> tuple[Any, Array]:
        place = jnp.minimum(state.taken, length - 1)
        token = (vector @ params.token + params.places[place])[None]
        seen = jnp.arange(length) <= place

        def layer(token: Array, block_and_memory: Any) -> tuple[Array, Any]:
            block, keys, values = block_and_memory
            query, key, value = transformer.project(block, token)
            keys, values = keys.at[place].set(key[0]), values.at[place].set(value[0])
            answer = nn.attend(query, keys, values, heads=heads, seen=seen)
            return transformer.feed_forward(block, token + answer @ block.out), (keys, values)

        token, kept = jax.lax.scan(layer, token, (params.blocks, *state.kept))
        output = transformer.layer_norm(token, params.norm)[0]
        return ReadSoFar(kept, state.taken + 1), _nan_after(length, state.taken, output)

    return SequenceModel(init, start, step)


def snail_model(length: int, *, width: int = 32) -> SequenceModel:
    """Makes SNAIL's stack of attention and dilated causal convolutions, which keeps the inputs of all layers.

    Args:
      length: Largest number L of vectors of a sequence, 2 or more; outputs after more are NaN. Dilations
        double until a stack of convolutions spans it.
      width: Number of channels that each convolution appends to its input, 4 or more.

    Returns:
      A sequence model for `recurrent_learner` and `metajax.rl.reading_policy`.

    Raises:
      ValueError: If `length` is below 2 or `width` below 4.

    Example:
      >>> model = snail_model(10, width=4)
      >>> params = jax.eval_shape(lambda key: model.init(key, 2, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(2))
      >>> jax.eval_shape(read, params)[1].shape
      (47,)

    Reference: Mishra et al., 2018 (https://arxiv.org/abs/1707.03141), section 3 and figure 2.
    """
    plan = convolutions.layers_of(length, width)

    def init(key: Key, features: int, dtype: Any) -> tuple[Params, ...]:
        return convolutions.init_layers(key, plan, features, width, dtype)[0]

    def start(params: tuple[Params, ...]) -> ReadSoFar:
        # The first axis of a layer's weights is the number of its inputs.
        kept = tuple(jnp.zeros((length, layer[0].shape[0]), layer[0].dtype) for layer in params)
        return ReadSoFar(kept, jnp.zeros((), jnp.int32))

    def step(params: tuple[Params, ...], state: ReadSoFar, vector: Array) -> tuple[Any, Array]:
        place = jnp.minimum(state.taken, length - 1)
        x, kept = vector[None], []
        for layer, own, past in zip(plan, params, state.kept, strict=True):
            kept.append(past.at[place].set(x[0]))
            x = convolutions.apply_layer(layer, own, x, past, place[None])
        after = ReadSoFar(tuple(kept), state.taken + 1)
        return after, _nan_after(length, state.taken, x[0])

    return SequenceModel(init, start, step)


def _check(**numbers: int) -> None:
    """Raises ValueError for the first number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")


def _nan_after(length: int, count: Array, output: Array) -> Array:
    """Replaces the output by NaN where more than `length` vectors were read: nothing silently wrong."""
    return jnp.where(count < length, output, jnp.nan)
