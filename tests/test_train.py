"""Outer steps, skipped steps, running averages and evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import as_numbers, classification_episode, linear_model


def sample(data, key):
    """Draws a classification episode."""
    del data
    return classification_episode(key)


@pytest.fixture(scope="module")
def training():
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 4)))
    optimizer = optax.adam(0.01)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=4)
    return objective, step, metajax.init_state(meta, optimizer, jax.random.key(1)), optimizer


def test_a_step_is_the_outer_optimizer_on_the_mean_gradient(training):
    objective, step, state, optimizer = training
    keys, episodes = metajax.draw_tasks(sample, None, jax.random.key(1), 0, jnp.arange(4))

    def mean_loss(meta):
        return jnp.mean(
            jax.vmap(lambda key, episode: objective(meta, key, episode)[0])(keys, episodes)
        )

    grads = jax.grad(mean_loss)(state.meta)
    updates, _ = optimizer.update(grads, state.opt_state, state.meta)
    expected = optax.apply_updates(state.meta, updates)
    new, metrics = step(state, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new.meta, expected)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], mean_loss(state.meta), rtol=1e-5)
    assert new.step == 1


def test_many_steps_are_the_steps_one_by_one(training):
    _, step, state, _ = training
    together, metrics = jax.jit(metajax.many_steps(step, 5))(state, None)
    losses = []
    for _ in range(5):
        state, one = jax.jit(step)(state, None)
        losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        as_numbers(together),
        as_numbers(state),
    )
    assert together.step == 5


def test_skipping_leaves_out_bad_steps_and_only_those(training):
    objective, _, state, optimizer = training
    bad = {2, 3}

    def spoiled(data, key):
        episode = sample(data, key)
        return episode._replace(query=episode.query._replace(inputs=episode.query.inputs * data))

    step = metajax.make_step(metajax.backprop(objective), optimizer, spoiled, num_tasks=4)
    plain, guarded = jax.jit(step), jax.jit(metajax.train.skip_nonfinite(step))
    expected, skipped = state, []
    for number in range(6):
        state, metrics = guarded(state, jnp.nan if number in bad else 1.0)
        skipped.append(int(metrics["skipped"]))
        if number in bad:  # leaves no trace in the later steps
            expected = expected._replace(step=expected.step + 1)
        else:
            expected, _ = plain(expected, 1.0)
    assert skipped == [0, 0, 1, 1, 0, 0]
    # Two programs may round the last bit differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
        as_numbers(state),
        as_numbers(expected),
    )
    assert state.step == 6


def test_skipping_counts_an_overflowing_gradient_norm_too(training):
    _, _, state, optimizer = training
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e30), state.meta)
    meta_grad = lambda meta, keys, episodes, step: (huge, {"loss": jnp.zeros(())})  # noqa: E731
    step = metajax.make_step(meta_grad, optimizer, sample, num_tasks=4)
    new, metrics = metajax.train.skip_nonfinite(step)(state, None)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, new.opt_state, state.opt_state)


def test_evaluation_scores_the_same_episodes_however_they_are_split(training):
    objective, _, state, _ = training
    key = jax.random.key(9)
    keys, episodes = metajax.draw_tasks(sample, None, key, 0, jnp.arange(7))
    one = jax.jit(objective)
    one_by_one = [
        one(state.meta, keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], episodes))[1]
        for i in range(7)
    ]
    expected = np.array([metrics["loss"] for metrics in one_by_one])
    for tasks_at_once in (1, 3, 7):
        evaluate = metajax.make_evaluate(objective, sample, tasks_at_once=tasks_at_once)
        spread = metajax.sharding.over_episodes(metajax.task_mesh(), evaluate)
        for scorer in (evaluate, spread):
            scores = jax.jit(scorer)(state.meta, None, key, jnp.arange(7))
            np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)


def test_an_evaluation_takes_numpy_numbers_and_data():
    def objective(meta, key, task):
        del key
        return meta, {"seen": task}

    evaluate = metajax.make_evaluate(objective, lambda data, key: data, by_task=0)
    scores = evaluate(0.0, np.arange(3.0), jax.random.key(0), np.arange(3))
    np.testing.assert_array_equal(scores["seen"], [0.0, 1.0, 2.0])


def test_confidence_interval():
    mean, half = metajax.confidence_interval(np.array([0.0, 1.0, 1.0, 0.0]))
    assert mean == 0.5
    np.testing.assert_allclose(half, 1.96 * np.sqrt(1 / 3) / 2)
    assert np.isnan(metajax.confidence_interval(np.array([0.5]))[1])


def test_the_95_percent_interval_covers_the_truth_in_95_percent_of_draws():
    draws = np.random.default_rng(0).normal(size=(2000, 100))
    covered = [abs(mean) < half for mean, half in map(metajax.confidence_interval, draws)]
    assert 0.93 < np.mean(covered) < 0.965


def test_the_predicate_selects_the_running_averages():
    params = {"mean": jnp.array(2.0), "running": jnp.array(3.0)}
    optimizer = metajax.train.running_averages(
        optax.sgd(0.5), decay=0.75, averages=metajax.trees.under("mean")
    )
    seen = {"mean": params["mean"] - 6.0, "running": jnp.array(1.0)}
    updates, _ = optimizer.update(seen, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert moved == {"mean": 0.75 * 2 + 0.25 * 6, "running": 3 - 0.5}
