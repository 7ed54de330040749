"""Antithetic evolution strategies against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.evolution_toys import assert_close, z_scores
from helpers.toys import classification_episode, linear_model, point_model
from metajax.metagrads import evolution, pes


def unscored(function):
    """Makes an objective from a function of the meta-parameters and the task."""
    return lambda meta, key, task: (function(meta, task), {"loss": function(meta, task)})


def estimates(objective, meta, count, **options):
    """Computes independent estimates [count, ...], each from one task."""
    meta_grad = evolution(objective, **options)
    keys = jax.random.split(jax.random.key(7), count)
    one = lambda key: meta_grad(meta, key[None], jnp.zeros(1))[0]  # noqa: E731
    return jax.jit(jax.vmap(one))(keys)


# NumPy arrays, which stay float64 until a test enables it in JAX.
POINT, SLOPE = np.array([0.4, -1.2, 0.7]), np.array([1.0, -2.0, 0.5])
CURVATURE = np.array([1.0, 3.0, 0.2])


def quadratic(meta, task):
    """Computes a quadratic function of the meta-parameters."""
    return 0.5 * jnp.sum(CURVATURE * meta**2) + SLOPE @ meta + task


def test_a_quadratic_gets_its_exact_gradient_whatever_sigma(float64):
    gradient = CURVATURE * POINT + SLOPE
    narrow, wide = (
        estimates(unscored(quadratic), POINT, 20000, sigma=sigma) for sigma in (0.01, 3.0)
    )
    # Every estimate is e (e . gradient): the second order cancels between the two of a pair.
    np.testing.assert_allclose(narrow, wide, rtol=1e-8, atol=1e-8)
    assert np.all(np.abs(z_scores(wide, gradient)) < 4)
    variance = np.sum(gradient**2) * (3 + 1)
    np.testing.assert_allclose(np.sum(np.var(wide, axis=0)), variance, rtol=0.05)


@pytest.mark.parametrize(
    ("power", "smoothed"),
    [
        (3, lambda x, sigma: 3 * x**2 + 3 * sigma**2),
        (4, lambda x, sigma: 4 * x**3 + 12 * sigma**2 * x),
    ],
)
def test_the_gradient_is_that_of_the_smoothed_objective(float64, power, smoothed):
    sigma, x = 0.8, jnp.array([0.9])
    function = unscored(lambda meta, task: jnp.sum(meta**power))
    samples = estimates(function, x, 40000, sigma=sigma)
    assert np.all(np.abs(z_scores(samples, smoothed(x, sigma))) < 4)
    assert np.all(np.abs(z_scores(samples, smoothed(x, 0))) > 20)


def test_the_error_falls_with_the_root_of_the_pairs(float64):
    linear = unscored(lambda meta, task: SLOPE @ meta)
    pairs, errors = np.array([1, 8, 64]), []
    for count in pairs.tolist():
        samples = estimates(linear, POINT, 2000, sigma=0.5, pairs=count)
        errors.append(np.sqrt(np.mean(np.sum((samples - SLOPE) ** 2, axis=1))))
    np.testing.assert_allclose(errors, np.sqrt(np.sum(SLOPE**2) * 4 / pairs), rtol=0.08)
    slope = np.polyfit(np.log(pairs), np.log(errors), 1)[0]
    assert -0.53 < slope < -0.47


@pytest.mark.parametrize(("tasks", "tasks_at_once"), [(2, None), (2, 1), (8, 2)])
def test_grad_variance_has_the_expectation_of_the_closed_form(float64, tasks, tasks_at_once):
    # Slopes g_t ~ N(g, tau^2 I): var = d tau^2 + (d + 1) E |g_t|^2 / pairs, for any number of tasks.
    tau, pairs, size, repeats = 0.5, 2, 3, 4000
    meta_grad = evolution(
        unscored(lambda meta, task: task @ meta),
        sigma=0.3,
        pairs=pairs,
        tasks_at_once=tasks_at_once,
    )

    def once(key):
        task_key, key = jax.random.split(key)
        slopes = SLOPE + tau * jax.random.normal(task_key, (tasks, size))
        return meta_grad(POINT, jax.random.split(key, tasks), slopes)

    grads, metrics = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(3), repeats))
    expected = size * tau**2 + (size + 1) * (np.sum(SLOPE**2) + size * tau**2) / pairs
    assert abs(z_scores(metrics["grad_variance"], expected)) < 4
    np.testing.assert_allclose(np.mean(metrics["grad_variance"]), expected, rtol=0.1)
    # The mean gradient has a T-th of it.
    np.testing.assert_allclose(np.sum(np.var(grads, axis=0)), expected / tasks, rtol=0.1)


def test_grad_variance_of_a_linear_objective_is_the_sample_variance(float64):
    meta_grad = evolution(unscored(lambda meta, task: SLOPE @ meta), sigma=0.3)
    keys = jax.random.split(jax.random.key(0), 10000)
    _, metrics = jax.jit(meta_grad)(POINT, keys, jnp.zeros(10000))
    one = lambda key: meta_grad(POINT, key[None], jnp.zeros(1))[0]  # noqa: E731
    samples = jax.jit(jax.vmap(one))(keys)
    by_hand = np.sum(np.var(samples, axis=0, ddof=1))
    np.testing.assert_allclose(metrics["grad_variance"], by_hand, rtol=1e-12)
    np.testing.assert_allclose(by_hand, 4 * np.sum(SLOPE**2), rtol=0.1)


def test_a_single_task_has_no_variance_to_report(float64):
    meta_grad = evolution(unscored(quadratic), sigma=0.3, pairs=3)
    _, metrics = meta_grad(POINT, jax.random.key(0)[None], jnp.zeros(1))
    assert set(metrics) == {"loss"}


def test_both_members_of_a_pair_share_the_key_and_the_noise_it_makes(float64):
    def noisy(meta, key, task):
        loss = SLOPE @ meta + 1e6 * jax.random.normal(key)
        return loss, {"loss": loss}

    quiet = estimates(unscored(lambda meta, task: SLOPE @ meta), POINT, 50, sigma=0.3, pairs=2)
    np.testing.assert_allclose(
        estimates(noisy, POINT, 50, sigma=0.3, pairs=2), quiet, rtol=1e-6, atol=1e-6
    )


def test_perturbations_are_independent_of_each_other_and_of_the_keys_of_the_objective(float64):
    # f = m_i gives the estimate e_i e, from which e follows; the objective's own keys must not repeat it.
    size, key = 2000, jax.random.key(5)

    def noise_of(key):
        meta_grad = evolution(unscored(lambda meta, task: meta[0]), sigma=1.0)
        one = jax.jit(meta_grad)(jnp.zeros(size), key[None], jnp.zeros(1))[0]
        return one / jnp.sqrt(one[0])

    drawn = [noise_of(key), noise_of(jax.random.fold_in(key, 1)), noise_of(jax.random.key(6))]
    first, *others = jax.random.split(key, 3)
    keys_of_objective = [key, first, *others, *jax.random.split(first)]
    drawn += [jax.random.normal(k, size) for k in keys_of_objective]
    correlations = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(size)


def test_metrics_are_means_over_both_signs_and_all_pairs(float64):
    def objective(meta, key, task):
        return meta**2, {"value": meta**2, "up": meta > 3.0, "byte": jnp.uint8(200)}

    meta_grad = evolution(objective, sigma=0.5, pairs=20000)
    _, metrics = meta_grad(jnp.float64(3.0), jax.random.key(0)[None], jnp.zeros(1))
    np.testing.assert_allclose(metrics["value"], 9 + 0.5**2, rtol=1e-3)
    np.testing.assert_allclose([metrics["up"], metrics["byte"]], [0.5, 200], rtol=1e-12)


def test_leaves_keep_their_types_and_integers_stay(float64):
    def objective(meta, key, task):
        assert meta["half"].dtype == jnp.bfloat16 and meta["count"].dtype == jnp.int32
        loss = meta["count"] * jnp.sum(meta["single"]) + jnp.sum(meta["half"]).astype(jnp.float32)
        return loss, {"loss": loss, "count": meta["count"]}

    meta = {
        "half": jnp.ones(3, jnp.bfloat16),
        "single": jnp.ones(2, jnp.float32),
        "count": jnp.int32(5),
    }
    keys = jax.random.split(jax.random.key(0), 4)
    grads, metrics = jax.jit(evolution(objective, sigma=0.1))(meta, keys, jnp.zeros(4))
    assert grads["half"].dtype == jnp.bfloat16 and grads["single"].dtype == jnp.float32
    assert grads["count"] == 0 and metrics["count"] == 5


def test_a_schedule_and_a_switch_take_each_meta_gradient_at_its_time(float64):
    def linear(factor):
        return evolution(unscored(lambda meta, task: factor * (SLOPE @ meta)), sigma=0.3)

    before = evolution(unscored(quadratic), sigma=0.3)
    meta_grad = jax.jit(
        metajax.metagrads.switch_at(10, before, metajax.metagrads.scheduled(linear))
    )
    keys, tasks = jax.random.split(jax.random.key(0), 3), jnp.zeros(3)
    for step, expected in ((9, before), (10, linear(10.0)), (20, linear(20.0))):
        found = meta_grad(POINT, keys, tasks, jnp.int32(step))
        assert_close(found, expected(POINT, keys, tasks), rtol=1e-12, atol=0)


def test_wrong_options_are_refused_with_a_remedy():
    objective = unscored(quadratic)
    learner = metajax.maml(point_model(2), metajax.squared_error, rule=optax.sgd(0.1))
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"sigma is {sigma}; use a finite number above 0"):
            evolution(objective, sigma=sigma)
        with pytest.raises(ValueError, match=f"sigma is {sigma}; use a finite number above 0"):
            pes(learner, metajax.squared_error, sigma=sigma, unrolls=2)
    with pytest.raises(ValueError, match="pairs is 0; use 1 or more"):
        evolution(objective, sigma=0.1, pairs=0)
    with pytest.raises(ValueError, match="tasks_at_once is 0; use 1 or more"):
        evolution(objective, sigma=0.1, tasks_at_once=0)
    with pytest.raises(ValueError, match="unrolls is 0; use 1 or more"):
        pes(learner, metajax.squared_error, sigma=0.1, unrolls=0)


def test_groups_jit_and_devices_change_nothing():
    def objective(meta, key, task):
        loss = jnp.sum(jnp.sin(meta) * task) + jax.random.normal(key)
        return loss, {"loss": loss, "up": loss > 0}

    keys, tasks = jax.random.split(jax.random.key(0), 8), np.arange(8, dtype=np.float32)
    meta_grad = jax.jit(evolution(objective, sigma=0.1, pairs=2))
    whole = meta_grad(POINT, keys, tasks)
    assert set(whole[1]) == {"up", "grad_variance", "loss"}
    eager = evolution(objective, sigma=0.1, pairs=2)
    assert_close(eager(POINT, keys, tasks), whole, rtol=1e-4)
    for tasks_at_once in (1, 4):
        grouped = evolution(objective, sigma=0.1, pairs=2, tasks_at_once=tasks_at_once)
        assert_close(jax.jit(grouped)(POINT, keys, tasks), whole, rtol=1e-4)

    spread = jax.jit(metajax.over_tasks(metajax.task_mesh(), meta_grad))
    # Each device estimates the variance from its two tasks; the mean over devices is reported.
    parts = [meta_grad(POINT, keys[i : i + 2], tasks[i : i + 2])[1] for i in range(0, 8, 2)]
    variance = np.mean([part["grad_variance"] for part in parts])
    expected = whole[0], {**whole[1], "grad_variance": variance}
    assert_close(spread(POINT, keys, tasks), expected, rtol=1e-4)


def test_training_with_evolution_learns():
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    meta, optimizer = learner.init(jax.random.key(2), jnp.zeros((1, 4))), optax.adam(0.02)
    step = metajax.make_step(
        evolution(objective, sigma=0.05, pairs=8),
        optimizer,
        lambda data, key: classification_episode(key),
        num_tasks=8,
    )
    state = metajax.init_state(meta, optimizer, jax.random.key(4))
    _, metrics = jax.jit(metajax.many_steps(step, 200))(state, None)
    assert np.mean(metrics["loss"][-20:]) < 0.6 * metrics["loss"][0]
    assert np.all(np.isfinite(metrics["grad_variance"]))
