"""Transfer baselines: supervised pre-training, and the heads of tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, normed_model
from metajax.learners.transfer.baselines import (
    BaselineMeta,
    Head,
    baseline,
    classification_objective,
    cosine_scale,
    linear_probe,
    logits_of,
    simpleshot,
)
from metajax.types import Batch, Episode, Model

KEY = jax.random.key(0)
ENCODER = normed_model(5, None)
# An encoder that returns its inputs and has no parameters.
IDENTITY = Model(lambda key, inputs: (), lambda params, inputs: inputs)


def trainee(encoder):
    return Model(encoder.init, lambda params, inputs: (encoder.apply(params, inputs), 0.0))


def shown(key, classes=6, images=30, size=4):
    centres = 2 * jax.random.normal(jax.random.key(99), (classes, size))
    labels_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(labels_key, (images,), 0, classes)
    batch = Batch(centres[labels] + jax.random.normal(noise_key, (images, size)) / 4, labels)
    return Episode(batch, batch)


def test_supervised_training_learns_the_classes_and_runs_the_centre():
    learner = simpleshot(ENCODER, ways=3, classes=6)
    objective = classification_objective(
        trainee(ENCODER), metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    )
    optimizer = metajax.train.running_averages(optax.adam(0.05))
    step = metajax.make_step(
        metajax.backprop(objective),
        optimizer,
        lambda data, key: shown(key),
        num_tasks=2,
    )
    meta = learner.init(KEY, jnp.zeros((1, 4)))
    state = metajax.init_state(meta, optimizer, jax.random.key(3))
    state, metrics = jax.jit(metajax.many_steps(step, 60))(state, None)
    assert metrics["accuracy"][-1] > 0.9
    assert metrics["loss"][-1] < 0.5 * metrics["loss"][0]
    features = ENCODER.apply(state.meta.encoder, shown(jax.random.key(4), images=500).query.inputs)
    np.testing.assert_allclose(state.meta.running["centre"], features.mean(0), atol=0.15)


@pytest.mark.parametrize("tasks_at_once", [None, 1])
def test_a_step_of_what_runs_is_a_running_average(float64, tasks_at_once):
    centres, episodes = jnp.array([1.0, -2.0]), []
    objective = classification_objective(trainee(IDENTITY), metajax.cross_entropy)
    for key in jax.random.split(KEY, 4):
        inputs = centres + jax.random.normal(key, (5, 2))
        batch = Batch(inputs, jnp.zeros(5, int))
        episodes.append(Episode(batch, batch))
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *episodes)
    meta = BaselineMeta((), Head(jnp.ones((3, 2)), jnp.zeros(3)), {"centre": jnp.zeros(2)})
    optimizer = metajax.train.running_averages(optax.sgd(0.0), decay=0.75)
    meta_grad = metajax.backprop(objective, tasks_at_once=tasks_at_once)
    grads, _ = meta_grad(meta, jax.random.split(KEY, 4), episodes)
    updates, _ = optimizer.update(grads, optimizer.init(meta), meta)
    seen = episodes.query.inputs.mean((0, 1))
    after = optax.apply_updates(meta, updates)
    np.testing.assert_allclose(after.running["centre"], 0.25 * seen, rtol=1e-12)
    np.testing.assert_array_equal(after.classifier.rows, meta.classifier.rows)


def test_the_pull_is_no_part_of_the_loss(float64):
    objective = classification_objective(trainee(IDENTITY), metajax.cross_entropy)
    episode = shown(KEY, classes=3)
    meta = BaselineMeta((), Head(jnp.ones((3, 4)), jnp.zeros(3)), {"centre": jnp.full(4, 9.0)})
    loss, metrics = objective(meta, KEY, episode)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-12)
    assert loss == metrics["loss"]


def test_cosines_are_scaled_as_the_authors_do():
    assert (cosine_scale(200), cosine_scale(201)) == (2.0, 10.0)
    head = Head(jnp.array([[3.0, 0.0], [0.0, 5.0]]), jnp.full(2, 7.0))
    logits = logits_of(head, jnp.array([[0.5, 0.0]]), cosine=True)
    np.testing.assert_allclose(logits, [[2.0, 0.0]], atol=1e-6)  # and there is no bias


def test_fine_tuning_is_its_equations(float64):
    learner = baseline(
        IDENTITY,
        metajax.cross_entropy,
        ways=3,
        classes=6,
        steps=2,
        learning_rate=0.3,
        minibatch=None,
    )
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)
    start = learner.start(meta, KEY)
    fast = learner.adapt(meta, start, KEY, episode.support)

    def loss(head):
        logits = episode.support.inputs @ head.rows.T + head.bias
        return metajax.cross_entropy(logits, episode.support)

    head, velocity = start.params, jax.tree.map(jnp.zeros_like, start.params)
    for _ in range(2):
        grads = jax.tree.map(lambda g, w: g + 1e-3 * w, jax.grad(loss)(head), head)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g, velocity, grads)
        head = jax.tree.map(lambda w, v: w - 0.3 * v, head, velocity)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), fast.params, head)


def test_a_linear_head_starts_from_zero_and_one_of_cosines_at_random():
    episode = classification_episode(KEY)
    for cosine in (False, True):
        learner = baseline(ENCODER, metajax.cross_entropy, ways=3, classes=6, cosine=cosine)
        meta = learner.init(KEY, episode.support.inputs)
        rows, bias = learner.start(meta, KEY).params
        limit = cosine * rows.shape[1] ** -0.5
        assert not bias.any() and limit / 2 <= jnp.abs(rows).max() <= limit


def test_nothing_flows_through_fine_tuning_to_the_encoder():
    learner = baseline(ENCODER, metajax.cross_entropy, ways=3, classes=6, steps=3)
    episode = classification_episode(KEY)
    meta = learner.init(KEY, episode.support.inputs)

    def adapted(meta):
        fast = learner.adapt(meta, learner.start(meta, KEY), KEY, episode.support)
        return jnp.sum(fast.params.rows)

    grads = jax.jit(jax.grad(adapted))(meta)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads.encoder))


def test_simpleshot_is_the_nearest_mean_of_centered_unit_features(float64):
    learner = simpleshot(IDENTITY, ways=3, classes=6)
    episode = classification_episode(KEY, shots=3, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)
    meta = meta._replace(running={"centre": jnp.array([0.5, -0.5, 1.0, 0.0])})

    def unit(x):
        x = np.asarray(x) - np.array([0.5, -0.5, 1.0, 0.0])
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    means = unit(episode.support.inputs).reshape(3, 3, 4).mean(1)
    distances = ((unit(episode.query.inputs)[:, None] - means) ** 2).sum(-1)
    outputs = metajax.objectives.query_outputs(learner, meta, KEY, episode)
    np.testing.assert_allclose(
        jax.nn.log_softmax(outputs), jax.nn.log_softmax(-distances), rtol=1e-9
    )


def test_refining_moves_class_means_to_the_queries_they_attract(float64):
    episode = classification_episode(KEY, shots=1, queries=5, dtype=jnp.float64)
    meta = simpleshot(IDENTITY, ways=3, classes=6).init(KEY, episode.support.inputs)
    plain, once = (
        metajax.objectives.query_outputs(
            simpleshot(IDENTITY, ways=3, classes=6, refine=steps), meta, KEY, episode
        )
        for steps in (0, 1)
    )

    def unit(x):
        return np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)

    shares = np.asarray(jax.nn.softmax(plain))
    support, query = unit(episode.support.inputs), unit(episode.query.inputs)
    means = (support + shares.T @ query) / (1 + shares.sum(0))[:, None]
    distances = ((query[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(jax.nn.log_softmax(once), jax.nn.log_softmax(-distances), rtol=1e-9)


def test_a_linear_probe_is_at_the_minimum_of_its_loss(float64):
    learner = linear_probe(IDENTITY, ways=3, classes=6, regularization=0.5, steps=30)
    episode = classification_episode(KEY, shots=4, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)
    start = learner.start(meta, KEY, episode.support)
    fast = learner.adapt(meta, start, KEY, episode.support)
    x, labels = fast.examples.features, jax.nn.one_hot(episode.support.targets, 3)

    def loss(head):
        return jnp.sum(jax.nn.softplus(-(2 * labels - 1) * (x @ head))) + 0.25 * jnp.sum(head**2)

    assert optax.tree.norm(jax.grad(loss)(fast.made)) < 1e-8


def test_a_refinement_below_zero_is_refused():
    with pytest.raises(ValueError, match="refine is -1"):
        simpleshot(ENCODER, ways=3, classes=6, refine=-1)
