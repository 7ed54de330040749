"""Persistent evolution strategies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.evolution_toys import (
    CENTER,
    assert_close,
    data_of,
    far,
    half_square,
    offers,
    points,
    z_scores,
)
from helpers.toys import point_model
from metajax.metagrads import evolution, pes
from metajax.types import Batch, Episode, Learner

RHO, OFFSET = 0.6, 0.3


def drifting():
    """Makes the learner x <- RHO x + meta * targets from meta + OFFSET; every truncation reads `meta`."""

    def adapt(meta, fast, key, batch):
        del key
        return RHO * fast + meta * batch.targets[0]

    return Learner(
        init=lambda key, inputs: jnp.zeros(2),
        start=lambda meta, key, like=None: meta + OFFSET,
        adapt=adapt,
        predict=lambda meta, fast, inputs: fast[None],
    )


def point_task():
    """Makes a task: support targets drive the inner problem, query targets the outer."""
    inputs = jnp.zeros((1, 1))
    return Episode(Batch(inputs, np.array([[1.5, 0.3]])), Batch(inputs, np.array([[-0.6, 0.9]])))


def life_losses(learner, meta, unrolls):
    """Computes the loss after each truncation of a life with constant `meta`."""
    fast, task, losses = learner.start(meta, jax.random.key(0)), point_task(), []
    for _ in range(unrolls):
        fast = learner.adapt(meta, fast, jax.random.key(0), task.support)
        outputs = learner.predict(meta, fast, task.query.inputs)
        losses.append(half_square(outputs, task.query))
    return jnp.stack(losses)


def many_lives(estimator, meta, unrolls, count):
    """Runs lives of one task each; returns gradients and accumulated perturbations [count, unrolls, ...]."""
    episodes = jax.tree.map(lambda leaf: leaf[None], point_task())

    def life(key):
        def update(memory, _):
            grads, memory, _ = estimator.update(meta, memory, key[None], episodes)
            return memory, (grads, jax.tree.map(lambda leaf: leaf[0], memory.drift))

        memory = estimator.init(meta, key[None], episodes)
        return jax.lax.scan(update, memory, length=unrolls)[1]

    return jax.jit(jax.vmap(life))(jax.random.split(jax.random.key(11), count))


def test_pes_is_unbiased_over_a_life_and_truncated_evolution_is_not(float64):
    learner, unrolls, meta = drifting(), 4, jnp.array([0.4, -2.0])
    estimator = pes(learner, half_square, sigma=0.3, unrolls=unrolls)
    grads, drift = many_lives(estimator, meta, unrolls, 20000)
    exact = jax.jacrev(lambda meta: life_losses(learner, meta, unrolls))(meta)
    # Unbiased at every truncation, hence over the life; smoothing keeps the gradient of a quadratic L.
    assert np.all(np.abs(z_scores(grads, exact)) < 4)
    assert np.all(np.abs(z_scores(np.mean(grads, axis=1), np.mean(exact, axis=0))) < 4)

    # The same lives without accumulation: (L+ - L-) / (2 sigma) e_t, whose slope is grads / drift.
    slopes = np.sum(grads * drift, -1, keepdims=True) / np.sum(drift**2, -1, keepdims=True)
    truncated = slopes * np.diff(drift, axis=1, prepend=0)
    # It sees d x_t / d meta = targets (and the start, in the first truncation), not the earlier ones.
    targets, query = (batch.targets[0] for batch in point_task())
    states = [meta + OFFSET]
    for _ in range(unrolls):
        states.append(RHO * states[-1] + meta * targets)
    direct = np.stack([targets + RHO, *[targets] * (unrolls - 1)])
    short = (np.stack(states[1:]) - query) * direct
    assert np.all(np.abs(z_scores(truncated, short)) < 4)
    bias = np.mean(exact - short, axis=0)
    assert np.all(np.abs(z_scores(np.mean(truncated, axis=1), np.mean(short, axis=0))) < 4)
    assert np.min(np.abs(bias)) > 0.3


def test_pes_of_maml_sees_the_start_through_all_truncations(float64):
    # x_t = c + contraction^t (x - c): only the first perturbation matters, and xi remembers it.
    lr, steps, unrolls, meta_point = 0.1, 2, 3, jnp.array([0.4, -2.0])
    learner = metajax.maml(point_model(2), half_square, rule=optax.sgd(lr), steps=steps)
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))._replace(params=meta_point)
    estimator = pes(learner, half_square, sigma=0.3, unrolls=unrolls)
    grads, _ = many_lives(estimator, meta, unrolls, 20000)
    center, query = (batch.targets[0] for batch in point_task())
    contraction = (1 - lr) ** (steps * np.arange(1, unrolls + 1))[:, None]
    exact = contraction * (center + contraction * (meta_point - center) - query)
    assert np.all(np.abs(z_scores(grads.params, exact)) < 4)


def random_learner(learner):
    """Wraps a learner so that its start and its adaptation depend on their keys."""

    def jitter(fast, key):
        params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape, x.dtype), fast.params)
        return fast._replace(params=params)

    return learner._replace(
        start=lambda meta, key, like: jitter(learner.start(meta, key, like), key),
        adapt=lambda meta, fast, key, batch: jitter(learner.adapt(meta, fast, key, batch), key),
    )


def test_pes_of_one_truncation_is_evolution(float64):
    learner, meta = points()
    learner, num_tasks = random_learner(learner), 6
    meta = meta._replace(params=meta.params.astype(jnp.float64))
    scoring = metajax.Scoring(half_square, {"far": far})
    objective = metajax.query_objective(learner, scoring)
    meta_grad = jax.jit(evolution(objective, sigma=0.2))
    estimator = pes(learner, scoring, sigma=0.2, unrolls=1)
    update, memory = jax.jit(estimator.update), jax.jit(estimator.init)(meta, *offers(0, num_tasks))
    for step in range(3):
        # The first lives are those that `init` was given.
        offered = offers(step, num_tasks)
        grads, memory, metrics = update(meta, memory, *offered)
        expected = meta_grad(meta, *offered)
        assert_close((grads, metrics), expected, rtol=1e-10, atol=1e-12)
        meta = jax.tree.map(lambda x, g: x - 0.1 * g, meta, grads)


@functools.cache
def pes_training(num_tasks=5, unrolls=3):
    """Makes one step and many over (meta, memory, opt_state), and the first of these states."""
    learner, meta = points()
    scoring = metajax.Scoring(half_square, {"far": far})
    estimator = pes(learner, scoring, sigma=0.1, unrolls=unrolls)
    optimizer = optax.adam(0.1)

    def step(carry, number):
        meta, memory, opt_state = carry
        grads, memory, metrics = estimator.update(meta, memory, *offers(number, num_tasks))
        updates, opt_state = optimizer.update(grads, opt_state, meta)
        return (optax.apply_updates(meta, updates), memory, opt_state), metrics

    def steps(carry, numbers):
        return jax.lax.scan(step, carry, numbers)

    memory = jax.jit(estimator.init)(meta, *offers(0, num_tasks))
    return jax.jit(step), jax.jit(steps), (meta, memory, optimizer.init(meta))


def test_lives_end_in_turn_and_take_the_episode_then_offered():
    num_tasks, unrolls = 5, 3
    step, _, carry = pes_training(num_tasks, unrolls)
    ages = np.arange(num_tasks) % unrolls
    np.testing.assert_array_equal(carry[1].age, ages)
    lived = np.asarray(carry[1].task.support.targets)
    for number in range(1, 8):
        ended = ages == unrolls
        offered = np.asarray(offers(number, num_tasks)[1].support.targets)
        lived = np.where(ended[:, None, None], offered, lived)
        ages = np.where(ended, 1, ages + 1)
        carry, _ = step(carry, number)
        np.testing.assert_array_equal(carry[1].age, ages)
        assert_close(carry[1].task.support.targets, lived)


def test_a_new_life_is_independent_of_the_old_one():
    num_tasks, unrolls = 4, 2
    learner, meta = points()
    estimator = pes(learner, half_square, sigma=0.05, unrolls=unrolls)
    update, memory = jax.jit(estimator.update), jax.jit(estimator.init)(meta, *offers(0, num_tasks))
    for number in (1, 2, 3):
        _, memory, _ = update(meta, memory, *offers(number, num_tasks))
    ended = memory.age == unrolls
    np.testing.assert_array_equal(ended, [False, True, False, True])
    reborn = update(meta, memory, *offers(4, num_tasks))[1]
    fresh = jax.jit(estimator.init)(meta, *offers(4, num_tasks))
    fresh = update(meta, fresh, *offers(5, num_tasks))[1]

    def of_ended(memory):
        return jax.tree.map(lambda x: x[ended], data_of(memory._replace(age=None)))

    assert_close(of_ended(reborn), of_ended(fresh))


def test_pes_under_scan_is_the_steps_one_by_one_and_resumes_from_numbers():
    step, steps, start = pes_training(5, 3)
    together, metrics = steps(start, np.arange(1, 9))
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert types(together) == types(start)
    carry = start
    for number in range(1, 9):
        (meta, memory, opt_state), one = step(carry, number)
        # Between any two steps, everything can go to a file and come back.
        restored = jax.tree.map(jnp.asarray, data_of(memory))
        restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
        carry = meta, restored, opt_state
    assert_close(data_of(carry[1]), data_of(together[1]), rtol=1e-4, atol=1e-5)
    assert_close(carry[0], together[0], rtol=1e-4, atol=1e-5)
    assert_close(one, jax.tree.map(lambda values: values[-1], metrics), rtol=1e-4)


@pytest.mark.parametrize("tasks_at_once", [None, 2])
def test_pes_spreads_over_devices(tasks_at_once):
    # Two tasks a device, and lives of three truncations: ages go by a task's number among all.
    num_tasks = 8
    learner, meta = points()
    of_scoring = functools.partial(
        pes, learner, metajax.Scoring(half_square, {"far": far}), sigma=0.05, unrolls=3
    )
    estimator = of_scoring()
    spread = metajax.over_tasks(metajax.task_mesh(), of_scoring(tasks_at_once=tasks_at_once))
    whole = jax.jit(estimator.init)(meta, *offers(0, num_tasks))
    sharded = jax.jit(spread.init)(meta, *offers(0, num_tasks))
    np.testing.assert_array_equal(sharded.age, np.arange(8) % 3)
    for number in range(1, 5):
        offered = offers(number, num_tasks)
        expected, whole, metrics = jax.jit(estimator.update)(meta, whole, *offered)
        grads, sharded, means = jax.jit(spread.update)(meta, sharded, *offered)
        assert_close(grads, expected, rtol=1e-4, atol=1e-5)
        assert_close(means["loss"], metrics["loss"])
        assert_close(data_of(sharded), data_of(whole), rtol=1e-4, atol=1e-5)


def test_pes_refuses_tasks_that_do_not_divide_over_the_devices():
    learner, meta = points()
    spread = metajax.over_tasks(
        metajax.task_mesh(), pes(learner, half_square, sigma=0.05, unrolls=3)
    )
    with pytest.raises(ValueError, match="6 tasks do not divide over 4 devices"):
        spread.init(meta, *offers(0, 6))


def test_a_penalty_is_part_of_what_pes_descends():
    learner, meta = points()

    def grads(**options):
        scoring = metajax.Scoring(half_square, **options)
        estimator = pes(learner, scoring, sigma=0.05, unrolls=1)
        memory = estimator.init(meta, *offers(0, 4))
        return estimator.update(meta, memory, *offers(1, 4))

    plain, penalised = grads(), grads(penalty=lambda meta, fast: 3 * jnp.sum(meta.params))
    assert "penalty" in penalised[2] and "penalty" not in plain[2]
    assert_close(plain[2]["loss"], penalised[2]["loss"])
    # 3 sum(x): its estimate is 3 e <e, 1>, of mean 3.
    assert np.abs(penalised[0].params - plain[0].params).max() > 0.1


def test_training_with_pes_learns():
    _, steps, start = pes_training(5, 3)
    carry, losses = start, []
    for first in range(1, 401, 8):
        carry, metrics = steps(carry, np.arange(first, first + 8))
        losses.extend(metrics["loss"])
    # The best start is the center of the targets, symmetric as they are.
    assert np.linalg.norm(start[0].params - CENTER) > 3
    assert np.linalg.norm(carry[0].params - CENTER) < 0.5
    assert np.mean(losses[-40:]) < 0.1 * losses[0]
    assert set(metrics) == {"far", "grad_variance", "loss"}
