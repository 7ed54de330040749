import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.evolution import evolution, pes
from metajax.types import Batch, Episode, Learner, Scheduled
from toys import classification_episode, linear_model, point_model


def assert_close(measured, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), measured, expected
    )


def data_of(tree):
    """The tree with numbers for keys, as a checkpoint holds it."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def unscored(function):
    """An objective of a function of meta alone, or of meta and the task."""
    return lambda meta, key, task: (function(meta, task), {"loss": function(meta, task)})


def estimates(objective, meta, count, **options):
    """Estimates [count, ...] of one task each, and nothing shared between them but the task."""
    meta_grad = evolution(objective, **options)
    keys = jax.random.split(jax.random.key(7), count)
    one = lambda key: meta_grad(meta, key[None], jnp.zeros(1))[0]  # noqa: E731
    return jax.jit(jax.vmap(one))(keys)


def z_scores(samples, expected):
    error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    return (np.mean(samples, axis=0) - expected) / error


# Of numpy, so that float64 lasts until a test computes in it.
POINT, SLOPE = np.array([0.4, -1.2, 0.7]), np.array([1.0, -2.0, 0.5])
CURVATURE = np.array([1.0, 3.0, 0.2])


def quadratic(meta, task):
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
    # f = m_i gives e_i e, whence e; the objective sees none of it when it splits its key.
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


def test_a_scheduled_objective_asks_for_the_step(float64):
    scheduled = Scheduled(lambda step: unscored(lambda meta, task: step * (SLOPE @ meta)))
    meta_grad = evolution(scheduled, sigma=0.3)
    keys, tasks = jax.random.split(jax.random.key(0), 3), jnp.zeros(3)
    one, two = (jax.jit(meta_grad)(POINT, keys, tasks, jnp.float64(step))[0] for step in (1, 2))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-12)
    with pytest.raises(ValueError, match="call the meta-gradient with step"):
        meta_grad(POINT, keys, tasks)


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


def half_square(outputs, batch):
    return 0.5 * jnp.sum((outputs - batch.targets) ** 2)


def far(outputs, batch):
    return jnp.sum(jnp.abs(outputs - batch.targets)) > 2


CENTER = np.array([3.0, -2.0], np.float32)


def point_episode(key):
    """The support set shows a target, the query set asks for it; targets lie around CENTER."""
    target = CENTER + 0.5 * jax.random.normal(key, (1, 2))
    return Episode(*[Batch(jnp.zeros((1, 1)), target)] * 2)


def sample(data, key):
    del data
    return point_episode(key)


@functools.partial(jax.jit, static_argnums=1)
def offers(step, num_tasks):
    return metajax.draw_tasks(sample, None, jax.random.key(9), step, num_tasks)


def points(steps=1):
    """A learner that moves a point towards the target, and its start."""
    learner = metajax.maml(point_model(2), half_square, rule=optax.adam(0.1), steps=steps)
    return learner, learner.init(jax.random.key(2), jnp.zeros((1, 1)))


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
    # A device sees two tasks: its variance is theirs, and the mean over devices is reported.
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
        key=jax.random.key(4),
        num_tasks=8,
    )
    state = metajax.init_state(meta, optimizer)
    _, metrics = jax.jit(metajax.many_steps(step, 200))(state, None)
    assert np.mean(metrics["loss"][-20:]) < 0.6 * metrics["loss"][0]
    assert np.all(np.isfinite(metrics["grad_variance"]))


# Persistent evolution strategies.

RHO, OFFSET = 0.6, 0.3


def drifting():
    """x <- RHO x + meta * targets, from meta + OFFSET: linear, and every truncation reads `meta`."""

    def adapt(meta, fast, key, batch):
        del key
        return RHO * fast + meta * batch.targets[0]

    return Learner(
        init=lambda key, inputs: jnp.zeros(2),
        start=lambda meta, key: meta + OFFSET,
        adapt=adapt,
        predict=lambda meta, fast, inputs: fast[None],
    )


def point_task():
    """Support targets drive the inner problem, query targets the outer."""
    inputs = jnp.zeros((1, 1))
    return Episode(Batch(inputs, np.array([[1.5, 0.3]])), Batch(inputs, np.array([[-0.6, 0.9]])))


def life_losses(learner, meta, unrolls):
    """The loss after each truncation of a life, `meta` the same throughout."""
    fast, task, losses = learner.start(meta, jax.random.key(0)), point_task(), []
    for _ in range(unrolls):
        fast = learner.adapt(meta, fast, jax.random.key(0), task.support)
        outputs = learner.predict(meta, fast, task.query.inputs)
        losses.append(half_square(outputs, task.query))
    return jnp.stack(losses)


def many_lives(estimator, meta, unrolls, count):
    """Gradients and accumulated perturbations [count, unrolls, ...], a life each, one task at a time."""
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
    # Every truncation by itself, and so the mean over the life; L is quadratic, so nothing is smoothed.
    assert np.all(np.abs(z_scores(grads, exact)) < 4)
    assert np.all(np.abs(z_scores(np.mean(grads, axis=1), np.mean(exact, axis=0))) < 4)

    # Of the same lives without accumulation, (L+ - L-) / (2 sigma) e_t: the slope is grads / drift.
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
    """The learner with a start and an adaptation that use up their keys."""

    def jitter(fast, key):
        params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape, x.dtype), fast.params)
        return fast._replace(params=params)

    return learner._replace(
        start=lambda meta, key: jitter(learner.start(meta, key), key),
        adapt=lambda meta, fast, key, batch: jitter(learner.adapt(meta, fast, key, batch), key),
    )


def test_pes_of_one_truncation_is_evolution(float64):
    learner, meta = points()
    learner, num_tasks = random_learner(learner), 6
    meta = meta._replace(params=meta.params.astype(jnp.float64))
    objective = metajax.query_objective(learner, half_square, metrics={"far": far})
    meta_grad = jax.jit(evolution(objective, sigma=0.2))
    estimator = pes(learner, half_square, sigma=0.2, unrolls=1, metrics={"far": far})
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
    """Takes one step and many, (meta, memory, opt_state) -> the same and metrics; and their start."""
    learner, meta = points()
    estimator = pes(learner, half_square, sigma=0.1, unrolls=unrolls, metrics={"far": far})
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
    lived = np.asarray(carry[1].episode.support.targets)
    for number in range(1, 8):
        ended = ages == unrolls
        offered = np.asarray(offers(number, num_tasks)[1].support.targets)
        lived = np.where(ended[:, None, None], offered, lived)
        ages = np.where(ended, 1, ages + 1)
        carry, _ = step(carry, number)
        np.testing.assert_array_equal(carry[1].age, ages)
        assert_close(carry[1].episode.support.targets, lived)


def test_a_new_life_forgets_the_old_one():
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
    options = {"sigma": 0.05, "unrolls": 3, "metrics": {"far": far}}
    estimator = pes(learner, half_square, **options)
    spread = metajax.over_tasks(
        metajax.task_mesh(),
        pes(learner, half_square, tasks_at_once=tasks_at_once, **options),
    )
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
        estimator = pes(learner, half_square, sigma=0.05, unrolls=1, **options)
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
