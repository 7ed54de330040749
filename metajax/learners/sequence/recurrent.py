"""Learners that read the support set, example after example, and remember it in a hidden state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.learners.states import (
    check_batch,
    check_ways,
    exact,
    init_encoder,
    labels_of,
    weights_of,
)
from metajax.nn import recurrent as cells
from metajax.types import Array, Batch, Key, Learner, Model, Params, Tree


class SequenceModel(NamedTuple):
    """What reads a sequence of vectors.

    Attributes:
      init: (key, features D, dtype) -> params.
      start: params -> the state before the first vector.
      step: (params, state, vector [D]) -> (state after it, output [H]).
    """

    init: Callable[[Key, int, Any], Params]
    start: Callable[[Params], Any]
    step: Callable[[Params, Any, Array], tuple[Any, Array]]


class RecurrentMeta(NamedTuple):
    """What a reading learner learns across tasks: encoder, reader, and the linear layer on its outputs."""

    encoder: Params
    reader: Params
    head: Array
    bias: Array


class RecurrentFast(NamedTuple):
    """What one task leaves behind: the reader's state."""

    state: Any


def lstm_model(units: int = 200, layers: int = 1) -> SequenceModel:
    """Stacks LSTMs; the output is the top layer's hidden state."""
    zeros = functools.partial(cells.lstm_zeros, units)
    return _stack(
        units, layers, cells.init_lstm, cells.lstm, zeros, output=lambda state: state.hidden
    )


def gru_model(units: int = 200, layers: int = 1) -> SequenceModel:
    """Stacks gated recurrent units; the output is the top layer's state."""
    zeros = functools.partial(jnp.zeros, units)
    return _stack(units, layers, cells.init_gru, cells.gru, zeros, output=lambda state: state)


def _stack(
    units: int,
    layers: int,
    init_cell: Callable[..., cells.CellParams],
    cell: Callable[[cells.CellParams, Any, Array], Any],
    zeros: Callable[..., Any],
    *,
    output: Callable[[Any], Array],
) -> SequenceModel:
    """Stacks cells, each of which reads the outputs of the one below."""
    if units < 1 or layers < 1:
        raise ValueError(f"units is {units} and layers is {layers}; use 1 or more of both.")

    def init(key: Key, features: int, dtype: Any) -> tuple[cells.CellParams, ...]:
        sizes, keys = (features, *[units] * (layers - 1)), jax.random.split(key, layers)
        return tuple(init_cell(k, size, units, dtype) for k, size in zip(keys, sizes, strict=True))

    def start(params: tuple[cells.CellParams, ...]) -> tuple[Any, ...]:
        return tuple(zeros(dtype=layer.bias.dtype) for layer in params)

    def step(params, state, vector):
        after = []
        for layer, before in zip(params, state, strict=True):
            after.append(cell(layer, before, vector))
            vector = output(after[-1])
        return tuple(after), vector

    return SequenceModel(init, start, step)


def recurrent_learner(
    encoder: Model,
    reader: SequenceModel,
    *,
    ways: int | None,
    values: int = 1,
) -> Learner[RecurrentMeta, RecurrentFast]:
    """Reads (example, label) pairs one after another, and answers a query read after them without a label.

    The order of the examples is drawn by the key of `adapt`: an episode lists them by class, which is no
    order of nature. Adapting in pieces reads one piece after another, each in an order of its own: all that
    is left of earlier pieces is the state, and the order of the whole is not drawn again. A query leaves no
    trace in the state, so that all are answered alike.

    Args:
      encoder: gives features [B, D], without a head; of images best `support.rescaled`.
      reader: such as `lstm_reader(200)`.
      ways: N, of training and of test: a label is read as one of N. None reads values.
      values: Y, of a target [B, Y] where `ways` is None.

    Returns:
      A learner with `ReaderMeta` and `ReaderFast`.

    Reference: Hochreiter et al., 2001; Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), section 2;
    with whole pairs instead of labels one step late, Mishra et al., 2018 (https://arxiv.org/abs/1707.03141).
    """
    width, encoder = check_ways(ways, values), exact(encoder)

    def init(key: Key, inputs: Tree) -> RecurrentMeta:
        encoder_key, reader_key, head_key = jax.random.split(key, 3)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        size = dim + width
        read = reader.init(reader_key, size, dtype)
        vector = jax.ShapeDtypeStruct((size,), dtype)
        _, output = jax.eval_shape(lambda p, v: reader.step(p, reader.start(p), v), read, vector)
        head = jax.nn.initializers.glorot_uniform()(head_key, (output.shape[0], width), dtype)
        return RecurrentMeta(params, read, head, jnp.zeros(width, dtype))

    def start(meta: RecurrentMeta, key: Key, like: Batch | None = None) -> RecurrentFast:
        del key, like
        return RecurrentFast(reader.start(meta.reader))

    def adapt(meta: RecurrentMeta, fast: RecurrentFast, key: Key, batch: Batch) -> RecurrentFast:
        check_batch(batch, ways)
        features = encoder.apply(meta.encoder, batch.inputs)
        labels = labels_of(batch, ways, features.dtype)
        weights = weights_of(batch, features.dtype)
        pairs = jnp.concatenate([features, labels], axis=1)
        # Drawn by place in the batch: padding leaves the order of the others alone only if it is last.
        order = jax.random.permutation(key, len(weights))

        def step(state, pair):
            return reader.step(meta.reader, state, pair)[0]

        state, _ = cells.read(step, fast.state, pairs[order], weights[order])
        return RecurrentFast(state)

    def predict(meta: RecurrentMeta, fast: RecurrentFast, inputs: Tree) -> Array:
        features = encoder.apply(meta.encoder, inputs)
        queries = jnp.pad(features, ((0, 0), (0, width)))
        outputs = jax.vmap(lambda query: reader.step(meta.reader, fast.state, query)[1])(queries)
        return outputs @ meta.head + meta.bias

    return Learner(init, start, adapt, predict)
