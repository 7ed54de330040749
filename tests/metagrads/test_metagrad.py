"""Meta-gradients of quadratics in closed form, groups of tasks, devices, and Reptile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model, point_model
from metajax.types import Batch, Episode


def quadratic_task(center, query):
    """Makes a task with inner loss a |x - center|^2 / 2 and outer loss b |x - query|^2 / 2."""
    return Episode(Batch(jnp.zeros((1, 1)), center[None]), Batch(jnp.zeros((1, 1)), query[None]))


def half_square(scale):
    return lambda outputs, batch: 0.5 * scale * jnp.sum((outputs - batch.targets) ** 2)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_meta_gradients_of_a_quadratic_in_closed_form(float64, steps):
    # x_k = c + (1 - lr a)^k (x - c), so d x_k / d x = (1 - lr a)^k; first order takes 1 for it.
    lr, a, b = 0.3, 0.7, 1.3
    x, center, query = (jnp.array(v) for v in ([0.4, -2.0], [1.5, 0.3], [-0.6, 0.9]))
    contraction = (1 - lr * a) ** steps
    adapted = center + contraction * (x - center)
    outer_slope = b * (adapted - query)

    def meta_grad(rule):
        learner = metajax.maml(point_model(2), half_square(a), rule=rule, steps=steps)
        meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))._replace(params=x)
        objective = metajax.query_objective(learner, half_square(b))
        episodes = jax.tree.map(lambda leaf: leaf[None], quadratic_task(center, query))
        return metajax.backprop(objective)(meta, jax.random.key(0)[None], episodes)

    grads, metrics = meta_grad(optax.sgd(lr))
    np.testing.assert_allclose(grads.params, contraction * outer_slope, rtol=1e-14)
    np.testing.assert_allclose(
        metrics["loss"], 0.5 * b * np.sum((adapted - query) ** 2), rtol=1e-14
    )
    first_order, _ = meta_grad(optax.chain(metajax.stop_gradient(), optax.sgd(lr)))
    np.testing.assert_allclose(first_order.params, outer_slope, rtol=1e-14)


def test_learned_rate_gradient_of_a_quadratic_in_closed_form(float64):
    # x' = x - r a (x - c): d loss / d r = -b (x' - q) a (x - c).
    a, b, rate = 0.7, 1.3, 0.3
    x, center, query = (jnp.array(v) for v in ([0.4, -2.0], [1.5, 0.3], [-0.6, 0.9]))
    learner = metajax.meta_sgd(point_model(2), half_square(a), learning_rate=rate)
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))._replace(params=x)
    objective = metajax.query_objective(learner, half_square(b))
    grads = jax.grad(
        lambda meta: objective(meta, jax.random.key(0), quadratic_task(center, query))[0]
    )(meta)
    adapted = x - rate * a * (x - center)
    np.testing.assert_allclose(grads.rule, -b * (adapted - query) * a * (x - center), rtol=1e-14)


def tasks_and_meta(num_tasks):
    model = linear_model(5, 3)
    learner = metajax.maml(model, metajax.cross_entropy, rule=optax.sgd(0.5), steps=3)
    keys = jax.random.split(jax.random.key(1), num_tasks)
    episodes = jax.vmap(classification_episode)(keys)
    meta = learner.init(jax.random.key(2), episodes.support.inputs[0])
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    )
    return objective, meta, keys, episodes


@pytest.mark.parametrize("tasks_at_once", [1, 2, 6, 100])
def test_groups_of_tasks_give_the_mean_over_all(tasks_at_once):
    objective, meta, keys, episodes = tasks_and_meta(6)
    gradient = jax.jit(jax.grad(objective, has_aux=True))
    each = [gradient(meta, keys[i], jax.tree.map(lambda x, i=i: x[i], episodes)) for i in range(6)]
    expected = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), 0), *each)
    measured = jax.jit(metajax.backprop(objective, tasks_at_once=tasks_at_once))(
        meta, keys, episodes
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), measured, expected
    )


@pytest.mark.parametrize("tasks_at_once", [1, 2])
def test_groups_share_one_trace_of_the_objective(tasks_at_once):
    objective, meta, keys, episodes = tasks_and_meta(6)
    calls = []

    def counted(*task):
        calls.append(task)
        return objective(*task)

    jax.jit(metajax.backprop(counted, tasks_at_once=tasks_at_once)).trace(meta, keys, episodes)
    assert len(calls) == 1


@pytest.mark.parametrize("tasks_at_once", [1, 2, 6])
def test_metrics_are_means_whatever_their_type(tasks_at_once):
    def objective(meta, key, task):
        return meta * task, {"even": task % 2 == 0, "large": jnp.uint8(200), "loss": meta * task}

    keys = jax.random.split(jax.random.key(0), 6)
    meta_grad = metajax.backprop(objective, tasks_at_once=tasks_at_once)
    grad, metrics = meta_grad(jnp.float32(2), keys, jnp.array([0.0, 1, 3, 4, 5, 7]))
    assert metrics == {"even": pytest.approx(1 / 3), "large": 200, "loss": pytest.approx(20 / 3)}
    assert grad == pytest.approx(10 / 3)


@pytest.mark.parametrize("tasks", [1, 3])
def test_groups_compose_under_a_checked_shard_map(tasks):
    objective, meta, keys, episodes = tasks_and_meta(2 * tasks)
    meta_grad = metajax.backprop(objective, tasks_at_once=1)
    expected = meta_grad(meta, keys, episodes)
    mesh = metajax.task_mesh(jax.devices()[:2])
    of_tasks = jax.P("tasks")

    # Seen as different on each device, the parameters get gradients that are not summed over devices.
    def local(meta, keys, episodes):
        own = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "tasks", to="varying"), meta)
        return jax.lax.pmean(meta_grad(own, keys, episodes), "tasks")

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(jax.P(), of_tasks, of_tasks), out_specs=jax.P()
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        spread(meta, keys, episodes),
        expected,
    )


def test_groups_that_do_not_divide_are_refused():
    objective, meta, keys, episodes = tasks_and_meta(6)
    with pytest.raises(ValueError, match="6 tasks do not divide into groups of 4"):
        metajax.backprop(objective, tasks_at_once=4)(meta, keys, episodes)
    with pytest.raises(ValueError, match="tasks_at_once is 0"):
        metajax.backprop(objective, tasks_at_once=0)


@pytest.mark.parametrize("tasks_at_once", [None, 1])
def test_sharded_equals_unsharded(tasks_at_once):
    objective, meta, keys, episodes = tasks_and_meta(8)
    meta_grad = metajax.backprop(objective, tasks_at_once=tasks_at_once)
    whole = jax.jit(meta_grad)(meta, keys, episodes)
    for num_devices in (1, 2, 4):
        mesh = metajax.task_mesh(jax.devices()[:num_devices])
        spread = jax.jit(metajax.over_tasks(mesh, meta_grad))(meta, keys, episodes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), spread, whole
        )


def test_pmap_composes_with_the_same_functions():
    objective, meta, keys, episodes = tasks_and_meta(8)
    meta_grad = metajax.backprop(objective)
    whole = meta_grad(meta, keys, episodes)
    split = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), (keys, episodes))

    def local(meta, keys, episodes):
        return jax.lax.pmean(meta_grad(meta, keys, episodes), "tasks")

    spread = jax.pmap(local, axis_name="tasks", in_axes=(None, 0, 0))(meta, *split)
    first = jax.tree.map(lambda leaf: leaf[0], spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), first, whole)


def test_uneven_tasks_are_refused_with_the_numbers():
    objective, meta, keys, episodes = tasks_and_meta(6)
    spread = metajax.over_tasks(metajax.task_mesh(), metajax.backprop(objective))
    with pytest.raises(
        ValueError, match="6 tasks do not divide over 4 devices; use a multiple of 4"
    ):
        spread(meta, keys, episodes)


def reptile_grads(rule, *, steps=4, tasks_at_once=None, centers=((1.5, 0.3), (-1.0, 2.0))):
    """Runs Reptile on tasks a |x - c|^2 / 2 from x = (0.4, -2); returns result, start and centers."""
    learner = metajax.maml(point_model(2), half_square(0.7), rule=rule, steps=steps)
    x = jnp.array([0.4, -2.0])
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))._replace(params=x)
    tasks = [quadratic_task(jnp.array(center), jnp.zeros(2)) for center in centers]
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    keys = jax.random.split(jax.random.key(1), len(tasks))
    meta_grad = metajax.reptile(learner, half_square(1.0), tasks_at_once=tasks_at_once)
    return meta_grad(meta, keys, episodes), x, jnp.array(centers)


@pytest.mark.parametrize("tasks_at_once", [None, 1])
def test_reptile_of_a_quadratic_in_closed_form(float64, tasks_at_once):
    # start - adapted = (1 - (1 - r a)^k) (x - c), the mean over tasks.
    (grads, metrics), x, centers = reptile_grads(optax.sgd(0.3), tasks_at_once=tasks_at_once)
    moved = 1 - (1 - 0.3 * 0.7) ** 4
    np.testing.assert_allclose(grads.params, moved * (x - centers).mean(axis=0), rtol=1e-13)
    ends = centers + (1 - moved) * (x - centers)
    np.testing.assert_allclose(metrics["loss"], 0.5 * (ends**2).sum(axis=1).mean(), rtol=1e-13)


def test_one_step_of_reptile_is_the_gradient_of_the_mean_support_loss(float64):
    (grads, _), x, centers = reptile_grads(optax.sgd(0.3), steps=1)
    np.testing.assert_allclose(grads.params, 0.3 * 0.7 * (x - centers).mean(axis=0), rtol=1e-13)


def test_the_fixed_point_of_reptile_is_the_mean_of_the_optima_of_equal_tasks(float64):
    learner = metajax.maml(point_model(2), half_square(0.7), rule=optax.sgd(0.3), steps=4)
    centers = jnp.array([[1.5, 0.3], [-1.0, 2.0], [4.0, 1.0]])
    tasks = [quadratic_task(center, jnp.zeros(2)) for center in centers]
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    step = metajax.make_step(
        # The sampler is given the keys of three tasks, and gives each one its own.
        lambda meta, keys, _, step: metajax.reptile(learner, half_square(1.0))(
            meta, keys, episodes, step
        ),
        optax.sgd(0.5),
        lambda data, key: quadratic_task(jnp.zeros(2), jnp.zeros(2)),
        num_tasks=3,
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    state = metajax.init_state(meta, optax.sgd(0.5), jax.random.key(0))
    state, _ = jax.jit(metajax.many_steps(step, 200))(state, None)
    np.testing.assert_allclose(state.meta.params, centers.mean(axis=0), rtol=1e-9)


def test_reptile_serves_any_learner_with_adapted_parameters():
    keys = jax.random.split(jax.random.key(1), 4)
    episodes = jax.vmap(classification_episode)(keys)
    learner = metajax.anil(
        linear_model(5, 3), metajax.cross_entropy, rule=metajax.learned_rates(0.5), steps=3
    )
    meta = learner.init(jax.random.key(2), episodes.support.inputs[0])
    meta_grad = metajax.reptile(
        learner, metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
    )
    grads, metrics = jax.jit(meta_grad)(meta, keys, episodes)
    assert not jnp.any(grads.params["body"])
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads.rule))
    assert jnp.abs(grads.params["head"]["kernel"]).max() > 1e-3
    assert 0 <= metrics["accuracy"] <= 1
    spread = metajax.over_tasks(metajax.task_mesh(), meta_grad)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        jax.jit(spread)(meta, keys, episodes),
        (grads, metrics),
    )


def test_reptile_refuses_a_learner_without_parameters_that_move():
    episode = classification_episode(jax.random.key(1))
    learner = metajax.protonet(linear_model(5, 3), ways=3)
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    tasks = jax.tree.map(lambda leaf: leaf[None], episode)
    for one in (learner, metajax.one_query_at_a_time(learner)):
        with pytest.raises(ValueError, match="and this learner names none; give"):
            metajax.reptile(one, metajax.cross_entropy)(meta, jax.random.key(3)[None], tasks)
