"""Environments: their contract, their numbers, and the check that users run on their own."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl import checks
from metajax.rl.envs import arm

ENVS = {
    "bandit": rl.envs.bandit(3, pulls=5),
    "tabular_mdp": rl.envs.tabular_mdp(4, 3, horizon=5),
    "navigation": rl.envs.navigation(horizon=5),
    "sparse_navigation": rl.envs.navigation("sparse", horizon=5),
    "four_corners": rl.envs.four_corners(horizon=5, bound=1.0),
    "reacher": rl.envs.reacher(horizon=5),
}
DETERMINISTIC = ("navigation", "sparse_navigation", "four_corners", "reacher")
KEY = jax.random.key(0)
HOST = np.random.default_rng(0)
every = pytest.mark.parametrize("name", ENVS)


def random_policy(actions):
    """Makes the policy without preferences."""
    if isinstance(actions, rl.Discrete):
        return lambda seen: rl.Categorical(jnp.zeros((seen.shape[0], actions.n)))
    return lambda seen: rl.Normal(*[jnp.zeros((seen.shape[0], actions.size))] * 2)


@every
def test_contract(name):
    rl.check_env(ENVS[name], KEY, episodes=3)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_types_are_the_tasks(name, dtype, float64):
    """Where float64 is on, a task of either type keeps the state, the observation and the reward in it."""
    env, cast = ENVS[name], lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)
    task = jax.tree.map(cast, jax.eval_shape(env.sample, KEY))
    checks._check_types(env, KEY, task)
    if name != "bandit":  # its observation is a constant
        _, observation = jax.eval_shape(env.reset, KEY, task)
        assert observation.dtype == dtype


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_two_keys_and_one_task_have_one_dynamics_and_one_reward(name):
    env = ENVS[name]

    @jax.jit
    def steps(keys):
        task = env.sample(KEY)
        state, _ = env.reset(KEY, task)
        return jax.vmap(env.step, (0, None, None, None))(keys, task, state, jnp.array([0.7, -0.4]))

    for leaf in jax.tree.leaves(steps(jax.random.split(KEY, 2))):
        np.testing.assert_array_equal(leaf[0], leaf[1])


@every
def test_rollouts_over_tasks_equal_a_loop_in_python(name):
    """One compiled program of all tasks and episodes, and one step after another of each."""
    env, episodes = ENVS[name], 2
    act = random_policy(env.actions)
    keys = jax.random.split(KEY, 2)
    tasks = jax.jit(jax.vmap(env.sample))(keys)
    lived = functools.partial(rl.lived, env, act, episodes=episodes)
    found = jax.jit(jax.vmap(lived))(keys, tasks)
    step, reset = jax.jit(env.step), jax.jit(env.reset)

    @jax.jit
    def draw(key, seen):
        action = act(seen).sample(key)
        return rl.clip_action(env.actions, action)

    split = jax.jit(jax.random.split, static_argnums=1)
    for number, key in enumerate(keys):
        task = jax.tree.map(lambda leaf, number=number: leaf[number], tasks)
        reset_key, step_key = split(key, 2)
        lives = [reset(key, task) for key in split(reset_key, episodes)]
        alive = [True] * episodes
        for time, key in enumerate(split(step_key, env.horizon)):
            act_key, env_key = split(key, 2)
            actions = draw(act_key, np.stack([seen for _, seen in lives]))
            for episode, key in enumerate(split(env_key, episodes)):
                where = number, episode, time
                assert bool(found.alive[where]) == alive[episode]
                np.testing.assert_allclose(found.observation[where], lives[episode][1], atol=1e-5)
                if not alive[episode]:
                    assert float(found.reward[where]) == 0
                    continue
                after = step(key, task, lives[episode][0], actions[episode])
                lives[episode] = after.state, after.observation
                np.testing.assert_allclose(found.reward[where], after.reward, atol=1e-5)
                alive[episode] = not bool(after.terminated)


def test_nothing_counts_after_an_end():
    """An environment whose rewards and states explode once it has ended."""

    def step(key, task, state, action):
        ended = state >= 2
        broken = jnp.where(ended, jnp.nan, 1.0)
        return rl.Step(state + broken, (state + broken)[None], broken, state == 1)

    env = rl.Env(
        sample=lambda key: jnp.zeros(()),
        reset=lambda key, task: (jnp.zeros(()), jnp.zeros(1)),
        step=step,
        actions=rl.Discrete(2),
        horizon=5,
    )
    lives = jax.jit(lambda: rl.lived(env, random_policy(env.actions), KEY, 0.0, episodes=3))()
    np.testing.assert_array_equal(lives.reward, [[1, 1, 0, 0, 0]] * 3)
    np.testing.assert_array_equal(lives.alive, [[True, True, False, False, False]] * 3)
    np.testing.assert_array_equal(lives.observation[..., 0], [[0, 1, 2, 2, 2]] * 3)
    np.testing.assert_array_equal(lives.ends, [[False, True, False, False, False]] * 3)
    rl.check_env(env, KEY)


def test_the_tables_are_what_is_drawn_from():
    """Frequencies of next states and means of rewards, of every state and choice."""
    env, draws = rl.envs.tabular_mdp(3, 2), 20_000

    @jax.jit
    def moments(key):
        task = env.sample(key)
        task = task._replace(transitions=task.transitions.at[0, 0].set(jnp.array([0.5, 0.0, 0.5])))
        grid = jnp.array(list(itertools.product(range(3), range(2))))
        keys = jax.random.split(key, draws)
        step = jax.vmap(env.step, (0, None, None, None))
        after = jax.vmap(lambda pair: step(keys, task, pair[0], pair[1]))(grid)
        return (
            task,
            jax.nn.one_hot(after.state, 3).mean(1),
            after.reward.mean(1),
            after.reward.std(1),
        )

    task, moves, rewards, deviations = moments(KEY)
    chances = np.asarray(task.transitions).reshape(6, 3)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-6)
    errors = np.sqrt(chances * (1 - chances) / draws)
    assert np.all(np.abs(moves - chances) <= 4.5 * errors + 1e-7)  # never where the chance is zero
    np.testing.assert_allclose(rewards, task.rewards.reshape(6), atol=4.5 / draws**0.5)
    np.testing.assert_allclose(deviations, 1, atol=0.03)


def test_the_mean_rewards_of_tasks_are_normal_around_one():
    env = rl.envs.tabular_mdp(2, 2)
    tasks = jax.jit(jax.vmap(env.sample))(jax.random.split(KEY, 4000))
    assert float(tasks.rewards.mean()) == pytest.approx(1, abs=4.5 / 16000**0.5)
    assert float(tasks.rewards.std()) == pytest.approx(1, abs=0.03)
    # A flat Dirichlet of two states is a uniform probability: its variance is 1/12.
    assert float(tasks.transitions[..., 0].var()) == pytest.approx(1 / 12, abs=0.003)


def test_navigation_rewards_the_distance_and_ends_at_the_goal():
    env, goal = rl.envs.navigation(), jnp.array([0.3, 0.4])
    step = jax.jit(env.step)
    after = step(KEY, goal, jnp.zeros(2), jnp.array([1.0, -1.0]))
    assert float(after.reward) == pytest.approx(-np.hypot(0.2, 0.5), abs=1e-6)
    np.testing.assert_allclose(after.observation, [0.1, -0.1], atol=1e-7)
    # The box |dx|, |dy| < 0.01, not a disc: 0.009 along both axes is an end, 0.011 along one is none.
    for miss, ends in (((0.009, -0.009), True), ((0.011, 0.0), False)):
        after = step(KEY, goal, goal + jnp.array(miss), jnp.zeros(2))
        assert bool(after.terminated) is ends


def test_sparse_navigation_pays_within_the_radius_and_never_ends():
    env, goal = rl.envs.navigation("sparse"), jnp.array([0.0, 1.0])
    step = jax.jit(env.step)
    for place, paid in (
        ((0.0, 0.7), 0.0),
        ((0.0, 0.85), 0.85),
        ((0.1, 1.0), 0.9),
        ((0.0, 1.0), 1.0),
    ):
        after = step(KEY, goal, jnp.array(place), jnp.zeros(2))
        assert float(after.reward) == pytest.approx(paid, abs=1e-6)
        assert not after.terminated
    goals = jax.jit(jax.vmap(env.sample))(jax.random.split(KEY, 500))
    np.testing.assert_allclose(jnp.sum(goals**2, axis=1), 1, atol=1e-5)
    assert goals[:, 1].min() >= 0 and goals[:, 0].min() < -0.95 and goals[:, 0].max() > 0.95


def test_lists_of_tasks_are_fixed_and_cover_their_family():
    goals = np.asarray(rl.envs.navigation_tasks(36))
    cells = np.floor((goals + 0.5) * (2, 3) + 1e-5)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    assert counts.tolist() == [6] * 6  # each of the 2 x 3 cells as often
    angles = np.arctan2(*np.asarray(rl.envs.navigation_tasks(4, reward="sparse")).T[::-1])
    np.testing.assert_allclose(angles, np.pi * np.array([1, 3, 5, 7]) / 8, atol=1e-6)
    corners = np.asarray(rl.envs.corner_tasks(8))
    assert np.unique(corners, axis=0, return_counts=True)[1].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("place", "action", "expected"),
    [
        ((0.2, 0.2), (0.0, 0.0), 0.0),  # within 0.5 of the start, by the sum
        (
            (0.2, 0.2),
            (0.5, 0.5),
            np.hypot(1.8, 1.8) - np.hypot(1.7, 1.7),
        ),  # after the step, not before
        ((0.4, 0.4), (-1.0, -1.0), 0.0),
        (
            (1.0, 0.5),
            (-1.0, 0.0),
            np.hypot(1.0, 1.5) - np.hypot(1.2, 1.5),
        ),  # away from the goal: negative
        ((-1.0, 0.5), (1.0, 0.0), 0.0),  # another corner is nearest
        ((0.1, 1.0), (-1.0, 0.0), 0.0),  # left the quadrant with the step
    ],
)
def test_four_corners_reward_progress_in_the_quadrant_of_the_goal(place, action, expected):
    after = ENVS["four_corners"].step(
        KEY, jnp.array([2.0, 2.0]), jnp.array(place), jnp.array(action)
    )
    assert float(after.reward) == pytest.approx(expected, abs=1e-6)


def test_four_corners_spread_their_steps_over_the_bound():
    env = rl.envs.four_corners()
    assert (env.actions.low, env.actions.high) == (-10, 10)
    goals, starts = jax.jit(
        jax.vmap(lambda key: (env.sample(key), env.reset(key, jnp.ones(2))[0]))
    )(jax.random.split(KEY, 300))
    moved = env.step(KEY, goals[0], jnp.zeros(2), jnp.array([10.0, -1.0])).state
    np.testing.assert_allclose(moved, [0.2, -0.02], atol=1e-7)
    assert np.unique(goals, axis=0).shape == (4, 2)
    assert 0.19 < jnp.abs(starts).max() <= 0.2


def kinetic_energy(lengths, joints, velocity):
    """Computes the energy of two rods by integrating over their points, without any mass matrix.

    The squared speed is quadratic along a rod, so Simpson's rule is exact.
    """

    def places(joints):
        one, two = joints[0], joints[0] + joints[1]
        ahead = [jnp.stack([jnp.cos(angle), jnp.sin(angle)]) for angle in (one, two)]
        shares = jnp.array([0.0, 0.5, 1.0])[:, None]
        first = shares * lengths[0] * ahead[0]
        return jnp.stack([first, lengths[0] * ahead[0] + shares * lengths[1] * ahead[1]])

    _, speeds = jax.jvp(places, (joints,), (velocity,))
    weights = jnp.array([1.0, 4.0, 1.0]) / 6
    return jnp.sum(lengths[:, None] * weights * jnp.sum(speeds**2, axis=-1)) / 2


def test_the_arm_obeys_the_lagrangian_of_its_rods(float64):
    draw = np.random.default_rng(0)
    lengths, joints, velocity, torque = (jnp.asarray(draw.uniform(0.3, 2.0, 2)) for _ in range(4))
    state = arm.ArmState(joints, velocity)

    @jax.jit
    def both():
        lagrangian = functools.partial(kinetic_energy, lengths)
        mass = jax.hessian(lagrangian, 1)(joints, velocity)
        _, change = jax.jvp(lambda q: jax.grad(lagrangian, 1)(q, velocity), (joints,), (velocity,))
        # d/dt dL/dq' - dL/dq = torque - damping q'
        force = torque - 0.3 * velocity + jax.grad(lagrangian)(joints, velocity) - change
        expected = mass, jnp.linalg.solve(mass, force), lagrangian(joints, velocity)
        return expected, (
            arm.inertia(lengths, joints),
            arm.acceleration(lengths, state, torque, damping=0.3),
            arm.energy(lengths, state),
        )

    for expected, found in zip(*both(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_arm_keeps_its_energy_and_its_integrator_has_order_four(float64):
    lengths = jnp.array([0.5, 0.4])
    state = arm.ArmState(jnp.array([0.3, -1.0]), jnp.array([2.0, -3.0]))

    @functools.partial(jax.jit, static_argnames="substeps")
    def end(substeps, damping=0.0):
        return arm.move(
            lengths, state, jnp.zeros(2), damping=damping, seconds=1.0, substeps=substeps
        )

    energies = [float(arm.energy(lengths, end(n))) for n in (20, 40, 80)]
    start = float(arm.energy(lengths, state))
    assert energies[1] == pytest.approx(start, rel=1e-4)
    assert energies[2] == pytest.approx(start, rel=1e-5)
    true = end(1280).joints
    errors = [float(jnp.abs(end(n).joints - true).max()) for n in (40, 80)]
    assert 12 < errors[0] / errors[1] < 20  # 2^4 = 16
    # No torque and friction alone: what is left of the energy is what friction did not take.
    assert float(arm.energy(lengths, end(80, 0.2))) < 0.2 * start


def test_the_arm_hides_its_task_and_rewards_the_tip():
    env = ENVS["reacher"]
    short = arm.ArmTask(jnp.array([0.5, 0.4]), jnp.array([0.9, 0.0]))
    long = arm.ArmTask(jnp.array([0.7, 0.6]), jnp.array([0.0, 1.0]))
    seen = [env.reset(KEY, task)[1] for task in (short, long)]
    np.testing.assert_array_equal(*seen)
    still = arm.ArmState(jnp.zeros(2), jnp.zeros(2))
    after = env.step(KEY, short, still, jnp.zeros(2))
    assert float(after.reward) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(after.observation, [1, 1, 0, 0, 0, 0], atol=1e-7)
    pushed = env.step(KEY, short, still, jnp.array([1.0, 0.0]))
    miss = float(jnp.linalg.norm(arm.tip(short.lengths, pushed.state.joints) - short.target))
    assert miss > 1e-4 and pushed.state.joints[0] > 0.01
    assert float(pushed.reward) == pytest.approx(-miss - 0.01, abs=1e-6)
    tasks = jax.jit(jax.vmap(env.sample))(jax.random.split(KEY, 500))
    distance = jnp.linalg.norm(tasks.target, axis=1)
    assert jnp.all(distance <= tasks.lengths.sum(1) + 1e-6)
    assert jnp.all(distance >= jnp.abs(tasks.lengths[:, 0] - tasks.lengths[:, 1]) - 1e-6)


def walk(reset=None, step=None, **changes):
    """Makes a walk on a line with one rule of the contract broken."""

    def plain_reset(key, task):
        return {"place": jnp.zeros(())}, jnp.zeros(1)

    def plain_step(key, task, state, action):
        place = state["place"] + 2.0 * action - 1
        after = {**state, "place": place}
        return rl.Step(after, place[None], task * place, jnp.array(False))

    env = rl.Env(
        sample=lambda key: jax.random.normal(key),
        reset=reset or plain_reset,
        step=step(plain_step) if step else plain_step,
        actions=rl.Discrete(2),
        horizon=4,
    )
    return env._replace(**changes)


def hidden_goal(key, task):
    """Resets to a goal that is nobody's task."""
    return {"place": jnp.zeros(()), "goal": jax.random.normal(key)}, jnp.zeros(1)


def towards_goal(plain):
    def step(key, task, state, action):
        after = plain(key, task, state, action)
        return after._replace(reward=-jnp.abs(state["goal"] - after.state["place"]))

    return step


def replaced(**how):
    """Makes a step with fields computed from those of the plain step and its key."""

    def change(plain):
        def step(key, task, state, action):
            after = plain(key, task, state, action)
            return after._replace(**{name: make(after, key) for name, make in how.items()})

        return step

    return change


def restarted(after, key):
    """Begins anew at random where the walk ends, as automatic resets do."""
    place = jnp.where(after.state["place"] > 0, jax.random.normal(key), after.state["place"])
    return {"place": place}


BROKEN = {
    "choices": (walk(actions=rl.Discrete(0)), "env.actions has 0 choices"),
    "components": (walk(actions=rl.Continuous(0)), "env.actions has 0 components"),
    "bounds": (
        walk(actions=rl.Continuous(2, 1.0, -1.0)),
        "env.actions are bounded by 1.0 and -1.0",
    ),
    "kind": (walk(actions=2), "env.actions is 2; use metajax.rl.Discrete"),
    "horizon": (walk(horizon=0), "env.horizon is 0"),
    "horizon_kind": (walk(horizon=2.5), "env.horizon is 2.5"),
    "reset": (walk(lambda key, task: jnp.zeros(3)), "env.reset returns .*; use \\(state, obs"),
    "step": (walk(step=lambda plain: lambda *args: tuple(plain(*args))), "env.step returns tuple"),
    "state_shape": (
        walk(step=replaced(state=lambda after, key: {"place": jnp.zeros(2)})),
        r"state\['place'\] of env.step is float32\[2\], of env.reset float32\[\]",
    ),
    "state_structure": (
        walk(step=replaced(state=lambda after, key: {"position": jnp.zeros(())})),
        "state of env.step is .*position.*, of env.reset .*place",
    ),
    "observation_type": (
        walk(step=replaced(observation=lambda after, key: jnp.zeros(1, jnp.int32))),
        r"observation of env.step is int32\[1\], of env.reset float32\[1\]",
    ),
    "reward_shape": (
        walk(step=replaced(reward=lambda after, key: after.observation)),
        r"reward of env.step is float32\[1\]; use a float scalar",
    ),
    "reward_type": (
        walk(step=replaced(reward=lambda after, key: jnp.array(1))),
        r"reward of env.step is int32\[\]; use a float scalar",
    ),
    "terminated": (
        walk(step=replaced(terminated=lambda after, key: jnp.zeros(()))),
        r"terminated of env.step is float32\[\]; use a bool scalar",
    ),
    "host_noise": (
        walk(lambda key, task: ({"place": jnp.zeros(()) + HOST.random()}, jnp.zeros(1))),
        "env.reset is not a function of its arguments",
    ),
    "host_tasks": (
        walk(sample=lambda key: jnp.asarray(HOST.random(3))),
        "env.sample is not a function of its arguments",
    ),
    "drawn_goal": (
        walk(hidden_goal, towards_goal),
        r"env.reset draws state\['goal'\], .* changes the reward: it belongs to the task",
    ),
    "drawn_part": (
        walk(
            lambda key, task: (jnp.append(0.0, jax.random.normal(key)), jnp.zeros(1)),
            lambda plain: (
                lambda key, task, state, action: rl.Step(
                    state.at[0].add(1), state[:1], state[0] * state[1], jnp.array(False)
                )
            ),
        ),
        "env.reset draws state, .* changes the reward",
    ),
    "reset_by_itself": (
        walk(
            step=replaced(state=restarted, terminated=lambda after, key: after.state["place"] > 0)
        ),
        "state of env.step is random after an end and only there",
    ),
    "reward_infinite": (
        walk(step=replaced(reward=lambda after, key: 1 / (after.state["place"] - 2) ** 2)),
        "reward is not finite at step 1 of episode",
    ),
    "observation_infinite": (
        walk(
            step=replaced(observation=lambda after, key: jnp.sqrt(3 - jnp.abs(after.observation)))
        ),
        "observation is not finite at step 3 of episode",
    ),
    "first_observation": (
        walk(lambda key, task: ({"place": jnp.zeros(())}, jnp.full(1, jnp.inf))),
        "observation is not finite at env.reset of episode 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_names_what_is_broken(name):
    env, message = BROKEN[name]
    with pytest.raises(ValueError, match=message) as error:
        rl.check_env(env, KEY, episodes=16)
    assert "\n" not in str(error.value)


def test_the_check_lets_random_starts_and_unused_numbers_pass():
    """Starts that steps change, numbers without effect, and a goal that the user declares visible."""

    def random_start(key, task):
        place = jax.random.normal(key)
        return {"place": place, "unused": jax.random.normal(key), "noise": key}, place[None]

    rl.check_env(walk(), KEY)
    rl.check_env(walk(random_start), KEY)
    rl.check_env(walk(hidden_goal, towards_goal), KEY, visible=("state['goal']",))
    with pytest.raises(ValueError, match="episodes is 1; use 2 or more"):
        rl.check_env(walk(), KEY, episodes=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rl.envs.tabular_mdp(states=0), "states is 0; use 1 or more"),
        (lambda: rl.envs.tabular_mdp(noise=-1), "noise is -1; use 0 or more"),
        (lambda: rl.envs.navigation("dens"), "reward is 'dens'; use 'dense' or 'sparse'"),
        (lambda: rl.envs.navigation(horizon=0), "horizon is 0; use 1 or more"),
        (lambda: rl.envs.navigation(radius=0), "radius is 0; use a number above 0"),
        (lambda: rl.envs.navigation_tasks(0), "number is 0; use 1 or more tasks"),
        (lambda: rl.envs.four_corners(bound=0), "bound is 0; use a number above 0"),
        (lambda: rl.envs.corner_tasks(6), "number is 6; use a multiple of 4"),
        (lambda: rl.envs.reacher(substeps=0), "substeps is 0; use 1 or more"),
        (lambda: rl.envs.reacher(torque=0), "torque is 0; use a number above 0"),
        (lambda: rl.envs.reacher(damping=-1), "damping is -1; use 0 or more"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
