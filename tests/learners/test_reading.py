"""Sequence learners: memories, recurrent cells and attention, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, normed_model
from metajax.learners.sequence.convolutions import snail
from metajax.learners.sequence.memory import MannState, cosines, mann_model, write
from metajax.learners.sequence.recurrent import gru_model, lstm_model, recurrent_learner
from metajax.learners.sequence.transformer import in_context
from metajax.learners.states import rescaled
from metajax.nn import recurrent as cells
from metajax.types import Model

KEY = jax.random.key(0)
ENCODER = normed_model(5, None)


def test_an_lstm_is_its_equations(float64):
    params = cells.init_lstm(KEY, 3, 2, jnp.float64)
    state = cells.LstmState(*jax.random.normal(KEY, (2, 2), jnp.float64))
    inputs = jnp.array([0.3, -1.0, 2.0])
    after = cells.lstm(params, state, inputs)
    gates = inputs @ params.input + state.hidden @ params.hidden + params.bias
    i, f, g, o = np.split(np.asarray(gates), 4)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    cell = sigmoid(f) * np.asarray(state.cell) + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(after.cell, cell, rtol=1e-12)
    np.testing.assert_allclose(after.hidden, sigmoid(o) * np.tanh(cell), rtol=1e-12)
    np.testing.assert_array_equal(params.bias, [0, 0, 1, 1, 0, 0, 0, 0])


def test_a_gru_is_its_equations_and_keeps_its_state_where_the_update_gate_is_open(float64):
    params = cells.init_gru(KEY, 3, 2, jnp.float64)
    state, inputs = jnp.array([0.5, -0.5]), jnp.array([0.3, -1.0, 2.0])
    (update, reset, new), (u, r, n) = (
        np.split(np.asarray(x), 3) for x in (inputs @ params.input, state @ params.hidden)
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    kept = sigmoid(update + u)
    candidate = np.tanh(new + sigmoid(reset + r) * n)
    expected = (1 - kept) * candidate + kept * np.asarray(state)
    np.testing.assert_allclose(cells.gru(params, state, inputs), expected, rtol=1e-9)
    opened = params._replace(bias=params.bias.at[:2].set(50.0))
    np.testing.assert_allclose(cells.gru(opened, state, inputs), state, rtol=1e-9)


def test_the_memory_writes_to_a_spare_slot_and_reads_it_back():
    state = MannState(None, jnp.eye(3, 4), jnp.array([0.9, 0.1, 0.7]), jnp.array([[1.0, 0.0, 0.0]]))
    key = jnp.array([[0.0, 0.0, 0.0, 2.0]])
    memory, weights = write(state, key, jnp.zeros((1, 1)))
    np.testing.assert_array_equal(weights, [[0, 1, 0]])  # the least used slot
    np.testing.assert_array_equal(memory[1], key[0])  # its old content is cleared
    np.testing.assert_array_equal(memory[0], state.memory[0])
    assert cosines(key, memory).argmax() == 1
    memory, weights = write(state, key, jnp.ones((1, 1)))  # the slot read last
    np.testing.assert_array_equal(weights, [[1, 0, 0]])
    np.testing.assert_array_equal(memory[0], state.memory[0] + key[0])


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_step_of_the_memory_is_its_equations(float64, scale):
    reader = mann_model(units=3, slots=5, slot_width=4, heads=2, scale=scale, decay=0.9)
    params = reader.init(KEY, 6, jnp.float64)
    state = reader.start(params)
    controller, memory = state.controller, np.asarray(state.memory)
    usage, weights = np.asarray(state.usage), np.asarray(state.weights)
    for vector in jax.random.normal(KEY, (3, 6), jnp.float64):
        state, output = jax.jit(reader.step)(params, state, vector)
        read = jnp.concatenate([vector, (weights @ memory).reshape(-1)])
        controller = cells.lstm(params.controller, controller, read)
        hidden = np.asarray(controller.hidden)
        keys = np.tanh(hidden @ params.keys).reshape(2, 4)
        gates = np.asarray(jax.nn.sigmoid(hidden @ params.gates))[:, None]
        lengths = np.linalg.norm(keys, axis=1)[:, None] * np.linalg.norm(memory, axis=1)
        cosine = (
            keys @ memory.T / np.maximum(lengths, 1e-30)
        )  # eq. 2, with the memory before the write
        least = np.argsort(usage, kind="stable")[:2]
        spare = np.isin(np.arange(5), least).astype(float)
        written = gates * weights + (1 - gates) * spare  # eq. 7
        memory = memory.copy()
        memory[least[0]] = 0
        memory = memory + written.T @ keys  # eq. 8
        weights = np.asarray(jax.nn.softmax(jnp.asarray(scale * cosine)))  # eq. 3
        usage = 0.9 * usage + weights.sum(0) + written.sum(0)  # eq. 5
        np.testing.assert_allclose(state.memory, memory, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(state.usage, usage, rtol=1e-6)
        np.testing.assert_allclose(
            output, np.concatenate([hidden, (weights @ memory).reshape(-1)]), rtol=1e-6
        )


def test_snail_is_the_network_on_the_whole_sequence(float64):
    learner = snail(ENCODER, ways=3, length=4, width=4)
    episode = classification_episode(KEY, shots=1, dtype=jnp.float64)
    meta = jax.jit(learner.init)(KEY, episode.support.inputs)
    start = learner.start(meta, KEY, episode.support)
    fast = jax.jit(learner.adapt)(meta, start, KEY, episode.support)
    query = episode.query.inputs[:1]

    @jax.jit
    def expected(meta, support):
        # Examples in the order drawn from the key, then the query without a label.
        support = jax.tree.map(lambda leaf: leaf[jax.random.permutation(KEY, 3)], support)
        features = ENCODER.apply(meta.encoder, jnp.concatenate([support.inputs, query]))
        labels = jax.nn.one_hot(support.targets, 3, dtype=jnp.float64)
        x = jnp.concatenate([features, jnp.pad(labels, ((0, 1), (0, 0)))], axis=1)
        dilations = iter([1, 2] * 2)
        for layer in meta.layers:
            if hasattr(layer, "keys"):
                scores = (x @ layer.queries) @ (x @ layer.keys).T / layer.keys.shape[1] ** 0.5
                scores = jnp.where(jnp.tri(len(x), dtype=bool), scores, -jnp.inf)
                made = jax.nn.softmax(scores) @ (x @ layer.values)
            else:
                dilation = next(dilations)
                before = jnp.pad(x, ((dilation, 0), (0, 0)))[: len(x)]
                gated = x @ layer.now + before @ layer.before + layer.bias
                values, gates = jnp.split(gated, 2, axis=1)
                made = jnp.tanh(values) * jax.nn.sigmoid(gates)
            x = jnp.concatenate([x, made], axis=1)
        return x[-1] @ meta.head + meta.bias

    answer = jax.jit(learner.predict)(meta, fast, query)[0]
    np.testing.assert_allclose(answer, expected(meta, episode.support), rtol=1e-9)


def test_the_order_of_the_support_changes_no_answer_in_context(float64):
    learner = in_context(ENCODER, ways=3, width=8, layers=2, heads=2)
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)

    @jax.jit
    def answers(support):
        fast = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support)
        return learner.predict(meta, fast, episode.query.inputs)

    back = jax.tree.map(lambda leaf: leaf[::-1], episode.support)
    np.testing.assert_allclose(answers(back), answers(episode.support), rtol=1e-9)


@pytest.mark.parametrize("reader", [lstm_model(16), mann_model(units=16, slots=8, slot_width=6)])
def test_a_sequence_model_with_shuffled_labels_beats_chance_only_with_the_support(reader):
    # Two fixed classes with random labels per task: only the support set reveals the assignment.
    def sample(data, key):
        del data
        name_key, noise_key = jax.random.split(key)
        first = jax.random.bernoulli(name_key).astype(jnp.int32)
        inputs = jnp.array([[2.0, 0.0], [0.0, 2.0]]) + 0.1 * jax.random.normal(noise_key, (2, 2, 2))
        targets = jnp.array([first, 1 - first])
        return metajax.Episode(*(metajax.Batch(part, targets) for part in inputs))

    learner = recurrent_learner(normed_model(4, None), reader, ways=2)
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    )
    optimizer = optax.adam(1e-2)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=16)
    meta = learner.init(KEY, jnp.zeros((2, 2)))
    state, metrics = jax.jit(metajax.many_steps(step, 400))(
        metajax.init_state(meta, optimizer, jax.random.key(5)), None
    )
    assert metrics["accuracy"][-50:].mean() > 0.95

    def without_support(key):
        episode = sample(None, key)
        fast = learner.start(state.meta, KEY)
        outputs = learner.predict(state.meta, fast, episode.query.inputs)
        return metajax.accuracy(outputs, episode.query)

    keys = jax.random.split(jax.random.key(9), 400)
    assert abs(jax.jit(jax.vmap(without_support))(keys).mean() - 0.5) < 0.1


def test_a_gru_reads_past_padding_and_has_its_true_gradient(float64):
    learner = recurrent_learner(normed_model(5, None), gru_model(4, layers=2), ways=3)
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = noisy(learner.init(KEY, episode.support.inputs), 0.1)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    assert relative_error(lambda meta: objective(meta, KEY, episode)[0], meta) < 1e-6
    support = episode.support._replace(weights=jnp.array([1.0, 1, 1, 0, 1, 1]))
    read = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support)
    inputs = support.inputs.at[3].set(7.0)
    other = learner.adapt(
        meta, learner.start(meta, KEY, support), KEY, support._replace(inputs=inputs)
    )
    jax.tree.map(np.testing.assert_array_equal, read, other)


READERS = {
    "lstm": lambda encoder: recurrent_learner(encoder, lstm_model(4), ways=3),
    "snail": lambda encoder: snail(encoder, ways=3, length=10, width=4),
    "in_context": lambda encoder: in_context(encoder, ways=3, width=8, layers=2, heads=2),
}


@pytest.mark.parametrize("name", ["snail", "in_context"])
def test_keys_and_queries_of_attention_start_equal(name):
    meta = READERS[name](ENCODER).init(KEY, jnp.zeros((3, 2)))
    if name == "in_context":
        pairs = [meta.blocks.attend[:, :2].swapaxes(0, 1)]
    else:
        pairs = [(layer.queries, layer.keys) for layer in meta.layers if hasattr(layer, "keys")]
    for queries, keys in pairs:
        np.testing.assert_array_equal(queries, keys)
        assert keys.any()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("rescale", [True, False])
def test_rescaled_features_have_one_size_whatever_the_encoder_gives(rescale, name):
    episode = classification_episode(KEY)
    support, queries = episode.support, episode.query.inputs

    def answers(size):
        encoder = Model(lambda key, inputs: (), lambda params, inputs: size * inputs)
        learner = READERS[name](rescaled(encoder) if rescale else encoder)
        meta = learner.init(KEY, queries)
        fast = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support)
        return learner.predict(meta, fast, queries)

    assert np.allclose(answers(0.1), answers(10.0), rtol=1e-4, atol=1e-6) == rescale
