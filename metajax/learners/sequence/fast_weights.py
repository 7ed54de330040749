"""Meta networks (MetaNet): fast weights generated from gradients of single examples, retrieved by similarity.

Letters: `H` hidden units, `P` entries of a gradient, `U` units of the networks that generate weights.
"""

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
    """Slow or fast weights of a hidden layer and a classifier.

    Attributes:
      kernel: Weights [D, H] of the hidden layer.
      bias: Biases [H] of the hidden layer.
      head: Weights [H, N] of the classifier.
      head_bias: Biases [N] of the classifier.
    """

    kernel: Array
    bias: Array
    head: Array
    head_bias: Array


class Coordinates(NamedTuple):
    """Parameters of a network that maps one entry of a gradient to one fast weight.

    Attributes:
      first: Weights [2, U] of the first hidden layer, on the logarithm and the sign of the entry.
      first_bias: Biases [U].
      second: Weights [U, U] of the second hidden layer.
      second_bias: Biases [U].
      last: Weights [U] of the output.
    """

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array
    last: Array


class MetaNetMeta(NamedTuple):
    """Meta-parameters of MetaNet, with the symbols of the paper.

    Attributes:
      encoder: Parameters of the encoder.
      base: Slow weights W of the base learner.
      embedding: Slow weights Q of the representation function, which compares examples. Its head only defines
        the representation loss, whose gradients are read but not descended, so the head keeps its initial
        values.
      maker: Network m (weights Z) that generates fast weights of the base learner.
      reader: Network d (weights G) that generates fast weights of the representation function: an LSTM, and
        output weights [U] on its hidden state.
    """

    encoder: Params
    base: Layers
    embedding: Layers
    maker: Coordinates
    reader: tuple[cells.CellParams, Array]


class FastWeights(NamedTuple):
    """Fast weights of a task.

    Attributes:
      embedding: Fast weights Q* of the representation function.
      keys: Embeddings [C, H] of the examples, the index R of the memory.
      memory: Fast weights of the base learner from each example, every leaf [C, ...]: the memory M.
    """

    embedding: Layers
    keys: Array
    memory: Layers


def metanet(
    encoder: Model, *, ways: int, hidden: int = 64, units: int = 20
) -> Learner[MetaNetMeta, Kept]:
    """Generates fast weights from the gradient of each support example, and mixes them for each query.

    A query uses the average of the examples' fast weights, weighted by a softmax over the cosines of the
    embeddings of query and examples. Two layers behind the encoder have fast weights in addition to slow
    ones; in the paper all layers have. The encoder has only slow weights, and is shared by the base learner
    and the representation function.

    Args:
      encoder: Network without a head, with features [B, D].
      ways: Number of classes N, the same in training and testing.
      hidden: Number of hidden units H of the base learner and of the representation function.
      units: Number of units U of the networks that generate fast weights, one entry at a time.

    Returns:
      A learner with meta-parameters `MetaNetMeta` and fast state `Kept`, whose `made` are `FastWeights`.
      Adapting again generates them from all examples so far. The order in which gradients are read for the
      representation function is drawn from the key of `adapt`, so adapting piece by piece equals adapting to
      the whole with the key of the last call.

    Raises:
      ValueError: If `hidden` or `units` is below 1, or `ways` below 2.

    Example:
      >>> learner = metanet(metajax.toys.toy_model(None), ways=3, hidden=16)
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> meta.base.head.shape, jax.eval_shape(answer, meta).shape
      ((16, 3), (12, 3))

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
        # Padding is processed too, without effect; its labels, which may be any int, must be valid.
        labels = jnp.where(examples.weights != 0, examples.targets, 0)
        _, as_layers = ravel_pytree(meta.base)

        def gradients(slow: Layers) -> Array:
            """Computes the gradients [C, P] of the cross-entropy of each example alone."""

            def of_one(feature, label):
                def loss(layers):
                    outputs = _apply(layers, None, feature[None])
                    return cross_entropy(outputs, Batch(feature[None], label[None]))

                return ravel_pytree(jax.grad(loss)(slow))[0]

            return jax.lax.stop_gradient(jax.vmap(of_one)(examples.features, labels))

        # Q* = d(gradients of Q): one LSTM reads the gradients of all examples in a random order. The
        # memory holds W*_i = m(gradient of W by example i).
        order = jax.random.permutation(key, examples.targets.shape[0])
        read = _read(meta.reader, gradients(meta.embedding)[order], examples.weights[order])
        embedding = as_layers(read)
        keys = _embed(meta.embedding, embedding, examples.features)
        memory = jax.vmap(as_layers)(_make(meta.maker, gradients(meta.base)))
        return FastWeights(embedding, keys, memory)

    def predict(meta: MetaNetMeta, fast: Kept, inputs: Tree) -> Array:
        features, (embedding, keys, memory) = features_of(meta, inputs), fast.made
        likeness = unit(_embed(meta.embedding, embedding, features)) @ unit(keys).T
        seen = fast.examples.weights > 0
        # All zeros without examples, where the softmax would be uniform over unused rows.
        attention = jnp.where(seen, jax.nn.softmax(jnp.where(seen, likeness, -1e9)), 0)

        def answer(feature, attention):
            mixed = jax.tree.map(lambda leaf: jnp.tensordot(attention, leaf, 1), memory)
            return _apply(meta.base, mixed, feature[None])[0]

        return jax.vmap(answer)(features, attention)

    return Learner(init, *keeping(features_of, ways, make), predict)


def _apply(slow: Layers, fast: Layers | None, features: Array) -> Array:
    """Computes logits [B, N]: the outputs of a layer's slow and fast weights are added after their ReLU."""
    hidden = _embed(slow, fast, features)
    logits = hidden @ slow.head + slow.head_bias
    return logits if fast is None else logits + hidden @ fast.head + fast.head_bias


def _embed(slow: Layers, fast: Layers | None, features: Array) -> Array:
    """Computes embeddings [B, H]: relu(x W + b) + relu(x W* + b*), section 3.3."""
    hidden = jax.nn.relu(features @ slow.kernel + slow.bias)
    if fast is None:
        return hidden
    return hidden + jax.nn.relu(features @ fast.kernel + fast.bias)


def _make(maker: Coordinates, gradients: Array) -> Array:
    """Generates fast weights [C, P] from gradients [C, P], entry by entry."""
    seen = jnp.moveaxis(log_and_sign(gradients), 0, -1)
    hidden = jax.nn.relu(seen @ maker.first + maker.first_bias)
    hidden = jax.nn.relu(hidden @ maker.second + maker.second_bias)
    return hidden @ maker.last


def _read(reader: tuple[cells.CellParams, Array], gradients: Array, weights: Array) -> Array:
    """Generates fast weights [P] from a sequence of gradients [C, P], entry by entry; padding is skipped."""
    cell, last = reader

    def step(state, gradient):
        return cells.lstm(cell, state, log_and_sign(gradient).T)

    start = cells.lstm_zeros(last.shape[0], gradients.shape[1:], gradients.dtype)
    return cells.read(step, start, gradients, weights)[0].hidden @ last


def _layers(key: Key, features: int, hidden: int, ways: int, dtype: Any) -> Layers:
    """Initializes a hidden layer and a classifier."""
    glorot, (first, second) = jax.nn.initializers.glorot_uniform(), jax.random.split(key)
    return Layers(
        glorot(first, (features, hidden), dtype),
        jnp.zeros(hidden, dtype),
        glorot(second, (hidden, ways), dtype),
        jnp.zeros(ways, dtype),
    )


def _coordinates(key: Key, units: int, dtype: Any) -> Coordinates:
    """Initializes the network from gradient entries to fast weights."""
    glorot, keys = jax.nn.initializers.glorot_uniform(), jax.random.split(key, 3)
    return Coordinates(
        glorot(keys[0], (2, units), dtype),
        jnp.zeros(units, dtype),
        glorot(keys[1], (units, units), dtype),
        jnp.zeros(units, dtype),
        jax.random.normal(keys[2], (units,), dtype) / units,
    )
