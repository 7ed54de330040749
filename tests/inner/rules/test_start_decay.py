import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, linear_model, point_model
from metajax.inner.rules.start_decay import decay_to_start
from metajax.types import Batch


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_on_a_quadratic_in_closed_form(float64, steps):
    # For (x - c)^2 / 2, a step leads to x - r (x - c) - d (x - start); the first one does not decay.
    rate, decay, center = 0.3, 0.2, np.array([1.5, 0.3])
    learner = metajax.learners.gradient_learner(
        point_model(2),
        lambda outputs, batch: 0.5 * jnp.sum((outputs - batch.targets) ** 2),
        rule=decay_to_start(rate, decay),
        steps=steps,
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    batch = Batch(jnp.zeros((1, 1)), jnp.asarray(center)[None])
    fast = learner.start(meta, jax.random.key(1))
    fast = learner.adapt(meta, fast, jax.random.key(2), batch)
    start = np.array(meta.params)
    expected = start + rate * (center - start)
    if steps == 2:
        expected = expected + rate * (center - expected) + decay * (start - expected)
    np.testing.assert_allclose(fast.params, expected, rtol=1e-13)
    np.testing.assert_array_equal(fast.opt_state.state, start)


def test_without_gradients_a_share_of_the_way_back_is_gone_a_step():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    transform = decay_to_start(0.1, 0.25)
    start, zeros = transform.init(params), jax.tree.map(jnp.zeros_like, params)
    now, state = jax.tree.map(lambda p: p + 8, params), start
    for _ in range(2):
        updates, state = transform.update(zeros, state, now)
        now = optax.apply_updates(now, updates)
    jax.tree.map(lambda p: np.testing.assert_allclose(p, 1 + 8 * 0.75**2, rtol=1e-6), now)
    jax.tree.map(np.testing.assert_array_equal, state.state, params)


def test_params_and_start_may_be_donated_together():
    params = jnp.ones(3)
    transform = decay_to_start(0.1, 0.25)

    def step(params, start):
        updates, start = transform.update(params, start, params)
        return params + updates, start

    now, _ = jax.jit(step, donate_argnums=(0, 1))(params, transform.init(params))
    np.testing.assert_allclose(now, 0.9 * np.ones(3), rtol=1e-6)


def test_one_number_a_leaf_or_a_parameter():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)}
    by_leaf = decay_to_start(0.5, 0.1).init(params).learned.value
    by_parameter = decay_to_start(0.5, 0.1, per="parameter").init(params).learned.value
    assert jax.tree.map(jnp.shape, by_leaf.decays) == {"a": (), "b": ()}
    assert jax.tree.map(jnp.shape, by_parameter.rates) == {"a": (2, 3), "b": (4,)}
    assert by_leaf.logits["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(by_parameter.decays["a"], 0.1, rtol=1e-6)


def test_wrong_options_raise():
    with pytest.raises(ValueError, match="per is 'layer'; use one of 'leaf', 'parameter'"):
        decay_to_start(0.5, 0.1, per="layer")
    for decay in (0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"decay is {decay}; use a number between 0 and 1"):
            decay_to_start(0.5, decay)
    transform = decay_to_start(0.5, 0.1)
    with pytest.raises(ValueError, match="params is None"):
        transform.update(jnp.zeros(2), transform.init(jnp.zeros(2)))


@pytest.mark.parametrize("per", ["leaf", "parameter"])
def test_meta_gradient_against_finite_differences(float64, per):
    rule = decay_to_start(0.4, 0.2, per=per)
    learner = metajax.learners.gradient_learner(
        linear_model(5, 3), metajax.cross_entropy, rule=rule, steps=3
    )
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    meta = learner.init(jax.random.key(1), episode.support.inputs)

    def loss(meta):
        return objective(meta, jax.random.key(2), episode)[0]

    assert relative_error(loss, noisy(meta, 0.1)) < 1e-6


LENGTH = 30


def stream(key, *, every):
    """Draws a Batch [LENGTH, 1, 3]: noisy observations of a center that jumps every `every` steps."""
    center_key, noise_key = jax.random.split(key)
    centers = 2 + jax.random.normal(center_key, (LENGTH // every, 1, 3))
    noise = 0.5 * jax.random.normal(noise_key, (LENGTH, 1, 3))
    return Batch(jnp.zeros((LENGTH, 1, 1)), jnp.repeat(centers, every, axis=0) + noise)


def online_objective(learner):
    """Predicts each batch of a stream, is scored, and only then adapts to it."""

    def objective(meta, key, batches):
        start_key, adapt_key = jax.random.split(key)

        def look(fast, key_and_batch):
            key, batch = key_and_batch
            loss = metajax.squared_error(learner.predict(meta, fast, batch.inputs), batch)
            return learner.adapt(meta, fast, key, batch), loss

        keys = jax.random.split(adapt_key, LENGTH)
        _, losses = jax.lax.scan(look, learner.start(meta, start_key), (keys, batches))
        return jnp.mean(losses), {"loss": jnp.mean(losses)}

    return objective


def trained_on_streams(rule, *, every):
    """Trains a rule and its start on streams; returns the learned parameters and the loss on new streams."""
    learner = metajax.learners.gradient_learner(
        point_model(3), metajax.squared_error, rule=rule, steps=1
    )
    objective, optimizer = online_objective(learner), optax.adam(0.05)
    step = metajax.make_step(
        metajax.backprop(objective),
        optimizer,
        lambda data, key: stream(key, every=every),
        num_tasks=16,
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    state = metajax.init_state(meta, optimizer, jax.random.key(5))
    meta = jax.jit(metajax.many_steps(step, 150))(state, None)[0].meta
    keys = jax.random.split(jax.random.key(9), 128)
    streams = jax.vmap(lambda key: stream(key, every=every))(keys)
    losses, _ = jax.jit(jax.vmap(objective, (None, 0, 0)))(meta, keys, streams)
    return meta, jnp.mean(losses)


def test_forgetting_is_learned_where_targets_change_and_pays_there():
    changing, loss = trained_on_streams(decay_to_start(0.2, 0.1), every=3)
    still, _ = trained_on_streams(decay_to_start(0.2, 0.1), every=LENGTH)
    _, loss_of_memory = trained_on_streams(metajax.learned_rates(0.2, per="leaf"), every=3)
    assert changing.rule.decays > 0.3
    assert still.rule.decays < 0.05
    assert loss < 0.9 * loss_of_memory
