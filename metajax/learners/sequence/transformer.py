"""Learners that attend: a transformer over the support set, in whatever order it comes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import nn, trees
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
    """One layer of a transformer with tokens of E numbers.

    Attributes:
      attend: [3, E, E] that make queries, keys and values.
      out: [E, E] of what was attended to.
      widen, narrow: [E, 4 E] and [4 E, E].
      norms: [2, 2, E] scale and bias, before attention and before the two above.
    """

    attend: Array
    out: Array
    widen: Array
    narrow: Array
    norms: Array


class InContextMeta(NamedTuple):
    """What is learned across tasks.

    Attributes:
      encoder: its params.
      token: [D, E] from features to tokens.
      labels: [N + 1, E] added to tokens: those of the classes, and that of a query. Of values [Y + 1, E], by
        which they are multiplied.
      blocks: one a layer, stacked.
      norm: [2, E] before the head.
      head: [E, N], or [E, Y].
    """

    encoder: Params
    token: Array
    labels: Array
    blocks: Block
    norm: Array
    head: Array


def in_context(
    encoder: Model,
    *,
    ways: int | None,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    values: int = 1,
) -> Learner[InContextMeta, Kept]:
    """A transformer that learns in context: no weight changes, a query attends to the support set.

    Examples attend to each other and have no positions: their order changes nothing. Queries attend to the
    examples and to themselves, not to each other. Which class has which label is drawn by the episode, so
    that the labels cannot be learned by heart.

    What keys start from is what queries start from, so that a query attends to what is like it before
    anything is learned, and labels start half as large as rescaled examples. It takes both: with keys of
    their own, or labels of length one, the loss stood still for 250 steps on features of Tiny ImageNet, and
    fell after 100 with both.

    Args:
      encoder: gives features [B, D], without a head; of images best `support.rescaled`.
      ways: N, of training and of test. None reads values.
      width: E, numbers a token; the heads divide it.
      layers: L.
      heads: of attention.
      values: Y, of a target [B, Y] where `ways` is None.

    Returns:
      A learner with `InContextMeta` and `Kept`, which has made keys and values [L, C, E] of the examples in
      every layer. Adapting again encodes all examples anew, so that in pieces it comes to the same.

    Reference: Kirsch et al., 2022 (https://arxiv.org/abs/2212.04458), section 3; without order, and with a
    label for queries, Fifty et al., 2024 (https://arxiv.org/abs/2310.10971), section 4; keys that start as
    queries, Trockman and Kolter, 2023 (https://arxiv.org/abs/2305.09828), section 3.
    """
    answers, encoder = check_ways(ways, values), exact(encoder)
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}; use a divisor.")

    features_of = features_by(encoder, "encoder")

    def init(key: Key, inputs: Tree) -> InContextMeta:
        encoder_key, token_key, label_key, block_key, head_key = jax.random.split(key, 5)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        glorot = jax.nn.initializers.glorot_uniform()
        norm = jnp.stack([jnp.ones(width, dtype), jnp.zeros(width, dtype)])

        def block(key):
            square, wide = (width, width), (width, 4 * width)
            shapes = square, square, square, wide, wide[::-1]
            keys = jax.random.split(key, len(shapes))
            query, value, *rest = (
                glorot(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)
            )
            return Block(jnp.stack([query, query, value]), *rest, jnp.stack([norm, norm]))

        return InContextMeta(
            params,
            glorot(token_key, (dim, width), dtype),
            jax.random.normal(label_key, (answers + 1, width), dtype) / 2,
            jax.vmap(block)(jax.random.split(block_key, layers)),
            norm,
            glorot(head_key, (width, answers), dtype),
        )

    def encode(meta: InContextMeta, key: Key, examples: Examples) -> tuple[Array, Array]:
        del key
        labels = labels_of(examples, ways, examples.features.dtype)
        tokens = examples.features @ meta.token + labels @ meta.labels[:-1]
        seen = examples.weights > 0

        def layer(tokens, block):
            queries, keys, values = _project(block, tokens)
            tokens = tokens + nn.attend(queries, keys, values, heads=heads, seen=seen) @ block.out
            return _feed_forward(block, tokens), (keys, values)

        return jax.lax.scan(layer, tokens, meta.blocks)[1]

    def predict(meta: InContextMeta, fast: Kept, inputs: Tree) -> Array:
        tokens = features_of(meta, inputs) @ meta.token + meta.labels[-1]
        seen = jnp.append(fast.examples.weights > 0, True)

        def layer(tokens, block_and_memory):
            block, keys, values = block_and_memory
            queries, own_keys, own_values = _project(block, tokens)

            def one(query, key, value):
                keys_and_values = trees.append((keys, values), (key, value))
                return nn.attend(query[None], *keys_and_values, heads=heads, seen=seen)[0]

            attended = jax.vmap(one)(queries, own_keys, own_values)
            return _feed_forward(block, tokens + attended @ block.out), None

        tokens, _ = jax.lax.scan(layer, tokens, (meta.blocks, *fast.made))
        logits = _layer_norm(tokens, meta.norm) @ meta.head
        if ways is None:
            return logits
        return mask_absent(logits, counts_of(fast.examples, ways))

    return Learner(init, *keeping(features_of, ways, encode), predict)


def _project(block: Block, tokens: Array) -> Array:
    return _layer_norm(tokens, block.norms[0]) @ block.attend


def _feed_forward(block: Block, tokens: Array) -> Array:
    hidden = jax.nn.gelu(_layer_norm(tokens, block.norms[1]) @ block.widen)
    return tokens + hidden @ block.narrow


def _layer_norm(tokens: Array, scale_and_bias: Array) -> Array:
    scale, bias = scale_and_bias
    centred = tokens - jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias
