"""Encoders of text: from counts of n-grams, from vectors made before, and from ids of words.

Ids of words are 0 where a text has ended; such padding changes no output.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metajax import nn
from metajax.models import dense
from metajax.types import Array, Key, Model, Params


def ngram_encoder(
    *,
    hidden: Sequence[int] = (),
    scaled: bool = False,
    weights: Any = None,
    outputs: int | None = None,
) -> Model:
    """Encodes counts of n-grams: their square roots, scaled to length one, then fully connected layers.

    Without hidden layers and scales nothing is learned, and class means of the features compared by their
    cosine are the baseline that every learned encoder of text should beat.

    Args:
      hidden: Widths of the hidden layers, each with a rectifier.
      scaled: Whether each n-gram has a learned factor, which starts at 1, before the vector is scaled.
      weights: Fixed factors of the n-grams [D], such as `inverse_frequencies`; None is 1 for all.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from counts [B, D], such as uint8, to outputs [B, outputs], or to features.

    Raises:
      ValueError: If (from `init`) the weights are not [D].

    Example:
      >>> model = ngram_encoder()
      >>> counts = jnp.array([[9, 16, 0]], jnp.uint8)
      >>> model.apply(model.init(jax.random.key(0), counts), counts).round(3).tolist()
      [[0.6000000238418579, 0.800000011920929, 0.0]]
    """

    def init(key: Key, inputs: Array) -> Params:
        chex.assert_rank(inputs, 2)
        if weights is not None and jnp.shape(weights) != inputs.shape[1:]:
            raise ValueError(
                f"The weights are {jnp.shape(weights)} and a text has {inputs.shape[1]} counts; give one per "
                "count."
            )
        params = dense.init_layers(key, inputs.shape[-1], hidden, outputs)
        if scaled:
            params["ngrams"] = {"scale": jnp.ones(inputs.shape[-1])}
        return params

    def apply(params: Params, inputs: Array) -> Array:
        chex.assert_rank(inputs, 2)
        roots = dense.roots(inputs, dense.dtype_of(params))
        if weights is not None:
            roots = roots * jnp.asarray(weights, roots.dtype)
        if "ngrams" in params:
            roots = roots * params["ngrams"]["scale"]
        return dense.apply_layers(params, dense.unit(roots))

    return Model(init, apply)


def vector_encoder(*, adapter: int | None = None, outputs: int | None = None) -> Model:
    """Encodes vectors that a frozen network has made: scaled to length one, with a learned residual.

    The residual is a network of one hidden layer whose second layer starts at zero, so training starts from
    the frozen vectors themselves.

    Args:
      adapter: Width of the hidden layer of the residual; None leaves it out, and the vectors stay as they
        are.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from float vectors [B, D] to outputs [B, outputs], or to features [B, D].

    Example:
      >>> model = vector_encoder(adapter=8)
      >>> vectors = jnp.array([[3.0, 4.0]])
      >>> model.apply(model.init(jax.random.key(0), vectors), vectors).round(3).tolist()
      [[0.6000000238418579, 0.800000011920929]]

    Reference: Houlsby et al., 2019 (https://arxiv.org/abs/1902.00751), section 2.1.
    """

    def init(key: Key, inputs: Array) -> Params:
        chex.assert_rank(inputs, 2)
        adapter_key, head_key = jax.random.split(key)
        width = inputs.shape[-1]
        params = dense.init_layers(head_key, width, (), outputs)
        if adapter is not None:
            down = dense.init_dense(adapter_key, width, adapter)
            up = {"kernel": jnp.zeros((adapter, width)), "bias": jnp.zeros(width)}
            params["adapter"] = {"down": down, "up": up}
        return params

    def apply(params: Params, inputs: Array) -> Array:
        chex.assert_rank(inputs, 2)
        dtype = jnp.promote_types(inputs.dtype, dense.dtype_of(params))
        features = dense.unit(inputs.astype(dtype))
        if "adapter" in params:
            layers = params["adapter"]
            hidden = jax.nn.relu(dense.apply_dense(layers["down"], features))
            features = features + dense.apply_dense(layers["up"], hidden)
        return dense.apply_head(params, features)

    return Model(init, apply)


def word_cnn(
    *,
    vocabulary: int,
    width: int = 50,
    filters: int = 230,
    windows: Sequence[int] = (3,),
    vectors: Any = None,
    outputs: int | None = None,
) -> Model:
    """Encodes ids of words by convolutions over their vectors and the largest response of each filter.

    Args:
      vocabulary: Number of ids V, padding and unknown words included.
      width: Width of a word's vector, without `vectors`.
      filters: Number of filters per window.
      windows: Numbers of words that a filter sees.
      vectors: Vectors to start from, float [V, E], such as `glove_vectors`; None draws them.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from ids [B, L] int, 0 for padding, to outputs [B, outputs], or to features
      [B, filters * len(windows)].

    Raises:
      ValueError: If the vectors are not [V, E].

    Example:
      >>> model = word_cnn(vocabulary=10, width=4, filters=8, windows=(2, 3))
      >>> ids = jnp.array([[5, 3, 0, 0]])
      >>> model.apply(model.init(jax.random.key(0), ids), ids).shape
      (1, 16)

    Reference: Kim, 2014 (https://arxiv.org/abs/1408.5882), section 2.
    """

    def init(key: Key, inputs: Array) -> Params:
        chex.assert_rank(inputs, 2)
        word_key, head_key, *keys = jax.random.split(key, 2 + len(windows))
        table = _word_table(word_key, vocabulary, width, vectors)
        params: dict[str, Any] = {
            f"conv{window}": dense.init_dense(key, window * table.shape[1], filters)
            for key, window in zip(keys, windows, strict=True)
        }
        head = dense.init_layers(head_key, filters * len(windows), (), outputs)
        return params | {"words": {"table": table}} | head

    def apply(params: Params, inputs: Array) -> Array:
        words, seen = _look_up(params, inputs)
        found = [_convolve(params[f"conv{window}"], words, window) for window in windows]
        responses = jax.nn.relu(jnp.concatenate(found, axis=-1))
        # Rectified responses are never negative, so a text without words has zeros.
        return dense.apply_head(params, jnp.max(jnp.where(seen, responses, 0), axis=1))

    return Model(init, apply)


def word_attention(
    *,
    vocabulary: int,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    vectors: Any = None,
    outputs: int | None = None,
) -> Model:
    """Encodes ids of words by a transformer, and averages its tokens.

    Args:
      vocabulary: Number of ids V, padding and unknown words included.
      width: Features of a token.
      depth: Number of blocks of attention and a network of two layers.
      heads: Number of attention heads; divides the width, which is even.
      vectors: Vectors of words to start from, float [V, E]; None draws them.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from ids [B, L] int, 0 for padding, to outputs [B, outputs], or to features [B, width].

    Raises:
      ValueError: If the vectors are not [V, E], the heads do not divide the width, or it is odd.

    Example:
      >>> model = word_attention(vocabulary=10, width=8, depth=1, heads=2)
      >>> ids = jnp.array([[5, 3, 0, 0]])
      >>> model.apply(model.init(jax.random.key(0), ids), ids).shape
      (1, 8)

    Reference: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), section 3, with norms before the
    layers.
    """
    if width % heads or width % 2:
        raise ValueError(f"{heads} heads and 2 must divide the width {width}; use a multiple.")

    def init(key: Key, inputs: Array) -> Params:
        chex.assert_rank(inputs, 2)
        word_key, widen_key, head_key, *keys = jax.random.split(key, 3 + depth)
        table = _word_table(word_key, vocabulary, width, vectors)
        params: dict[str, Any] = {
            f"block{index}": _init_block(key, width) for index, key in enumerate(keys)
        }
        params["widen"] = dense.init_dense(widen_key, table.shape[1], width)
        params["norm"] = dense.init_norm(width)
        head = dense.init_layers(head_key, width, (), outputs)
        return params | {"words": {"table": table}} | head

    def apply(params: Params, inputs: Array) -> Array:
        words, seen = _look_up(params, inputs)
        tokens = dense.apply_dense(params["widen"], words)
        tokens = tokens + _positions(inputs.shape[1], width, tokens.dtype)
        for index in range(depth):
            tokens = _apply_block(params[f"block{index}"], tokens, seen, heads=heads)
        tokens = jnp.where(seen, dense.apply_norm(params["norm"], tokens), 0)
        return dense.apply_head(params, jnp.sum(tokens, axis=1) / jnp.maximum(seen.sum(axis=1), 1))

    return Model(init, apply)


def _word_table(key: Key, vocabulary: int, width: int, vectors: Any) -> Array:
    """Draws the vectors of words, or takes the given ones; [V, E]."""
    if vectors is None:
        return jax.random.normal(key, (vocabulary, width)) / width**0.5
    if jnp.ndim(vectors) != 2 or len(vectors) != vocabulary:
        raise ValueError(
            f"The vectors are {jnp.shape(vectors)} and the vocabulary has {vocabulary} ids; give one per id."
        )
    return jnp.asarray(vectors)


def _look_up(params: Params, ids: Array) -> tuple[Array, Array]:
    """Returns the vectors of words [B, L, E], zeros for padding, and which are words, bool [B, L, 1]."""
    chex.assert_rank(ids, 2)
    seen = (ids != 0)[..., None]
    table = params["words"]["table"]
    return jnp.where(seen, table[ids], 0), seen


def _convolve(layer: Params, words: Array, window: int) -> Array:
    """Applies a linear layer to each `window` neighboring words [B, L, E], with zeros around the text."""
    before = (window - 1) // 2
    padded = jnp.pad(words, ((0, 0), (before, window - 1 - before), (0, 0)))
    length = words.shape[1]
    stacked = [padded[:, shift : shift + length] for shift in range(window)]
    return dense.apply_dense(layer, jnp.concatenate(stacked, axis=-1))


def _positions(length: int, width: int, dtype: Any) -> Array:
    """Computes sines and cosines of the positions, [L, width]; they need no largest length."""
    rates = 1e4 ** (-jnp.arange(0, width, 2) / width)
    angles = jnp.arange(length)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


def _init_block(key: Key, width: int) -> dict[str, Any]:
    """Draws a block of a transformer."""
    names = ("query", "key", "value", "out")
    *keys, widen_key, narrow_key = jax.random.split(key, len(names) + 2)
    block = {
        name: dense.init_dense(key, width, width) for name, key in zip(names, keys, strict=True)
    }
    block["widen"] = dense.init_dense(widen_key, width, 4 * width)
    block["narrow"] = dense.init_dense(narrow_key, 4 * width, width)
    return block | {"norm0": dense.init_norm(width), "norm1": dense.init_norm(width)}


def _apply_block(block: Params, tokens: Array, seen: Array, *, heads: int) -> Array:
    """Applies attention among the words of a text, then a network of two layers, each with a shortcut."""
    normed = dense.apply_norm(block["norm0"], tokens)
    queries, keys, values = (
        dense.apply_dense(block[name], normed) for name in ("query", "key", "value")
    )
    attended = jax.vmap(lambda q, k, v, s: nn.attend(q, k, v, heads=heads, seen=s))(
        queries, keys, values, seen[..., 0]
    )
    tokens = tokens + dense.apply_dense(block["out"], attended)
    hidden = dense.apply_dense(block["widen"], dense.apply_norm(block["norm1"], tokens))
    return tokens + dense.apply_dense(block["narrow"], jax.nn.gelu(hidden))
