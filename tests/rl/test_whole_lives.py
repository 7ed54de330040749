"""Whole lives: rewards before adapting count, and actions are credited for what is learned from them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.types import Batch, Episode, Model

STEP, BASELINE = 1.5, 0.3
TASK = np.array([0.8, 0.3, 0.5])


def bandit_learner(curvature="none"):
    """Makes MAML of bare logits."""
    model = Model(
        lambda key, inputs: jnp.array([0.2, -0.1, 0.4]),
        lambda logits, inputs: rl.Categorical(
            jnp.broadcast_to(logits, (inputs.shape[0], *logits.shape))
        ),
    )
    loss = rl.policy_gradient(curvature=curvature)
    return metajax.maml(model, loss, rule=optax.sgd(STEP))


def life_of(arms, rewards, logits):
    """Makes the life of one call and one pull each: arms [2], rewards [2], logits [2, A] that acted."""
    zero = jnp.zeros(1)

    def pull(index):
        policy = rl.Categorical(logits[index][None])
        reward = rewards[index : index + 1]
        decisions = rl.Decisions(
            arms[index : index + 1], reward, zero == 0, policy, reward - BASELINE, reward, zero
        )
        return Batch(jnp.zeros((1, 1)), decisions, jnp.ones(1))

    support = jax.tree.map(lambda leaf: leaf[None], pull(0))
    return Episode(support, pull(1))


@pytest.mark.parametrize("curvature", ["none", "lvc"])
def test_the_gradient_of_all_rewards_is_exact(curvature, float64):
    learner = bandit_learner(curvature)
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    objective = rl.lifetime_objective(learner, rl.policy_gradient(curvature="none"), whole=True)
    arms = jnp.array(list(itertools.product(range(3), repeat=2)))
    pairs = jnp.array(list(itertools.product([0.0, 1.0], repeat=2)))
    arms, rewards = jnp.repeat(arms, 4, axis=0), jnp.tile(pairs, (9, 1))
    pays = jnp.asarray(TASK)[arms]
    chance = jnp.prod(jnp.where(rewards > 0, pays, 1 - pays), axis=1)

    def adapted(logits, arm, reward):
        slope = jax.nn.one_hot(arm, 3) - jax.nn.softmax(logits)
        return logits + STEP * (reward - BASELINE) * slope

    def total(logits):
        first = jax.nn.log_softmax(logits)[arms[:, 0]]
        after = jax.vmap(adapted, (None, 0, 0))(logits, arms[:, 0], rewards[:, 0])
        second = jnp.take_along_axis(jax.nn.log_softmax(after), arms[:, 1:], axis=1)[:, 0]
        return jnp.sum(chance * jnp.exp(first + second) * rewards.sum(axis=1))

    @jax.jit
    def expected(meta):
        logits = meta.params

        def one(arms, rewards, chance):
            after = adapted(logits, arms[0], rewards[0])
            life = life_of(arms, rewards, jnp.stack([logits, after]))
            life = rl.whole_lives(jax.tree.map(lambda leaf: leaf[None], life))
            life = jax.tree.map(lambda leaf: leaf[0], life)
            grads = jax.grad(lambda meta: objective(meta, jax.random.key(0), life)[0])(meta).params
            logs = jax.nn.log_softmax(logits)[arms[0]] + jax.nn.log_softmax(after)[arms[1]]
            return chance * jnp.exp(logs) * grads

        return jax.vmap(one)(arms, rewards, chance).sum(axis=0)

    found, exact = -2 * expected(meta), jax.jit(jax.grad(total))(meta.params)
    error = float(jnp.abs(found - exact).max())
    if curvature == "none":
        assert error < 1e-12
    else:  # The other surrogates credit the first pull once more.
        assert error > 1e-3


def test_credit_is_what_follows_less_the_mean_of_other_tasks(float64):
    tasks, calls, size = 4, 2, 6  # two episodes of three steps, of which some end early
    keys = jax.random.split(jax.random.key(1), 3)
    reward = jax.random.uniform(keys[0], (tasks, calls + 1, size))
    alive = jnp.ones((tasks, calls + 1, size), bool).at[1, 0, 2].set(False).at[2, 2, 5].set(False)
    ends = jnp.zeros_like(alive).at[..., 2].set(True).at[..., 5].set(True)
    ends = ends.at[1, 0, 1:3].set(jnp.array([True, False]))
    ends = ends.at[2, 2, 4:].set(jnp.array([True, False]))
    reward = jnp.where(alive, reward, 0)
    decisions = rl.Decisions(reward, reward, ends, reward, reward, reward, reward)
    batch = Batch(reward[..., None], decisions, alive * 1.0)
    lives = Episode(
        jax.tree.map(lambda leaf: leaf[:, :-1], batch),
        jax.tree.map(lambda leaf: leaf[:, -1], batch),
    )
    found = rl.whole_lives(lives).query
    credit = np.zeros((tasks, calls + 1, size))
    for task, call, row in np.ndindex(*credit.shape):
        last = row // 3 * 3 + 3
        credit[task, call, row] = (
            reward[task, call, row:last].sum() + reward[task, call + 1 :].sum()
        )
    taken = np.asarray(alive)
    for task, call, row in np.argwhere(taken):
        others = [t for t in range(tasks) if t != task and taken[t, call, row]]
        wanted = credit[task, call, row] - credit[others, call, row].mean()
        place = call * size + row
        assert found.targets.returns[task, place] == pytest.approx(credit[task, call, row])
        assert found.targets.advantage[task, place] == pytest.approx(wanted)
    assert not np.any(found.targets.advantage[~taken.reshape(tasks, -1)])
    np.testing.assert_array_equal(found.inputs[0, :, 0], reward[0].reshape(-1))


def test_outputs_of_a_whole_life_are_those_that_acted():
    env = rl.envs.bandit(arms=3, pulls=2)
    model = rl.mlp_policy(env.actions, hidden=(8,))
    learner = metajax.maml(model, rl.policy_gradient(), rule=optax.sgd(1.0))
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    key, task = jax.random.key(2), env.sample(jax.random.key(1))
    live = rl.live(learner, env, episodes=3, calls=2)

    @jax.jit
    def both(key):
        life = jax.tree.map(lambda leaf: leaf[None], live(meta, key, task))
        whole = jax.tree.map(lambda leaf: leaf[0], rl.whole_lives(life))
        outputs, query = rl.lifetime_outputs(learner, whole=True)(meta, key, whole)
        return outputs.logits, query.targets.behavior.logits

    again, acted = both(key)
    assert again.shape == (18, 3)
    np.testing.assert_allclose(again, acted, atol=1e-6)
    assert np.abs(acted[0] - acted[-1]).max() > 1e-3  # Adapting has changed the policy.


def test_all_rewards_are_the_score_of_a_whole_life():
    env = rl.envs.bandit(arms=3, pulls=2)
    model = rl.mlp_policy(env.actions, hidden=())
    learner = metajax.maml(model, rl.policy_gradient(), rule=optax.sgd(1.0))
    score = rl.return_after(learner, env, episodes=3, calls=2, whole=True)
    live = rl.live(learner, env, episodes=3, calls=2)

    @jax.jit
    def both():
        given = learner.init(jax.random.key(0), jnp.zeros((1, 1))), jax.random.key(2)
        task = env.sample(jax.random.key(1))
        return score(*given, task), live(*given, task)

    (loss, metrics), life = both()
    earned = life.support.targets.reward.sum() + life.query.targets.reward.sum()
    assert -loss == pytest.approx(float(earned))
    assert 3 * sum(metrics[f"return_{call}"] for call in range(3)) == pytest.approx(float(earned))


def test_a_second_credit_is_refused():
    with pytest.raises(ValueError, match=r"exploration is 0\.5; use 0"):
        rl.lifetime_objective(bandit_learner(), rl.clipped(), exploration=0.5, whole=True)
