"""Meta-gradients that change with the outer step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model

METRICS = {"accuracy": metajax.accuracy}


def learner_of(steps=1, width=5, rate=0.5, **options):
    return metajax.maml(
        linear_model(width, 3), metajax.cross_entropy, rule=optax.sgd(rate), steps=steps, **options
    )


def plain(steps, **options):
    return metajax.query_objective(
        learner_of(steps, **options), metajax.Scoring(metajax.cross_entropy, METRICS)
    )


def assert_same(a, b):
    """Asserts that trees are equal up to rounding."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14), a, b)


def tasks_and_meta(count, dtype=jnp.float64, **sizes):
    keys = jax.random.split(jax.random.key(3), count)
    tasks = jax.vmap(lambda key: classification_episode(key, dtype=dtype, **sizes))(keys)
    return learner_of().init(jax.random.key(2), tasks.support.inputs[0]), keys, tasks


@pytest.mark.parametrize("tasks_at_once", [None, 1])
@pytest.mark.parametrize("shards", [None, 2])
def test_a_switch_takes_each_meta_gradient_at_its_time(float64, tasks_at_once, shards):
    meta, keys, tasks = tasks_and_meta(4)
    before, after = (
        metajax.backprop(objective, tasks_at_once=tasks_at_once)
        for objective in (plain(1, adjoint=metajax.ADJOINTS["first_order"]), plain(1))
    )

    def grads(meta_grad, *step):
        if shards:
            meta_grad = metajax.over_tasks(metajax.task_mesh(jax.devices()[:shards]), meta_grad)
        return jax.jit(meta_grad)(meta, keys, tasks, *step)

    switch = metajax.metagrads.switch_at(10, before, after)
    assert_same(grads(switch, jnp.int32(9)), grads(before))
    assert_same(grads(switch, jnp.int32(10)), grads(after))
    difference = optax.tree.sub(grads(before)[0], grads(after)[0])
    assert optax.tree.norm(difference) > 1e-3


def test_a_switch_of_a_switch_takes_each_at_its_time(float64):
    meta, keys, tasks = tasks_and_meta(1)
    one, two = (metajax.backprop(plain(steps)) for steps in (1, 2))
    third = metajax.metagrads.scheduled(lambda step: metajax.backprop(scaled(plain(3), step)))
    switch = jax.jit(
        metajax.metagrads.switch_at(2, one, metajax.metagrads.switch_at(4, two, third))
    )
    expected = {1: one, 2: two, 3: two, 4: metajax.backprop(scaled(plain(3), 4))}
    for step, meta_grad in expected.items():
        assert_same(switch(meta, keys, tasks, jnp.int32(step)), meta_grad(meta, keys, tasks))


def scaled(objective, factor):
    """Multiplies the loss of an objective."""

    def scaled_objective(meta, key, episode):
        loss, metrics = objective(meta, key, episode)
        return factor * loss, metrics

    return scaled_objective


@pytest.mark.parametrize("tasks_at_once", [None, 1])
def test_scheduled_weights_are_those_of_the_step(float64, tasks_at_once):
    meta, keys, tasks = tasks_and_meta(2)
    weights = metajax.objectives.annealed_weights(3, over=8)

    def with_weights(weights):
        objective = metajax.multi_step_objective(
            learner_of(), metajax.cross_entropy, weights=weights
        )
        return metajax.backprop(objective, tasks_at_once=tasks_at_once)

    meta_grad = metajax.metagrads.scheduled(lambda step: with_weights(weights(step)))
    for step in (0, 5):
        fixed = jax.jit(with_weights(weights(jnp.int32(step))))(meta, keys, tasks)
        assert_same(jax.jit(meta_grad)(meta, keys, tasks, jnp.int32(step)), fixed)


def test_a_switch_keeps_the_intermediate_results_of_one_objective_only():
    meta, keys, tasks = tasks_and_meta(2, jnp.float32, queries=40)
    meta = learner_of(width=64).init(jax.random.key(2), tasks.support.inputs[0])
    every = metajax.multi_step_objective(
        learner_of(width=64, rate=0.1), metajax.cross_entropy, weights=jnp.full(4, 1 / 4)
    )
    last = metajax.query_objective(learner_of(5, width=64, rate=0.1), metajax.cross_entropy)

    def temporaries(meta_grad):
        compiled = jax.jit(meta_grad).lower(meta, keys, tasks, jnp.int32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def chosen(step):
        # The same choice, but differentiated.
        return metajax.backprop(lambda *task: jax.lax.cond(step < 5, every, last, *task))

    switch = metajax.metagrads.switch_at(5, metajax.backprop(every), metajax.backprop(last))
    alone = max(temporaries(metajax.backprop(objective)) for objective in (every, last))
    assert temporaries(switch) < 1.1 * alone < temporaries(metajax.metagrads.scheduled(chosen))


def test_a_switch_at_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="boundary is -1; use 0 or more"):
        metajax.metagrads.switch_at(-1, plain(1), plain(2))


def test_meta_gradients_that_need_the_step_refuse_to_run_without():
    one = metajax.backprop(plain(1))
    for meta_grad in (
        metajax.metagrads.switch_at(10, one, one),
        metajax.metagrads.scheduled(lambda step: one),
    ):
        with pytest.raises(ValueError, match="depends on the outer step; call it with step"):
            meta_grad(None, None, None)
