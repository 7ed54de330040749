"""Trials of policies that read their own history (RL2)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import walk
from metajax import rl

EPISODES, HORIZON = 3, 4


def learner_of(env):
    return rl.reading_policy(metajax.learners.gru_model(6), env.actions)


def first_meta(env, learner, *, scale=3.0):
    """Draws parameters, larger than at the start: predictions depend on what was read."""
    inputs = env.reset(jax.random.key(0), env.sample(jax.random.key(1)))[1][None]
    return jax.tree.map(lambda leaf: scale * leaf, learner.init(jax.random.key(2), inputs))


def a_trial(*, vectors=False, task=0.7, **options):
    env = walk(horizon=HORIZON, vectors=vectors)
    learner = learner_of(env)
    meta = first_meta(env, learner)
    trial = rl.trials(learner, env, episodes=EPISODES, **options)
    batch = jax.jit(trial)(meta, jax.random.key(3), jnp.asarray(task))
    return env, learner, meta, batch


@pytest.mark.parametrize("vectors", [False, True])
def test_replaying_gives_what_was_recorded(vectors):
    _, learner, meta, batch = a_trial(vectors=vectors)
    alive = np.asarray(batch.weights) > 0
    ends = np.asarray(batch.targets.ends)
    assert 0 < alive.mean() < 1 and ends.sum() == EPISODES
    outputs, _ = jax.jit(rl.trial_outputs(learner))(meta, jax.random.key(9), batch)
    decisions = batch.targets
    for ours, theirs in zip(
        jax.tree.leaves(outputs.policy), jax.tree.leaves(decisions.behavior), strict=True
    ):
        np.testing.assert_allclose(np.asarray(ours)[alive], np.asarray(theirs)[alive], atol=1e-5)
    now, then = (
        policy.log_prob(decisions.action) for policy in (outputs.policy, decisions.behavior)
    )
    np.testing.assert_allclose(np.asarray(now)[alive], np.asarray(then)[alive], atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(outputs.value)[alive], np.asarray(decisions.value)[alive], atol=1e-5
    )
    # Predictions differ from step to step: the test would see a state that is lost.
    spread = np.ptp(np.asarray(jax.tree.leaves(outputs.policy)[0])[alive], axis=0)
    assert spread.max() > 0.1


def test_replaying_at_once_is_replaying_row_by_row(float64):
    _, learner, meta, batch = a_trial()
    plain = learner._replace(adapt=lambda *args: learner.adapt(*args))
    key = jax.random.key(4)

    @jax.jit
    def both(meta):
        def of_one(learner):
            outputs = rl.trial_outputs(learner)(meta, key, batch)[0]
            objective = rl.trial_objective(learner, rl.clipped(value_cost=0.5))
            return outputs, jax.grad(lambda meta: objective(meta, key, batch)[0])(meta)

        return of_one(learner), of_one(plain)

    for ours, theirs in zip(*map(jax.tree.leaves, both(meta)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


def test_the_last_reward_of_an_episode_is_read():
    _, learner, meta, batch = a_trial()
    last = int(np.flatnonzero(np.asarray(batch.targets.ends))[0])
    key, seen = jax.random.key(4), batch.inputs[:1]

    @jax.jit
    def after(reward, ends):
        targets = batch.targets._replace(
            reward=batch.targets.reward.at[last].set(reward),
            ends=batch.targets.ends.at[last].set(ends),
        )
        first = jax.tree.map(lambda leaf: leaf[:HORIZON], batch._replace(targets=targets))
        fast = learner.adapt(meta, learner.start(meta, key), key, first)
        return fast, learner.predict(meta, fast, seen).policy.logits

    fast, logits = after(0.0, True)
    for other, change in ((after(1.0, True), "reward"), (after(0.0, False), "end")):
        assert float(jnp.abs(other[0].last - fast.last).max()) == 1, change
        assert float(jnp.abs(other[1] - logits).max()) > 1e-3, change
    # In the trial itself, too: the first prediction of the second episode has read that reward.
    start = learner.predict(meta, learner.start(meta, key), batch.inputs[HORIZON : HORIZON + 1])
    recorded = batch.targets.behavior.logits[HORIZON]
    assert float(jnp.abs(start.policy.logits[0] - recorded).max()) > 1e-3
    first = jax.tree.map(lambda leaf: leaf[:HORIZON], batch)
    fast = learner.adapt(meta, learner.start(meta, key), key, first)
    again = learner.predict(meta, fast, batch.inputs[HORIZON : HORIZON + 1])
    np.testing.assert_allclose(again.policy.logits[0], recorded, atol=1e-5)


def test_the_state_lasts_for_the_trial_and_no_longer():
    _, learner, meta, batch = a_trial()
    key = jax.random.key(4)

    @jax.jit
    def states():
        start = learner.start(meta, key)
        whole = learner.adapt(meta, start, key, batch)
        parts = start
        for index in range(EPISODES):
            rows = slice(index * HORIZON, (index + 1) * HORIZON)
            parts = learner.adapt(
                meta, parts, key, jax.tree.map(lambda leaf, r=rows: leaf[r], batch)
            )
        one = start
        for index in range(EPISODES * HORIZON):  # a row at a time, as in the trial
            row = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], batch)
            one = learner.adapt(meta, one, key, row)
        return start, whole, parts, one

    start, whole, *others = states()
    for other in others:
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert float(jnp.abs(whole.state[0] - start.state[0]).max()) > 0.1
    for leaf in jax.tree.leaves(start):
        assert float(jnp.abs(leaf).max()) == 0


def test_order_matters():
    _, learner, meta, batch = a_trial(task=5.0)
    key = jax.random.key(4)
    adapt = jax.jit(lambda batch: learner.adapt(meta, learner.start(meta, key), key, batch))
    backwards = jax.tree.map(lambda leaf: leaf[::-1], batch)
    assert float(jnp.abs(adapt(batch).state[0] - adapt(backwards).state[0]).max()) > 1e-2


def test_advantages_run_over_the_ends_of_episodes(float64):
    estimate = rl.advantages(discount=0.9, baseline="none", normalize=False)
    *_, batch = a_trial(advantage=estimate)
    alive = np.asarray(batch.weights) > 0
    assert not alive.all()
    reward = np.asarray(batch.targets.reward)
    lived = reward[alive]  # steps after an end take no time
    true = [np.sum(lived[t:] * 0.9 ** np.arange(len(lived) - t)) for t in range(len(lived))]
    np.testing.assert_allclose(np.asarray(batch.targets.advantage)[alive], true, atol=1e-12)
    assert np.all(reward[~alive] == 0)


def test_what_follows_an_end_changes_no_gradient(float64):
    _, learner, meta, batch = a_trial()
    objective = rl.trial_objective(learner, rl.clipped(value_cost=0.5, entropy_bonus=0.1))

    @jax.jit
    def gradient(batch):
        return jax.grad(lambda meta: objective(meta, jax.random.key(4), batch)[0])(meta)

    alive = np.asarray(batch.weights) > 0
    changed = batch._replace(
        inputs=jnp.where(alive[:, None], batch.inputs, 7.0),
        targets=batch.targets._replace(
            action=jnp.where(alive, batch.targets.action, 2),
            reward=jnp.where(alive, batch.targets.reward, 3.0),
            advantage=jnp.where(alive, batch.targets.advantage, 9.0),
        ),
    )
    for a, b in zip(
        jax.tree.leaves(gradient(batch)), jax.tree.leaves(gradient(changed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("vectors", [False, True])
def test_gradients_by_finite_differences(vectors, float64):
    _, learner, meta, batch = a_trial(vectors=vectors)
    objective = rl.trial_objective(
        learner, rl.clipped(epsilon=5.0, value_cost=0.5, entropy_bonus=0.1)
    )
    # Away from where it acted, so that ratios are not one.
    meta = jax.tree.map(lambda leaf: 1.1 * leaf + 0.01, meta)
    flat, back = jax.flatten_util.ravel_pytree(meta)
    direction = jax.random.normal(jax.random.key(5), flat.shape)

    @jax.jit
    def loss(shift):
        return objective(back(flat + shift * direction), jax.random.key(4), batch)[0]

    slope = float(jax.jit(jax.grad(loss))(0.0))
    step = 1e-5
    found = float(loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(found, rel=1e-7) and abs(slope) > 1e-2


def test_the_trust_region_takes_trials():
    env = rl.envs.bandit(3, pulls=1)
    learner = learner_of(env)
    meta = first_meta(env, learner, scale=1.0)
    improve = rl.trust_region(rl.trial_outputs(learner), max_kl=0.01)
    live = rl.trials(learner, env, episodes=5)
    step = rl.make_step(
        live,
        improve,
        lambda data, key: env.sample(key),
        num_tasks=8,
        prepare=rl.normalize_over_tasks,
    )
    state, metrics = jax.jit(step)(metajax.init_state(meta, improve, jax.random.key(1)), None)
    assert 0 < float(metrics["kl"]) <= 0.01
    change = jax.tree.map(jnp.subtract, state.meta, meta)
    assert float(optax.tree.norm(change)) > 0


def test_numbers_that_are_refused():
    env = walk()
    with pytest.raises(ValueError, match="episodes is 0; use 1 or more"):
        rl.trials(learner_of(env), env, episodes=0)
    with pytest.raises(ValueError, match="initial_std is 0; use a number above 0"):
        rl.reading_policy(metajax.learners.gru_model(6), rl.Continuous(1), initial_std=0)
    with pytest.raises(ValueError, match="initial_std is -1; use a number above 0"):
        rl.mlp_policy(rl.Continuous(1), initial_std=-1)
