"""MetaNet and Meta-LSTM: networks that generate weights and updates from gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import bound, classification_episode, normed_model
from metajax.inner.rules.base import as_rule
from metajax.inner.rules.lstm import log_and_sign, lstm_rule
from metajax.learners.sequence.fast_weights import metanet
from metajax.nn import recurrent as cells
from metajax.types import Model

KEY = jax.random.key(0)
IDENTITY = Model(lambda key, inputs: (), lambda params, inputs: inputs)


def test_gradients_are_read_by_logarithm_and_sign(float64):
    grads = jnp.array([1.0, -jnp.exp(-5.0), jnp.exp(-10.0), 1e-6, -1e-6, 0.0])
    seen = log_and_sign(grads)
    np.testing.assert_allclose(seen[:, :3], [[0, -0.5, -1], [1, -1, 1]], atol=1e-12)
    np.testing.assert_allclose(seen[0, 3:], -1)
    np.testing.assert_allclose(seen[1, 3:], np.exp(10) * np.array([1e-6, -1e-6, 0]), rtol=1e-9)


def test_an_lstm_rule_with_idle_gates_is_gradient_descent_with_decay(float64):
    rule = as_rule(lstm_rule(0.1))
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 1))}
    learned = rule.init(params)
    learned = learned._replace(gates=jnp.zeros_like(learned.gates))
    transform = bound(rule, learned)
    grads = jax.tree.map(lambda p: 3 * p, params)
    updates, _ = transform.update(grads, transform.init(params), params)
    keep = jax.nn.sigmoid(5.0)
    expected = jax.tree.map(lambda p, g: (keep - 1) * p - 0.1 * g, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), updates, expected)


def test_an_lstm_rule_is_its_equations_over_two_steps(float64):
    rule, units = as_rule(lstm_rule(0.3, units=3, seed=1)), 3
    params = jnp.array([0.7])
    learned = rule.init(params)
    learned = learned._replace(gates=jax.random.normal(KEY, learned.gates.shape))
    transform = bound(rule, learned)
    state, theta = transform.init(params), params
    hidden, cell = np.zeros(units), np.zeros(units)
    gates, value = np.asarray(jax.nn.sigmoid(learned.gate_bias)), 0.7
    for grad in (0.5, -2.0):
        updates, state = transform.update(jnp.array([grad]), state, theta)
        theta = optax.apply_updates(theta, updates)
        read = np.concatenate([np.asarray(log_and_sign(jnp.array(grad))), hidden])
        i, f, g, o = np.split(read @ np.asarray(learned.kernel) + np.asarray(learned.bias), 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * np.tanh(g)
        hidden = np.asarray(jax.nn.sigmoid(o) * np.tanh(cell))
        weights, bias = np.asarray(learned.gates), np.asarray(learned.gate_bias)
        gates = np.array(
            [
                jax.nn.sigmoid(w[:units] @ hidden + w[units] * value + w[units + 1] * gate + b)
                for w, gate, b in zip(weights, gates, bias, strict=True)
            ]
        )
        value = gates[0] * value - gates[1] * grad
        np.testing.assert_allclose(theta, [value], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"learning_rate": 2.0}, "learning_rate is 2"), ({"units": 0}, "units is 0")],
)
def test_an_lstm_rule_refuses_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        lstm_rule(**{"learning_rate": 0.1, **options})


def test_metanet_mixes_the_fast_weights_of_the_examples_like_the_query(float64):
    learner = metanet(IDENTITY, ways=3, hidden=5, units=4)
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)
    start = learner.start(meta, KEY, episode.support)
    kept = jax.jit(learner.adapt)(meta, start, KEY, episode.support)
    fast = kept.made
    x = np.asarray(episode.query.inputs[0])

    def embed(slow, quick):
        hidden = np.maximum(x @ slow.kernel + slow.bias, 0)
        return hidden + np.maximum(x @ quick.kernel + quick.bias, 0)

    code = embed(meta.embedding, fast.embedding)
    keys = np.asarray(fast.keys)
    cosines = keys @ code / np.linalg.norm(keys, axis=1) / np.linalg.norm(code)
    attention = np.asarray(jax.nn.softmax(jnp.asarray(cosines)))
    mixed = jax.tree.map(lambda leaf: np.tensordot(attention, np.asarray(leaf), 1), fast.memory)
    hidden = embed(meta.base, mixed)
    expected = hidden @ (meta.base.head + mixed.head) + meta.base.head_bias + mixed.head_bias
    outputs = learner.predict(meta, kept, episode.query.inputs)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-8)
    # Each memory entry is generated from the gradient of one example.
    layers, batch = meta.base, jax.tree.map(lambda leaf: leaf[4:5], episode.support)

    def loss(layers):
        hidden = jax.nn.relu(batch.inputs @ layers.kernel + layers.bias)
        return metajax.cross_entropy(hidden @ layers.head + layers.head_bias, batch)

    seen = jnp.moveaxis(log_and_sign(jax.grad(loss)(layers).head), 0, -1)
    maker = meta.maker
    made = jax.nn.relu(seen @ maker.first + maker.first_bias)
    made = jax.nn.relu(made @ maker.second + maker.second_bias) @ maker.last
    np.testing.assert_allclose(fast.memory.head[4], made, rtol=1e-9)


def test_metanets_fast_embedding_is_read_from_the_gradients_of_the_representation(float64):
    learner = metanet(IDENTITY, ways=3, hidden=5, units=4)
    support = classification_episode(KEY, shots=1, dtype=jnp.float64).support
    meta = learner.init(KEY, support.inputs)
    fast = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support).made
    slow, (cell, last) = meta.embedding, meta.reader

    def loss(layers, example):
        hidden = jax.nn.relu(example.inputs @ layers.kernel + layers.bias)
        return metajax.cross_entropy(hidden @ layers.head + layers.head_bias, example)

    # One entry of the kernel: its gradients by the three examples, in the order drawn from the key.
    state = cells.lstm_zeros(4, dtype=jnp.float64)
    for index in jax.random.permutation(KEY, 3):
        example = jax.tree.map(lambda leaf, i=index: leaf[i][None], support)
        gradient = jax.grad(loss)(slow, example).kernel[1, 2]
        state = cells.lstm(cell, state, log_and_sign(gradient))
    np.testing.assert_allclose(fast.embedding.kernel[1, 2], state.hidden @ last, rtol=1e-9)
    x = np.asarray(support.inputs)
    key = np.maximum(x @ slow.kernel + slow.bias, 0)
    key += np.maximum(x @ fast.embedding.kernel + fast.embedding.bias, 0)
    np.testing.assert_allclose(fast.keys, key, rtol=1e-9)


def test_metanet_refuses_layers_of_nothing():
    with pytest.raises(ValueError, match="hidden is 0"):
        metanet(IDENTITY, ways=3, hidden=0)


@pytest.mark.parametrize("name", ["meta_lstm", "metanet"])
def test_networks_that_generate_weights_and_steps_have_exact_gradients(float64, name):
    episode = classification_episode(KEY, dtype=jnp.float64)
    if name == "metanet":
        learner, parts = metanet(IDENTITY, ways=3, hidden=4, units=3), ("maker", "reader")
    else:
        model, parts = normed_model(4, 3), ("rule",)
        learner = metajax.learners.meta_lstm(
            model, metajax.cross_entropy, learning_rate=0.1, steps=1, units=3
        )
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    meta = noisy(learner.init(KEY, episode.support.inputs), 0.1)

    # Gradients count as constants, so only the networks that read them have exact derivatives.
    def loss(learned):
        return objective(meta._replace(**dict(zip(parts, learned, strict=True))), KEY, episode)[0]

    assert relative_error(loss, tuple(getattr(meta, part) for part in parts)) < 1e-6
