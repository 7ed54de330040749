"""Tasks and parameters divided over devices: equal numbers, and the placement of every leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import as_numbers
from metajax import sharding
from metajax.models import MLP, from_flax
from metajax.types import Batch, Episode

WIDE = 96  # a WIDE x WIDE kernel is large enough to be divided


def sample(data, key):
    """Draws a task y = a x + b of ten points."""
    slope_key, input_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (10, 4))
    targets = inputs @ jax.random.normal(slope_key, (4, 1)) + data
    return Episode(Batch(inputs[:5], targets[:5]), Batch(inputs[5:], targets[5:]))


def training(mesh, *, optimizer, num_tasks=8):
    """Makes an outer step on a mesh, or on one device, and its first state."""
    learner = metajax.maml(
        from_flax(MLP((WIDE, WIDE))), metajax.squared_error, rule=optax.sgd(0.01), steps=2
    )
    meta_grad = metajax.backprop(metajax.query_objective(learner, metajax.squared_error))
    meta = learner.init(jax.random.key(3), jnp.zeros((1, 4)))
    state, spread = metajax.init_state(meta, optimizer, jax.random.key(1)), {}
    if mesh:
        meta_grad = metajax.over_tasks(mesh, meta_grad)
        state, spread = (
            sharding.place(mesh, state),
            {"draw": metajax.sharding.draw_over_tasks(mesh)},
        )
    step = metajax.make_step(meta_grad, optimizer, sample, num_tasks=num_tasks, **spread)
    return metajax.many_steps(step, 5), state


def shapes(tree):
    """Lists the shapes of the parts on the first device, for leaves that are divided."""
    leaves = jax.tree.leaves(tree)
    parts = [leaf.addressable_shards[0].data.shape for leaf in leaves]
    return [part for part, leaf in zip(parts, leaves, strict=True) if part != leaf.shape]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_divided_parameters_learn_as_whole_ones_and_stay_divided(shards):
    optimizer = optax.adam(1e-3)
    steps, state = training(None, optimizer=optimizer)
    expected, expected_metrics = jax.jit(steps)(state, jnp.float32(0.5))

    steps, state = training(metajax.task_mesh(shards=shards), optimizer=optimizer)
    own = [] if shards == 1 else [(WIDE // shards, WIDE)]
    assert shapes(state.meta) == own
    state, metrics = jax.jit(steps)(state, jnp.float32(0.5))
    assert shapes(state.meta) == own
    assert shapes(state.opt_state) == 2 * own
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        sharding.fetch(as_numbers((state, metrics))),
        as_numbers((expected, expected_metrics)),
    )


def test_averages_are_one_message_per_type():
    values = jnp.arange(8.0)

    def meta_grad(meta, keys, episodes, step):
        mean = episodes.mean()
        grads = {"a": meta["a"] * mean, "b": (meta["b"] * mean).astype(jnp.bfloat16)}
        metrics = {"loss": mean, "parts": jnp.stack([mean, 2 * mean]), "count": len(episodes)}
        return grads, {**metrics, "first": episodes[0].astype(jnp.int32)}

    mesh = metajax.task_mesh()
    meta = {"a": jnp.ones((3, 2)), "b": jnp.ones(5)}
    spread = jax.jit(metajax.over_tasks(mesh, meta_grad))
    arguments = meta, jax.random.split(jax.random.key(0), 8), values
    grads, metrics = spread(*arguments)
    np.testing.assert_array_equal(grads["a"], np.full((3, 2), 3.5))
    assert grads["b"].dtype == jnp.bfloat16 and grads["b"].tolist() == [3.5] * 5
    assert metrics["loss"] == 3.5 and metrics["parts"].tolist() == [3.5, 7.0]
    assert metrics["count"] == 2 and metrics["first"] == 3.0, "a mean, of integers too"
    text = spread.lower(*arguments).as_text()
    assert text.count("all_reduce") == 3


def test_shards_that_do_not_divide_the_devices_are_refused():
    with pytest.raises(ValueError, match="4 devices do not divide into groups of 3"):
        metajax.task_mesh(shards=3)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_each_device_draws_the_tasks_that_one_would(num_devices):
    key, data = jax.random.key(5), jnp.float32(0.25)
    expected = jax.jit(lambda: metajax.draw_tasks(sample, data, key, 7, jnp.arange(8)))()
    draw = metajax.sharding.draw_over_tasks(metajax.task_mesh(jax.devices()[:num_devices]))
    keys, episodes = jax.jit(lambda: draw(sample, data, key, 7, jnp.arange(8)))()
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(expected[0]))
    jax.tree.map(np.testing.assert_array_equal, episodes, expected[1])
    if num_devices > 1:
        assert keys.addressable_shards[0].data.shape == (8 // num_devices,)


def test_uneven_draws_are_refused_with_the_numbers():
    draw = metajax.sharding.draw_over_tasks(metajax.task_mesh())
    with pytest.raises(ValueError, match="6 tasks do not divide over 4 devices"):
        draw(sample, jnp.float32(0), jax.random.key(0), 0, jnp.arange(6))


def test_placed_trees_are_fetched_unchanged():
    mesh = metajax.task_mesh(shards=2)
    tree = {
        "key": jax.random.key(3),
        "wide": np.arange(2.0 * 64 * 64, dtype=np.float32).reshape(128, 64),
        "count": np.int32(5),
    }
    state = metajax.TrainState(
        jnp.int32(2), tree, (), jax.random.key(4), {"memory": np.arange(8.0)}
    )
    placed = sharding.place(mesh, state)
    assert shapes(placed.meta) == [(64, 64)]
    assert shapes(placed.memory) == [(2,)]
    found = sharding.fetch(placed)
    assert jax.random.key_data(found.meta["key"]).tolist() == [0, 3]
    assert jax.random.key_data(found.key).tolist() == [0, 4]
    assert placed.key.sharding.is_fully_replicated
    np.testing.assert_array_equal(found.meta["wide"], tree["wide"])
    np.testing.assert_array_equal(found.memory["memory"], np.arange(8.0))
    assert found.meta["count"] == 5
    assert found.step == 2
