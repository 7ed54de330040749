"""Learners that read the support set example by example into a recurrent state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.deprecation import renamed_arguments
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
    """Recurrent network that reads a sequence of vectors, one step at a time.

    Attributes:
      init: Function (key, input size D, dtype) -> params.
      start: Function params -> state before the first vector.
      step: Function (params, state, vector [D]) -> (next state, output [H]).

    Example:
      >>> model = metajax.learners.gru_model(units=4)
      >>> params = jax.eval_shape(lambda key: model.init(key, 2, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(2))
      >>> state, output = jax.eval_shape(read, params)
      >>> output.shape
      (4,)
    """

    init: Callable[[Key, int, Any], Params]
    start: Callable[[Params], Any]
    step: Callable[[Params, Any, Array], tuple[Any, Array]]


class RecurrentMeta(NamedTuple):
    """Meta-parameters of a recurrent learner.

    Attributes:
      encoder: Parameters of the encoder.
      reader: Parameters of the sequence model.
      head: Weights [H, N] of the linear layer on its outputs.
      bias: Biases [N] of that layer.
    """

    encoder: Params
    reader: Params
    head: Array
    bias: Array


class RecurrentFast(NamedTuple):
    """Fast state of a recurrent learner.

    Attributes:
      state: State of the sequence model.
    """

    state: Any


def lstm_model(units: int = 200, layers: int = 1) -> SequenceModel:
    """Stacks LSTMs; the output is the top layer's hidden state.

    Args:
      units: Number of units H of each layer.
      layers: Number of layers.

    Returns:
      A sequence model for `recurrent_learner`, with outputs [H].

    Raises:
      ValueError: If `units` or `layers` is below 1.

    Example:
      >>> model = lstm_model(units=4, layers=2)
      >>> params = jax.eval_shape(lambda key: model.init(key, 3, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(3))
      >>> state, output = jax.eval_shape(read, params)
      >>> len(state), output.shape
      (2, (4,))
    """
    zeros = functools.partial(cells.lstm_zeros, units)
    return _stack(
        units, layers, cells.init_lstm, cells.lstm, zeros, output=lambda state: state.hidden
    )


def gru_model(units: int = 200, layers: int = 1) -> SequenceModel:
    """Stacks gated recurrent units; the output is the top layer's state.

    Args:
      units: Number of units H of each layer.
      layers: Number of layers.

    Returns:
      A sequence model for `recurrent_learner`, with outputs [H].

    Raises:
      ValueError: If `units` or `layers` is below 1.

    Example:
      >>> model = gru_model(units=4)
      >>> params = jax.eval_shape(lambda key: model.init(key, 3, jnp.float32), jax.random.key(0))
      >>> read = lambda params: model.step(params, model.start(params), jnp.ones(3))
      >>> state, output = jax.eval_shape(read, params)
      >>> output.shape
      (4,)
    """
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
    """Stacks recurrent cells; each layer reads the outputs of the layer below."""
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


@renamed_arguments(reader="sequence_model", values="num_outputs")
def recurrent_learner(
    encoder: Model,
    sequence_model: SequenceModel,
    *,
    ways: int | None,
    num_outputs: int = 1,
) -> Learner[RecurrentMeta, RecurrentFast]:
    """Reads (example, label) pairs one by one into a state, then a query without a label.

    The order of the examples is random, drawn from the key of `adapt`, because an episode lists its examples
    by class. Adapting piece by piece reads one piece after another, each in its own random order: only the
    state remains of earlier pieces, so their order is not drawn again. A query does not change the state, so
    predictions do not depend on other queries.

    Args:
      encoder: Network without a head, with features [B, D]; for images preferably `states.rescaled`.
      sequence_model: Sequence model, such as `lstm_model(200)`, `gru_model(200)` or `mann_model()`.
      ways: Number of classes N, the same in training and testing: labels are read one-hot. None for
        regression.
      num_outputs: Number Y of regression targets [B, Y]; used if `ways` is None.

    Returns:
      A learner with meta-parameters `RecurrentMeta` and fast state `RecurrentFast`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> lstm = metajax.learners.lstm_model(units=16)
      >>> learner = recurrent_learner(metajax.toys.toy_model(None), lstm, ways=3)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Hochreiter et al., 2001; Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), section 2;
    an example with its own label, instead of the label of the example before, Mishra et al., 2018
    (https://arxiv.org/abs/1707.03141).
    """
    width, encoder = check_ways(ways, num_outputs), exact(encoder)

    def init(key: Key, inputs: Tree) -> RecurrentMeta:
        encoder_key, reader_key, head_key = jax.random.split(key, 3)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        size = dim + width
        model = sequence_model
        read = model.init(reader_key, size, dtype)
        vector = jax.ShapeDtypeStruct((size,), dtype)
        _, output = jax.eval_shape(lambda p, v: model.step(p, model.start(p), v), read, vector)
        head = jax.nn.initializers.glorot_uniform()(head_key, (output.shape[0], width), dtype)
        return RecurrentMeta(params, read, head, jnp.zeros(width, dtype))

    def start(meta: RecurrentMeta, key: Key, like: Batch | None = None) -> RecurrentFast:
        del key, like
        return RecurrentFast(sequence_model.start(meta.reader))

    def adapt(meta: RecurrentMeta, fast: RecurrentFast, key: Key, batch: Batch) -> RecurrentFast:
        check_batch(batch, ways)
        features = encoder.apply(meta.encoder, batch.inputs)
        labels = labels_of(batch, ways, features.dtype)
        weights = weights_of(batch, features.dtype)
        pairs = jnp.concatenate([features, labels], axis=1)
        # A permutation of all rows: padding leaves the order of the examples unchanged only if it is last.
        order = jax.random.permutation(key, weights.shape[0])

        def step(state, pair):
            return sequence_model.step(meta.reader, state, pair)[0]

        state, _ = cells.read(step, fast.state, pairs[order], weights[order])
        return RecurrentFast(state)

    def predict(meta: RecurrentMeta, fast: RecurrentFast, inputs: Tree) -> Array:
        features = encoder.apply(meta.encoder, inputs)
        # A query has zeros in place of a label.
        queries = jnp.pad(features, ((0, 0), (0, width)))

        def answer(query):
            return sequence_model.step(meta.reader, fast.state, query)[1]

        outputs = jax.vmap(answer)(queries)
        return outputs @ meta.head + meta.bias

    return Learner(init, start, adapt, predict)
