"""A whole run as one function: many seeds and learning rates at once, in parts, and with evaluations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.contract import assert_trees_close, episode_of, setting
from helpers.toys import as_numbers


def sample_of(name, data, key):
    """Draws an episode of the contract suite."""
    del data
    return episode_of(name, key, dtype=jnp.float64)


def training(name, optimizer):
    """Makes an outer step, and a function from a key to a state with random meta-parameters and tasks."""
    learner, episode, _, objective = setting(name, jnp.float64, steps=1)
    sample = functools.partial(sample_of, name)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=1)

    def begin(key):
        init_key, train_key = jax.random.split(key)
        meta = learner.init(init_key, episode.support.inputs)
        return metajax.init_state(meta, optimizer, train_key)

    return step, begin


def test_four_seeds_at_once_are_four_runs(float64):
    step, begin = training("protonet", optax.sgd(0.1))
    run = metajax.make_run(step, steps=2, every=1, evaluate=lambda meta, _: optax.tree.norm(meta))

    def whole(key):
        return as_numbers(run(begin(key), None))

    keys = jax.random.split(jax.random.key(0), 4)
    together = jax.jit(jax.vmap(whole))(keys)
    alone = jax.jit(whole)
    assert len(set(together[1].train["loss"].ravel().tolist())) == 8, "seeds and steps differ"
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_trees_close(one, alone(key), rtol=1e-10, atol=1e-12)


def test_learning_rates_at_once_are_separate_runs(float64):
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    step, begin = training("protonet", injected)
    run, rates = metajax.make_run(step, steps=3), jnp.array([0.05, 0.2, 0.8])

    def with_rate(rate):
        state = begin(jax.random.key(1))
        opt_state = state.opt_state._replace(hyperparams={"learning_rate": rate})
        state, history = run(state._replace(opt_state=opt_state), None)
        return state.meta, history.train["loss"]

    metas, losses = jax.jit(jax.vmap(with_rate))(rates)
    for i, rate in enumerate(rates):
        step, begin = training("protonet", optax.sgd(rate))
        state, history = jax.jit(metajax.make_run(step, steps=3))(begin(jax.random.key(1)), None)
        assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], metas), state.meta, rtol=1e-12)
        np.testing.assert_allclose(losses[i], history.train["loss"], rtol=1e-12)
    assert len({float(loss) for loss in losses[:, 0]}) == 1 < len({*losses[:, 2].tolist()})


def test_a_run_is_its_steps_one_by_one_and_its_halves(float64):
    step, begin = training("protonet", optax.adam(0.05))
    state = begin(jax.random.key(2))

    def evaluate(meta, data):
        return {"norm": optax.tree.norm(meta), "of data": data * jnp.arange(3.0)}

    data = jnp.float64(2.0)
    half = jax.jit(metajax.make_run(step, steps=2, every=2, evaluate=evaluate))
    whole = jax.jit(metajax.make_run(step, steps=4, every=2, evaluate=evaluate))
    ended, history = whole(state, data)
    middle, first = half(state, data)
    last, second = half(middle, data)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)
    close = functools.partial(assert_trees_close, rtol=1e-12, atol=1e-14)
    close(as_numbers(last), as_numbers(ended))
    close(both, history)

    one, norms = jax.jit(step), []
    for number in range(4):
        state, metrics = one(state, data)
        norms.append(optax.tree.norm(state.meta))
        np.testing.assert_allclose(history.train["loss"][number], metrics["loss"], rtol=1e-12)
    np.testing.assert_allclose(history.evaluated["norm"], norms[1::2], rtol=1e-12)
    np.testing.assert_array_equal(history.evaluated["of data"], [[0, 2, 4]] * 2)
    assert_trees_close(as_numbers(ended), as_numbers(state), rtol=1e-9, atol=1e-12)
    assert ended.step == 4 and (as_numbers(ended).key == jax.random.key_data(state.key)).all()


def test_evaluations_that_do_not_divide_a_run_are_refused():
    with pytest.raises(
        ValueError, match="10 steps do not divide into blocks of every=4; use a div"
    ):
        metajax.make_run(None, steps=10, every=4)
