"""MetaNet: fast weights made from the gradients of single examples, and remembered by what they look like."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax.inner.rules.lstm import log_and_sign
from metajax.learners.states import Examples, Kept, exact, features_by, init_encoder, keeping, unit
from metajax.losses import cross_entropy
from metajax.nn import recurrent as cells
from metajax.types import Array, Batch, Key, Learner, Model, Params, Tree


class Layers(NamedTuple):
    """A hidden layer [D, H] and [H], and one that tells classes apart [H, N] and [N]; slow, or fast."""

    kernel: Array
    bias: Array
    head: Array
    head_bias: Array


class Coordinates(NamedTuple):
    """A network of two hidden layers that makes a fast weight from one number of a gradient."""

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array
    last: Array


class MetaNetMeta(NamedTuple):
    """What is learned across tasks.

    Attributes:
      encoder: its params.
      base: slow weights of the base learner, W.
      embedding: slow weights of what compares examples, Q. Its head serves the representation's loss alone,
        of which gradients are read and none is descended: it stays as it was drawn.
      maker: makes fast weights of the base learner, m.
      reader: an LSTM that makes those of the embedding, d, and [units] what they are of its state.
    """

    encoder: Params
    base: Layers
    embedding: Layers
    maker: Coordinates
    reader: tuple[cells.CellParams, Array]


class FastWeights(NamedTuple):
    """Fast weights that a task's examples make.

    Attributes:
      embedding: Fast weights Q* of what compares examples.
      keys: Embeddings of the examples, [C, H].
      memory: Fast weights of the base learner from each example, [C, ...].
    """

    embedding: Layers
    keys: Array
    memory: Layers


def metanet(
    encoder: Model, *, ways: int, hidden: int = 64, units: int = 20
) -> Learner[MetaNetMeta, Kept]:
    """Makes fast weights of each support example's gradient, and for a query mixes those of its likes.

    The layers that have fast weights beside slow ones are two behind the encoder; in the paper they are all
    layers of its network, whose convolutions are slow here and shared by base learner and embedding.

    Args:
      encoder: gives features [B, D], without a head.
      ways: N, of training and of test.
      hidden: H, of both the base learner and the embedding.
      units: of the networks that make fast weights, a number at a time.

    Returns:
      A learner with `MetaNetMeta` and `Kept`, which has made `FastWeights`. Adapting again makes them anew
      from all examples. The order in which gradients are read for the embedding is drawn by the key of
      `adapt`: adapting in pieces comes to the same if the last key is the same.

    Reference: Munkhdalai and Yu, 2017 (https://arxiv.org/abs/1703.00837), algorithm 1 and eq. 1 to 8; layers
    of slow and fast weights, section 3.3. Gradients of examples count as constants here.
    """
    for name, value in (("hidden", hidden), ("units", units)):
        if value < 1:
            raise ValueError(f"{name} is {value}; use 1 or more.")
    if ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more.")
    encoder = exact(encoder)
    features_of = features_by(encoder, "encoder")

    def init(key: Key, inputs: Tree) -> MetaNetMeta:
        encoder_key, base_key, embedding_key, maker_key, reader_key, read_key = jax.random.split(
            key, 6
        )
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        last = jax.random.normal(read_key, (units,), dtype) / units
        return MetaNetMeta(
            params,
            _layers(base_key, dim, hidden, ways, dtype),
            _layers(embedding_key, dim, hidden, ways, dtype),
            _coordinates(maker_key, units, dtype),
            (cells.init_lstm(reader_key, 2, units, dtype), last),
        )

    def make(meta: MetaNetMeta, key: Key, examples: Examples) -> FastWeights:
        # Padding is read too, without an effect, and may have any label.
        labels = jnp.where(examples.weights != 0, examples.targets, 0)
        _, as_layers = ravel_pytree(meta.base)

        def gradients(slow: Layers) -> Array:
            def of_one(feature, label):
                def loss(layers):
                    outputs = _apply(layers, None, feature[None])
                    return cross_entropy(outputs, Batch(feature[None], label[None]))

                return ravel_pytree(jax.grad(loss)(slow))[0]

            return jax.lax.stop_gradient(jax.vmap(of_one)(examples.features, labels))

        order = jax.random.permutation(key, len(examples.targets))
        read = _read(meta.reader, gradients(meta.embedding)[order], examples.weights[order])
        embedding = as_layers(read)
        keys = _embed(meta.embedding, embedding, examples.features)
        memory = jax.vmap(as_layers)(_make(meta.maker, gradients(meta.base)))
        return FastWeights(embedding, keys, memory)

    def predict(meta: MetaNetMeta, fast: Kept, inputs: Tree) -> Array:
        features, (embedding, keys, memory) = features_of(meta, inputs), fast.made
        likeness = unit(_embed(meta.embedding, embedding, features)) @ unit(keys).T
        seen = fast.examples.weights > 0
        # Zero without examples too, where a softmax would mix what was made of none.
        attention = jnp.where(seen, jax.nn.softmax(jnp.where(seen, likeness, -1e9)), 0)

        def answer(feature, attention):
            mixed = jax.tree.map(lambda leaf: jnp.tensordot(attention, leaf, 1), memory)
            return _apply(meta.base, mixed, feature[None])[0]

        return jax.vmap(answer)(features, attention)

    return Learner(init, *keeping(features_of, ways, make), predict)


def _apply(slow: Layers, fast: Layers | None, features: Array) -> Array:
    """Logits [B, N]: each layer's outputs by slow and by fast weights, after their ReLU, are summed."""
    hidden = _embed(slow, fast, features)
    logits = hidden @ slow.head + slow.head_bias
    return logits if fast is None else logits + hidden @ fast.head + fast.head_bias


def _embed(slow: Layers, fast: Layers | None, features: Array) -> Array:
    hidden = jax.nn.relu(features @ slow.kernel + slow.bias)
    if fast is None:
        return hidden
    return hidden + jax.nn.relu(features @ fast.kernel + fast.bias)


def _make(maker: Coordinates, gradients: Array) -> Array:
    """Makes fast weights [n, P] from gradients [n, P], each number by itself."""
    seen = jnp.moveaxis(log_and_sign(gradients), 0, -1)
    hidden = jax.nn.relu(seen @ maker.first + maker.first_bias)
    hidden = jax.nn.relu(hidden @ maker.second + maker.second_bias)
    return hidden @ maker.last


def _read(reader: tuple[cells.CellParams, Array], gradients: Array, weights: Array) -> Array:
    """Reads gradients [n, P] one after another, each number by itself, [P]; padding is not read."""
    cell, last = reader

    def step(state, gradient):
        return cells.lstm(cell, state, log_and_sign(gradient).T)

    start = cells.lstm_zeros(len(last), gradients.shape[1:], gradients.dtype)
    return cells.read(step, start, gradients, weights)[0].hidden @ last


def _layers(key: Key, features: int, hidden: int, ways: int, dtype: Any) -> Layers:
    glorot, (first, second) = jax.nn.initializers.glorot_uniform(), jax.random.split(key)
    return Layers(
        glorot(first, (features, hidden), dtype),
        jnp.zeros(hidden, dtype),
        glorot(second, (hidden, ways), dtype),
        jnp.zeros(ways, dtype),
    )


def _coordinates(key: Key, units: int, dtype: Any) -> Coordinates:
    glorot, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(key, 3)
    return Coordinates(
        glorot(keys[0], (2, units), dtype),
        jnp.zeros(units, dtype),
        glorot(keys[1], (units, units), dtype),
        jnp.zeros(units, dtype),
        jax.random.normal(keys[2], (units,), dtype) / units,
    )
