"""Rollouts against a plain loop, and the marks of their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import walk
from metajax import rl

EPISODES = 3


def policy_of(env, *, critic=False):
    model = rl.mlp_policy(env.actions, hidden=(4,), critic=critic)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    # Larger weights than at the start, so that actions depend on what is seen.
    return jax.jit(functools.partial(model.apply, jax.tree.map(lambda leaf: 3 * leaf, params)))


def by_a_loop(env, act, key, task):
    """Lives the episodes one step after another, with the keys of `lived`."""
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    reset_key, step_key = jax.random.split(key)
    found = [reset(key, task) for key in jax.random.split(reset_key, EPISODES)]
    states, seen = [state for state, _ in found], [seen for _, seen in found]
    alive = [True] * EPISODES
    rows = [[] for _ in range(EPISODES)]
    for time, key in enumerate(jax.random.split(step_key, env.horizon)):
        act_key, env_key = jax.random.split(key)
        outputs = act(jnp.stack(seen))
        actions = rl.policy_of(outputs).sample(act_key)
        for n, key in enumerate(jax.random.split(env_key, EPISODES)):
            action = rl.clip_action(env.actions, actions[n])
            after = step(key, task, states[n], action)
            over = alive[n] and bool(after.terminated)
            rows[n].append(
                {
                    "observation": seen[n],
                    "action": actions[n],
                    "reward": after.reward if alive[n] else 0.0,
                    "alive": alive[n],
                    "terminated": over,
                    "ends": alive[n] and (over or time == env.horizon - 1),
                    "behavior": jax.tree.map(lambda leaf, n=n: leaf[n], rl.policy_of(outputs)),
                    "value": rl.value_of(outputs, jnp.zeros(EPISODES))[n],
                }
            )
            if alive[n]:
                states[n], seen[n] = after.state, after.observation
            alive[n] = alive[n] and not over
    last = {"last_observation": jnp.stack(seen)}
    last["last_value"] = rl.value_of(act(last["last_observation"]), jnp.zeros(EPISODES))
    stacked = [jax.tree.map(lambda *x: np.stack(x), *row) for row in rows]
    return {**jax.tree.map(lambda *x: np.stack(x), *stacked), **last}


@pytest.mark.parametrize("kind", ["choices", "vectors"])
def test_equal_to_a_loop(kind):
    env = walk(vectors=kind == "vectors", horizon=5)
    act = policy_of(env, critic=kind == "choices")
    keys = jax.random.split(jax.random.key(1), 2)
    tasks = jnp.array([0.4, 2.5])  # an end comes soon, or hardly

    def one(key, task):
        return rl.lived(env, act, key, task, episodes=EPISODES)

    found = jax.jit(jax.vmap(one))(keys, tasks)
    for index in range(2):
        true = by_a_loop(env, act, keys[index], tasks[index])
        for name, values in true.items():
            ours = jax.tree.map(lambda leaf, index=index: leaf[index], getattr(found, name))
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(values), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    alive = np.asarray(found.alive)
    assert 0 < alive[0].mean() < 1 and alive[1].any()  # both kinds of steps were seen
    assert np.asarray(found.terminated).any()


def counting(horizon):
    """Makes an environment that ends at the task's step and pays one for each step."""

    def step(key, task, state, action):
        return rl.Step(state + 1, (state + 1.0)[None], 1.0 + 0 * task, state + 1 >= task)

    return rl.Env(
        lambda key: jax.random.uniform(key),
        lambda key, task: (jnp.zeros(()), jnp.zeros(1)),
        step,
        rl.Continuous(1, -0.1, 0.1),
        horizon,
    )


def test_marks_of_ends():
    env = counting(4)
    act = lambda seen: rl.Normal(jnp.zeros((len(seen), 1)), jnp.zeros((len(seen), 1)))  # noqa: E731
    tasks = jnp.array([2.0, 4.0, 9.0])  # before, exactly at, and after the time limit
    lives = jax.jit(jax.vmap(lambda task: rl.lived(env, act, jax.random.key(0), task, episodes=2)))(
        tasks
    )
    true = {
        "alive": [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
        "terminated": [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]],
        "ends": [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]],
        "reward": [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]],
    }
    for name, values in true.items():
        for episode in range(2):
            assert getattr(lives, name)[:, episode].astype(int).tolist() == values, name
    assert lives.last_observation[:, 0, 0].tolist() == [2.0, 4.0, 4.0]
    batch = jax.vmap(
        lambda lived: rl.as_batch(lived, rl.advantages(discount=1.0, baseline="none"))
    )(lives)
    assert jax.vmap(lambda batch: rl.mean_return(None, batch))(batch).tolist() == [2, 4, 4]
    assert batch.targets.returns[0].tolist() == [2, 1, 0, 0] * 2


def test_actions_are_clipped_for_the_environment_and_recorded_as_drawn():
    env = counting(50)
    env = env._replace(
        step=lambda key, task, state, action: rl.Step(
            state, jnp.zeros(1), action[0], jnp.array(False)
        )
    )
    act = lambda seen: rl.Normal(jnp.zeros((len(seen), 1)), jnp.zeros((len(seen), 1)))  # noqa: E731
    found = jax.jit(lambda: rl.lived(env, act, jax.random.key(0), 1.0, episodes=2))()
    drawn = np.asarray(found.action[..., 0])
    assert np.abs(drawn).max() > 1
    np.testing.assert_array_equal(found.reward, np.clip(drawn, np.float32(-0.1), np.float32(0.1)))
    most = jax.jit(lambda: rl.lived(env, act, jax.random.key(0), 1.0, episodes=2, mode=True))()
    assert float(jnp.abs(most.action).max()) == 0


def test_nothing_flows_into_experience():
    env = walk(vectors=True)
    loss = rl.policy_gradient()
    learner = metajax.maml(rl.mlp_policy(env.actions, hidden=()), loss, rule=optax.sgd(0.1))
    meta = jax.jit(learner.init)(jax.random.key(0), jnp.zeros((1, 2)))

    # An environment on the host has no derivative: asking for one would raise.
    def on_the_host(key, task, state, action):
        after = env.step(key, task, state, action)
        like = jax.ShapeDtypeStruct((), after.reward.dtype)
        host = jax.pure_callback(
            lambda x: np.asarray(x), like, after.reward, vmap_method="expand_dims"
        )
        return after._replace(reward=host)

    host = env._replace(step=on_the_host)
    evidence = rl.rollouts(learner, host, episodes=2)

    def total(meta):
        batch = evidence(meta, learner.start(meta, None), jax.random.key(1), jnp.asarray(1.0))
        leaves = [leaf for leaf in jax.tree.leaves(batch) if leaf.dtype == jnp.float32]
        return sum(jnp.sum(leaf) for leaf in leaves)

    on_policy = rl.on_policy(learner, host, episodes=2)
    objective = metajax.query_objective(learner, loss, evidence=on_policy)

    def scored(meta):
        return objective(meta, jax.random.key(1), jnp.asarray(1.0))[0]

    slopes, grads = jax.jit(lambda meta: (jax.grad(total)(meta), jax.grad(scored)(meta)))(meta)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slopes))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert float(optax.tree.norm(grads)) > 0


def test_numbers_that_are_refused():
    env, act = walk(), lambda seen: rl.Categorical(jnp.zeros((len(seen), 3)))
    with pytest.raises(ValueError, match="episodes is 0; use 1 or more"):
        rl.lived(env, act, jax.random.key(0), 1.0, episodes=0)
    with pytest.raises(ValueError, match=r"env.horizon is 0; use 1 or more"):
        rl.lived(env._replace(horizon=0), act, jax.random.key(0), 1.0, episodes=1)
    with pytest.raises(ValueError, match="calls is 0; use 1 or more"):
        rl.live(None, env, episodes=1, calls=0)
