"""SNAIL: dilated causal convolutions aggregate the examples so far, causal attention selects among them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.deprecation import renamed_arguments
from metajax.learners.states import (
    Examples,
    Kept,
    check_ways,
    exact,
    features_by,
    init_encoder,
    keeping,
    labels_of,
)
from metajax.types import Array, Key, Learner, Model, Params, Tree


class Convolution(NamedTuple):
    """Parameters of a gated causal convolution of two taps, from `I` to `F` numbers.

    Attributes:
      now: Weights [I, 2 F] of the current position: F values, then F gates.
      before: Weights [I, 2 F] of one earlier position.
      bias: Biases [2 F].
    """

    now: Array
    before: Array
    bias: Array


class Attention(NamedTuple):
    """Parameters of a causal attention on `I` numbers per position.

    Attributes:
      keys: Weights [I, E] of keys.
      queries: Weights [I, E] of queries.
      values: Weights [I, V] of values.
    """

    keys: Array
    queries: Array
    values: Array


class SnailMeta(NamedTuple):
    """Meta-parameters of SNAIL.

    Attributes:
      encoder: Parameters of the encoder.
      layers: Tuple of `Attention` and `Convolution`, one per layer.
      head: Weights [I, N] of the last linear layer.
      bias: Biases [N] of the last linear layer.
    """

    encoder: Params
    layers: tuple[Any, ...]
    head: Array
    bias: Array


@renamed_arguments(values="num_outputs")
def snail(
    encoder: Model,
    *,
    ways: int | None,
    length: int,
    width: int = 128,
    num_outputs: int = 1,
) -> Learner[SnailMeta, Kept]:
    """Reads (example, label) pairs, then a query, with alternating attention and causal convolutions.

    The order of all examples so far is random, drawn from the key of `adapt`. Each query is read by itself.
    Keys and queries of an attention start from the same weights, as in `in_context`: after 300 steps on
    Omniglot the loss was 0.68 instead of 1.04, and 0.56 with rescaled features, about as large as labels.

    Args:
      encoder: Network without a head, with features [B, D]; for images preferably `states.rescaled`.
      ways: Number of classes N, the same in training and testing. None for regression.
      length: Length of the longest sequence, all support examples and one query: N K + 1. Dilations double
        until a stack of convolutions spans it.
      width: Number of channels F that each convolution appends to its input, 4 or more. The three attentions
        have keys of F / 2, 2 F and 4 F numbers, and values of half as many as their keys.
      num_outputs: Number Y of regression targets [B, Y]; used if `ways` is None.

    Returns:
      A learner with meta-parameters `SnailMeta` and fast state `Kept`, whose `made` are the inputs [C, I] of
      each layer, in the order read. Adapting again reads all examples again, so adapting piece by piece
      equals adapting to the whole with the key of the last call.

    Raises:
      ValueError: If `ways` or `length` is below 2, `width` below 4, or `num_outputs` below 1.

    Example:
      >>> learner = snail(metajax.toys.toy_model(None), ways=3, length=3 * 2 + 1, width=8)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((6, 2)))
      >>> len(meta.layers)  # 3 attentions, and between them 3 convolutions of dilations 1, 2, 4
      9

    Reference: Mishra et al., 2018 (https://arxiv.org/abs/1707.03141), figure 2 and section 3, appendix A.
    """
    label_size, encoder = check_ways(ways, num_outputs), exact(encoder)
    plan = layers_of(length, width)
    features_of = features_by(encoder, "encoder")

    def init(key: Key, inputs: Tree) -> SnailMeta:
        encoder_key, head_key, layers_key = jax.random.split(key, 3)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        layers, size = init_layers(layers_key, plan, dim + label_size, width, dtype)
        glorot = jax.nn.initializers.glorot_uniform()
        head = glorot(head_key, (size, label_size), dtype)
        return SnailMeta(params, layers, head, jnp.zeros(label_size, dtype))

    def read_all(meta: SnailMeta, key: Key, examples: Examples) -> tuple[Array, ...]:
        order = jax.random.permutation(key, examples.weights.shape[0])
        # Unused rows come last, where causal layers do not see them.
        order = order[jnp.argsort(examples.weights[order] == 0, stable=True)]
        examples = jax.tree.map(lambda leaf: leaf[order], examples)
        labels = labels_of(examples, ways, examples.features.dtype)
        x, read = jnp.concatenate([examples.features, labels], axis=1), []
        places = jnp.arange(x.shape[0])
        for layer, params in zip(plan, meta.layers, strict=True):
            read.append(x)
            x = apply_layer(layer, params, x, x, places)
        return tuple(read)

    def predict(meta: SnailMeta, fast: Kept, inputs: Tree) -> Array:
        x = jnp.pad(features_of(meta, inputs), ((0, 0), (0, label_size)))
        # Every query has the position after all examples, and sees them and itself.
        places = jnp.full(x.shape[0], jnp.sum(fast.examples.weights > 0))
        for layer, params, past in zip(plan, meta.layers, fast.made, strict=True):
            x = apply_layer(layer, params, x, past, places)
        return x @ meta.head + meta.bias

    return Learner(init, *keeping(features_of, ways, read_all), predict)


def layers_of(length: int, width: int) -> list[Any]:
    """Lists the layers of SNAIL: attention, convolutions, attention, convolutions, attention.

    Args:
      length: Length of the longest sequence, 2 or more.
      width: Number of channels F that each convolution appends to its input, 4 or more.

    Returns:
      One entry per layer: a pair of sizes (keys, values) for an attention, a dilation for a convolution.

    Raises:
      ValueError: If `length` is below 2 or `width` below 4.
    """
    if width < 4:
        raise ValueError(f"width is {width}; use 4 or more.")
    if length < 2:
        raise ValueError(
            f"length is {length}; use the number of support examples of the largest task plus 1, 2 or more."
        )
    # A TC block: dilations 1, 2, 4, ..., with ceil(log2(length)) layers, reach length - 1 positions back.
    dilations = [2**i for i in range(math.ceil(math.log2(length)))]
    first, *others = ((keys, keys // 2) for keys in (width // 2, 2 * width, 4 * width))
    return [first, *(layer for sizes in others for layer in (*dilations, sizes))]


def init_layers(
    key: Key, plan: list[Any], size: int, width: int, dtype: Any
) -> tuple[tuple[Any, ...], int]:
    """Draws the parameters of the layers; keys of an attention start as queries.

    Args:
      key: Random key; consumed.
      plan: Layers, from `layers_of`.
      size: Numbers I in an input.
      width: Number of channels F that each convolution appends to its input.
      dtype: Type of the parameters.

    Returns:
      Parameters of the layers, and the numbers in an output of the last one.
    """
    glorot, layers = jax.nn.initializers.glorot_uniform(), []
    for own_key, layer in zip(jax.random.split(key, len(plan)), plan, strict=True):
        keys = jax.random.split(own_key, 3)
        if isinstance(layer, tuple):
            wide, deep = layer
            queries = glorot(keys[0], (size, wide), dtype)
            values = glorot(keys[1], (size, deep), dtype)
            # A copy, because buffers that occur twice in a state cannot be donated.
            layers.append(Attention(jnp.copy(queries), queries, values))
            size += deep
        else:
            now, before = (glorot(k, (size, 2 * width), dtype) for k in keys[:2])
            layers.append(Convolution(now, before, jnp.zeros(2 * width, dtype)))
            size += width
    return tuple(layers), size


def apply_layer(layer: Any, params: Any, x: Array, past: Array, places: Array) -> Array:
    """Applies a layer and appends its outputs to its inputs, as in a DenseNet.

    Args:
      layer: Dilation of a convolution, or sizes of an attention.
      params: Parameters of the layer.
      x: Inputs [B, I] at positions `places`.
      past: Inputs [C, I] of the sequence, from position 0 on.
      places: Int positions [B].

    Returns:
      Inputs of the next layer, [B, I + F] or [B, I + V].
    """
    if not isinstance(layer, tuple):
        # Gated causal convolution, tanh(values) * sigmoid(gates), over positions t and t - dilation; zeros
        # before the first position.
        earlier = past[jnp.maximum(places - layer, 0)] * (places >= layer)[:, None]
        values, gates = jnp.split(x @ params.now + earlier @ params.before + params.bias, 2, axis=1)
        return jnp.concatenate([x, jnp.tanh(values) * jax.nn.sigmoid(gates)], axis=1)
    # Causal attention: softmax(q k^T / sqrt(E)) over all earlier positions and the query's position, whose
    # own key and value come from x.
    queries, keys = x @ params.queries, past @ params.keys
    earlier = jnp.arange(past.shape[0]) < places[:, None]
    scores = jnp.where(earlier, queries @ keys.T, -1e9)
    own = jnp.sum(queries * (x @ params.keys), axis=1, keepdims=True)
    scores = jnp.concatenate([scores, own], axis=1) / params.keys.shape[1] ** 0.5
    weights = jax.nn.softmax(scores)
    attended = weights[:, :-1] @ (past @ params.values) + weights[:, -1:] * (x @ params.values)
    return jnp.concatenate([x, attended], axis=1)
