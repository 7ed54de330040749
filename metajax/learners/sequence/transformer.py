"""In-context learning: a transformer without positions reads the support set, in any order.

Letters: `E` numbers per token, `Y` regression targets per example.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import nn, trees
from metajax.deprecation import renamed_arguments
from metajax.learners.states import (
    Examples,
    Kept,
    check_ways,
    counts_of,
    exact,
    features_by,
    init_encoder,
    keeping,
    labels_of,
    mask_absent,
)
from metajax.types import Array, Key, Learner, Model, Params, Tree


class Block(NamedTuple):
    """Parameters of a transformer layer with layer norms before attention and before the MLP.

    Attributes:
      attend: Weights [3, E, E] of queries, keys and values.
      out: Output weights [E, E] of the attention.
      widen: Weights [E, 4 E] of the first MLP layer.
      narrow: Weights [4 E, E] of the second MLP layer.
      norms: Scale and bias [2, 2, E] of the norm before attention and of the norm before the MLP.
    """

    attend: Array
    out: Array
    widen: Array
    narrow: Array
    norms: Array


class InContextMeta(NamedTuple):
    """Meta-parameters of the in-context learner.

    Attributes:
      encoder: Parameters of the encoder.
      token: Weights [D, E] from features to tokens.
      labels: Label embeddings [N + 1, E], added to tokens; the last row marks a query. For regression
        [Y + 1, E]: targets are multiplied by the first Y rows.
      blocks: Parameters of all layers, every leaf [layers, ...].
      norm: Scale and bias [2, E] of the norm before the head.
      head: Weights [E, N] of the output layer; [E, Y] for regression.
    """

    encoder: Params
    token: Array
    labels: Array
    blocks: Block
    norm: Array
    head: Array


@renamed_arguments(values="num_outputs")
def in_context(
    encoder: Model,
    *,
    ways: int | None,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    num_outputs: int = 1,
) -> Learner[InContextMeta, Kept]:
    """Learns in context: a transformer reads the support set, and no weight changes within a task.

    Support examples attend to each other and have no positions, so their order does not matter. A query
    attends to the examples and to itself, not to other queries. The assignment of labels to classes is random
    in each episode, so it cannot be memorized.

    Keys and queries start from the same weights, so that a query attends to similar examples from the
    beginning, and label embeddings start half as large as rescaled examples. Both are needed: with separate
    keys, or labels of length one, the loss stagnated for 250 steps on features of Tiny ImageNet; with both it
    fell after 100.

    Args:
      encoder: Network without a head, with features [B, D]; for images preferably `states.rescaled`.
      ways: Number of classes N, the same in training and testing. None for regression.
      width: Number of values E per token, a multiple of `heads`.
      layers: Number of transformer layers.
      heads: Number of attention heads.
      num_outputs: Number Y of regression targets [B, Y]; used if `ways` is None.

    Returns:
      A learner with meta-parameters `InContextMeta` and fast state `Kept`, whose `made` are the keys and
      values [layers, C, E] of the examples in every layer. Adapting again encodes all examples again, so
      adapting piece by piece equals adapting to the whole.

    Raises:
      ValueError: If `heads` does not divide `width`, `ways` is below 2, or `num_outputs` below 1.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = in_context(metajax.toys.toy_model(None), ways=3, width=8, layers=2, heads=2)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Kirsch et al., 2022 (https://arxiv.org/abs/2212.04458), section 3; without positions, and with
    a label embedding for queries, Fifty et al., 2024 (https://arxiv.org/abs/2310.10971), section 4; keys
    that start as queries, Trockman and Kolter, 2023 (https://arxiv.org/abs/2305.09828), section 3.
    """
    answers, encoder = check_ways(ways, num_outputs), exact(encoder)
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}; use a divisor.")

    features_of = features_by(encoder, "encoder")

    def init(key: Key, inputs: Tree) -> InContextMeta:
        encoder_key, token_key, label_key, block_key, head_key = jax.random.split(key, 5)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        glorot = jax.nn.initializers.glorot_uniform()
        norm = jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)])
        return InContextMeta(
            params,
            glorot(token_key, (dim, width), dtype),
            jax.random.normal(label_key, (answers + 1, width), dtype) / 2,
            init_blocks(block_key, layers, width, dtype),
            norm,
            glorot(head_key, (width, answers), dtype),
        )

    def encode(meta: InContextMeta, key: Key, examples: Examples) -> tuple[Array, Array]:
        del key
        labels = labels_of(examples, ways, examples.features.dtype)
        tokens = examples.features @ meta.token + labels @ meta.labels[:-1]
        seen = examples.weights > 0

        def layer(tokens, block):
            queries, keys, values = project(block, tokens)
            tokens = tokens + nn.attend(queries, keys, values, heads=heads, seen=seen) @ block.out
            return feed_forward(block, tokens), (keys, values)

        return jax.lax.scan(layer, tokens, meta.blocks)[1]

    def predict(meta: InContextMeta, fast: Kept, inputs: Tree) -> Array:
        tokens = features_of(meta, inputs) @ meta.token + meta.labels[-1]
        seen = jnp.append(fast.examples.weights > 0, True)

        def layer(tokens, block_and_memory):
            block, keys, values = block_and_memory
            queries, own_keys, own_values = project(block, tokens)

            def one(query, key, value):
                # The query attends to the support set, and then to its own key and value.
                keys_and_values = trees.append((keys, values), (key, value))
                return nn.attend(query[None], *keys_and_values, heads=heads, seen=seen)[0]

            attended = jax.vmap(one)(queries, own_keys, own_values)
            return feed_forward(block, tokens + attended @ block.out), None

        tokens, _ = jax.lax.scan(layer, tokens, (meta.blocks, *fast.made))
        logits = layer_norm(tokens, meta.norm) @ meta.head
        if ways is None:
            return logits
        return mask_absent(logits, counts_of(fast.examples, ways))

    return Learner(init, *keeping(features_of, ways, encode), predict)


def init_blocks(key: Key, layers: int, width: int, dtype: jnp.dtype) -> Block:
    """Draws the parameters of layers, every leaf [layers, ...]; keys start as queries.

    Args:
      key: Random key; consumed.
      layers: Number of layers.
      width: Numbers E in a token.
      dtype: Type of the parameters.

    Returns:
      Parameters of all layers.
    """
    glorot = jax.nn.initializers.glorot_uniform()
    norm = jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)])

    def block(key: Key) -> Block:
        square, wide = (width, width), (width, 4 * width)
        shapes = square, square, square, wide, wide[::-1]
        keys = jax.random.split(key, len(shapes))
        query, value, out, widen, narrow = (
            glorot(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)
        )
        attend, norms = jnp.stack([query, query, value]), jnp.stack([norm, norm])
        return Block(attend, out, widen, narrow, norms)

    return jax.vmap(block)(jax.random.split(key, layers))


def project(block: Block, tokens: Array) -> Array:
    """Computes queries, keys and values [3, B, E] of tokens [B, E]."""
    return layer_norm(tokens, block.norms[0]) @ block.attend


def feed_forward(block: Block, tokens: Array) -> Array:
    """Adds the output of the MLP to tokens [B, E]."""
    hidden = jax.nn.gelu(layer_norm(tokens, block.norms[1]) @ block.widen)
    return tokens + hidden @ block.narrow


def layer_norm(tokens: Array, scale_and_bias: Array) -> Array:
    """Normalizes tokens [B, E] to mean 0 and variance 1, then applies scale and bias [2, E]."""
    scale, bias = scale_and_bias
    centered = tokens - jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * scale + bias
