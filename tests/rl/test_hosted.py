"""Environments of the host: what lives there lives what its pure twin lives."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.rl.envs import foreign, hosted
from metajax.rl.envs.host_loop import live_on_host, lived_on_host
from metajax.rl.envs.hosted import seed_of

HORIZON, NEAR = 6, 0.6


def start_of(seed):
    """Computes where a point starts: two numbers in [-0.5, 0.5) of the digits of a seed."""
    return seed % 1000 / 1000 - 0.5, seed // 1000 % 1000 / 1000 - 0.5


class Point:
    """A point in the plane in NumPy, with gymnasium's interface."""

    action_space = types.SimpleNamespace(shape=(2,), low=-0.5, high=0.5)
    observation_space = types.SimpleNamespace(shape=(2,), dtype=np.dtype(np.float64))
    goal, cut, made = np.zeros(2), 10**9, 0

    def __init__(self):
        Point.made += 1

    def reset(self, seed):
        """Begins at the place of a seed."""
        self.place, self.time = np.array(start_of(seed)), 0
        return self.place, {}

    def step(self, action):
        """Moves by the action, towards the goal or not."""
        assert np.abs(action).max() <= 0.5
        self.place, self.time = self.place + action, self.time + 1
        distance = np.linalg.norm(self.place - self.goal)
        return self.place, -distance, distance < NEAR, self.time >= self.cut, {}


def set_goal(env, task):
    """Gives a point its goal."""
    env.goal = task


def sample_goal(key):
    """Draws a goal."""
    return jax.random.uniform(key, (2,), minval=-1.0)


def twin():
    """Makes the same point in JAX."""

    def reset(key, task):
        del task
        place = jnp.stack(start_of(seed_of(key).astype(float)))
        return place, place

    def step(key, task, state, action):
        del key
        place = state + action
        distance = jnp.linalg.norm(place - task)
        return rl.Step(place, place, -distance, distance < NEAR)

    return rl.Env(sample_goal, reset, step, rl.Continuous(2, -0.5, 0.5), HORIZON)


def on_host(**options):
    """Puts the point behind the host adapter."""
    make = options.pop("make", Point)
    return hosted.hosted(make, horizon=HORIZON, sample=sample_goal, set_task=set_goal, **options)


def act(observation):
    """Draws away from the origin, with noise."""
    return rl.Normal(0.5 * observation, jnp.full_like(observation, -1.0))


def assert_same(found, wanted):
    """Compares the steps that were taken."""
    np.testing.assert_array_equal(found.alive, wanted.alive)
    assert wanted.terminated.sum() > 0 and wanted.alive.all(-1).any()  # Of both kinds.
    for field in ("terminated", "ends", "last_observation", "last_value"):
        np.testing.assert_allclose(getattr(found, field), getattr(wanted, field), atol=1e-6)
    for field in ("observation", "action", "reward", "behavior", "value"):
        for a, b in zip(
            jax.tree.leaves(getattr(found, field)),
            jax.tree.leaves(getattr(wanted, field)),
            strict=True,
        ):
            np.testing.assert_allclose(a[found.alive], b[wanted.alive], atol=1e-6)


def test_the_host_lives_what_its_pure_twin_lives(float64):
    del float64
    tasks = jax.vmap(sample_goal)(jax.random.split(jax.random.key(0), 3))
    keys = jax.random.split(jax.random.key(1), 3)

    def lives(env):
        def one(key, task):
            return rl.lived(env, act, key, task, episodes=4)

        return jax.jit(jax.vmap(one))(keys, tasks)

    made, env = Point.made, on_host(at_once=12)
    assert_same(lives(env), lives(twin()))
    assert_same(lives(env), lives(twin()))  # Objects serve again.
    assert Point.made - made == 12


def test_a_loop_on_the_host_lives_what_single_episodes_live(float64):
    del float64
    task, key, env = jnp.array([0.3, 0.2]), jax.random.key(2), twin()
    found = lived_on_host(Point(), act, key, task, horizon=HORIZON, episodes=5, set_task=set_goal)
    single = jax.jit(jax.vmap(lambda key: rl.lived(env, act, key, task, episodes=1)))
    wanted = jax.tree.map(lambda leaf: leaf[:, 0], single(jax.random.split(key, 5)))
    assert_same(found, wanted)
    assert not found.alive[~np.asarray(wanted.alive)].any() and np.isfinite(found.action).all()


def policy_learner():
    """Makes MAML of a small policy with a critic."""
    model = rl.mlp_policy(rl.Continuous(2, -0.5, 0.5), hidden=(4,), critic=True)
    return metajax.maml(model, rl.policy_gradient(), rule=optax.sgd(0.1))


def test_a_loop_on_the_host_returns_the_batch_of_rollouts(float64):
    del float64
    learner, env, task = policy_learner(), twin(), jnp.array([0.1, 0.2])
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 2)))
    fast = learner.start(meta, jax.random.key(1))
    estimate = rl.advantages(baseline="value", normalize=False, trace=0.9, truncation="bootstrap")
    options = dict(episodes=1, advantage=estimate)
    live = live_on_host(learner, Point, horizon=HORIZON, set_task=set_goal, **options)
    key = jax.random.key(4)
    found = live(meta, fast, key, task)
    wanted = jax.jit(rl.rollouts(learner, env, **options))(
        meta, fast, jax.random.split(key, 1)[0], task
    )
    alive = np.asarray(wanted.weights) > 0
    np.testing.assert_array_equal(found.weights, wanted.weights)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a[alive], b[alive], atol=1e-6)
    adapted = learner.adapt(meta, fast, jax.random.key(5), found)
    assert learner.predict(meta, adapted, jnp.zeros((1, 2))).policy.mean.shape == (1, 2)


def test_meta_gradients_pass_through_experience_of_the_host(float64):
    del float64
    learner, loss, task = policy_learner(), rl.policy_gradient(), jnp.array([0.1, 0.2])
    plain = rl.advantages(baseline="none")  # a linear one fits so few steps exactly
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 2)))

    def gradient(env):
        objective = metajax.query_objective(
            learner, loss, evidence=rl.on_policy(learner, env, episodes=3, advantage=plain)
        )
        return jax.jit(jax.grad(lambda meta: objective(meta, jax.random.key(3), task)[0]))(meta)

    found, wanted = gradient(on_host()), gradient(twin())
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)


def test_one_robot_serves_a_trial_and_refuses_two_episodes_at_once():
    env = on_host(at_once=1)
    learner = rl.reading_policy(metajax.learners.gru_model(4), env.actions)
    task = env.sample(jax.random.key(0))
    meta = learner.init(jax.random.key(1), jnp.zeros((1, 2)))
    trial = jax.jit(rl.trials(learner, env, episodes=3))(meta, jax.random.key(2), task)
    assert trial.weights.shape == (3 * HORIZON,) and np.isfinite(trial.targets.reward).all()
    with pytest.raises(Exception, match="2 episodes would run at once, at_once=1 is the limit"):
        jax.block_until_ready(rl.lived(env, act, jax.random.key(3), task, episodes=2))


def test_the_host_cannot_go_back_and_has_one_time_limit():
    env, task, key = on_host(), jnp.array([5.0, 5.0]), jax.random.key(0)
    state, _ = env.reset(key, task)
    once = env.step(key, task, state, jnp.zeros(2))
    assert int(once.state.time) == 1 and not bool(once.terminated)
    with pytest.raises(Exception, match="at step 1, and step 0 was asked for again"):
        jax.block_until_ready(env.step(key, task, state, jnp.zeros(2)))

    class Short(Point):
        cut = 2

    env = on_host(make=Short)
    after = env.step(key, task, env.reset(key, task)[0], jnp.zeros(2))
    with pytest.raises(Exception, match="after 2 steps, horizon is 6; use horizon=2"):
        jax.block_until_ready(env.step(key, task, after.state, jnp.zeros(2)))


def test_goals_of_meta_world_differ(tmp_path, monkeypatch):
    pytest.importorskip("metaworld")
    monkeypatch.chdir(tmp_path)  # MuJoCo may write a log there.
    env = hosted.meta_world("reach-v3", horizon=3)
    assert env.actions == rl.Continuous(4, -1.0, 1.0)

    def one(task):
        state, first = env.reset(jax.random.key(0), task)
        after = env.step(jax.random.key(0), task, state, jnp.ones(4))
        return first, after.observation, after.reward

    first, after, reward = jax.jit(jax.vmap(one))(jnp.array([0, 1, 0]))
    assert first.shape == (3, 39) and np.abs(after - first).max() > 1e-3
    assert reward[0] == reward[2] != reward[1]


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (types.SimpleNamespace(shape=(2,), low=[-1, -2], high=1), "differ.*RescaleAction"),
        (types.SimpleNamespace(spaces={}), "use a Discrete or a Box"),
    ],
)
def test_spaces_that_are_no_actions_are_refused(space, match):
    with pytest.raises(ValueError, match=match):
        foreign.actions_of(space)


def test_numbers_below_one_and_odd_observations_are_refused():
    with pytest.raises(ValueError, match="horizon is 0"):
        hosted.hosted(Point, horizon=0)
    with pytest.raises(ValueError, match="episodes is 0"):
        live_on_host(policy_learner(), Point, horizon=3, episodes=0)

    class Named(Point):
        observation_space = types.SimpleNamespace(spaces={})

    with pytest.raises(ValueError, match="FlattenObservation"):
        hosted.hosted(Named, horizon=3)
