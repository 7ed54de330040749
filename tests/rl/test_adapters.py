"""Environments of other packages and of the host: their physics, ends and errors, step by step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import rl
from metajax.rl.envs import classic, grids, hosted, locomotion
from metajax.rl.envs.hosted import live_on_host, lived_on_host, seed_of

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
        hosted.actions_of(space)


def test_numbers_below_one_and_odd_observations_are_refused():
    with pytest.raises(ValueError, match="horizon is 0"):
        hosted.hosted(Point, horizon=0)
    with pytest.raises(ValueError, match="episodes is 0"):
        live_on_host(policy_learner(), Point, horizon=3, episodes=0)

    class Named(Point):
        observation_space = types.SimpleNamespace(spaces={})

    with pytest.raises(ValueError, match="FlattenObservation"):
        hosted.hosted(Named, horizon=3)


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("gymnax", classic.cartpole),
        ("brax", locomotion.cheetah_direction),
        ("xminigrid", lambda: grids.grid_world(None)),
    ],
)
def test_a_missing_package_is_named_with_its_command(package, make, monkeypatch):
    modules = [name for name in __import__("sys").modules if name.split(".")[0] == package]
    for name in {package, *modules}:
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[rl\]'"):
        make()


# Classic control


CLASSIC = {
    "CartPole-v1": (classic.cartpole, classic.CARTPOLE_PHYSICS),
    "MountainCar-v0": (classic.mountain_car, classic.MOUNTAIN_CAR_PHYSICS),
    "Acrobot-v1": (classic.acrobot, classic.ACROBOT_PHYSICS),
    "Pendulum-v1": (classic.pendulum, classic.PENDULUM_PHYSICS),
}
# Fields of a task: attributes of gymnasium's object.
NAMES = {"link_com_pos_1": "LINK_COM_POS_1", "link_com_pos_2": "LINK_COM_POS_2"}
NAMES |= {
    f"link_{part}_{i}": f"LINK_{part}_{i}".upper() for part in ("length", "mass") for i in (1, 2)
}


def theirs(name, task):
    """Makes gymnasium's environment with the physics of a task."""
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make(name).unwrapped
    for field, value in vars(task).items():
        attribute = NAMES.get(field, field)
        if hasattr(env, attribute) and attribute not in ("max_torque", "max_speed", "dt"):
            setattr(env, attribute, float(value))
    return env


def set_state(env, state):
    """Puts gymnasium's environment into a state of gymnax, whose fields come in the same order."""
    env.reset(seed=0)
    fields = [value for field, value in vars(state).items() if field not in ("time", "last_u")]
    env.state = np.array([float(value) for value in fields])


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("name", CLASSIC)
def test_physics_is_gymnasiums(name, varied):
    pytest.importorskip("gymnax")
    make, ranges = CLASSIC[name]
    env = make(vary=ranges if varied else None)
    task = env.sample(jax.random.key(3))
    their, draw = theirs(name, task), np.random.default_rng(0)
    step = jax.jit(env.step)
    state, _ = jax.jit(env.reset)(jax.random.key(1), task)
    moved = 0.0
    for _ in range(60):
        if isinstance(env.actions, rl.Discrete):
            action = shown = int(draw.integers(env.actions.n))
        else:
            shown = draw.uniform(env.actions.low, env.actions.high, 1)
            action = shown
        set_state(their, state)
        seen, reward, terminated, _, _ = their.step(shown)
        after = step(jax.random.key(0), task, state, jnp.asarray(action))
        np.testing.assert_allclose(after.observation, seen, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(after.reward, reward, atol=1e-5, rtol=1e-5)
        assert bool(after.terminated) == terminated
        moved = max(moved, np.abs(np.asarray(after.observation)).max())
        if terminated:
            state, _ = env.reset(jax.random.key(2), task)
        else:
            state = after.state
    assert moved > 0.05


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("CartPole-v1", {"theta": 0.205, "theta_dot": 1.0}),
        ("CartPole-v1", {"x": -2.39, "x_dot": -1.0}),
        ("MountainCar-v0", {"position": 0.48, "velocity": 0.05}),
        ("Acrobot-v1", {"joint_angle1": 2.2, "joint_angle2": 0.2}),
    ],
)
def test_ends_are_gymnasiums(name, before):
    pytest.importorskip("gymnax")
    env = CLASSIC[name][0]()
    task = env.sample(jax.random.key(0))
    state, _ = env.reset(jax.random.key(1), task)
    state = state.replace(**{field: jnp.float32(value) for field, value in before.items()})
    their = theirs(name, task)
    set_state(their, state)
    seen, reward, terminated, _, _ = their.step(1)
    after = jax.jit(env.step)(jax.random.key(0), task, state, jnp.array(1))
    assert terminated and bool(after.terminated)
    np.testing.assert_allclose(after.observation, seen, atol=1e-5)
    np.testing.assert_allclose(after.reward, reward)


@pytest.mark.parametrize("name", CLASSIC)
def test_the_time_limit_is_the_rollouts_and_tasks_are_equal_unless_varied(name):
    pytest.importorskip("gymnax")
    make, ranges = CLASSIC[name]
    env = make()
    assert env.horizon == 200
    a, b = env.sample(jax.random.key(0)), env.sample(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    env = make(vary=ranges)
    tasks = jax.vmap(env.sample)(jax.random.split(jax.random.key(0), 50))
    for field, (low, high) in ranges.items():
        values = getattr(tasks, field)
        assert low <= values.min() < values.max() <= high
    # Far beyond gymnax's own limits, an episode that does not end by itself is not ended.
    short = make(horizon=3)
    key = jax.random.key(2)
    state, _ = short.reset(key, a)
    actions = jnp.ones(1) if isinstance(env.actions, rl.Continuous) else jnp.array(1)

    def step(state, time):
        after = short.step(key, a, state, (actions + time % 2).astype(actions.dtype) % 3)
        return after.state, after.terminated

    ended = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(5)))(state)[1]
    assert not ended.any()


def test_a_longer_pole_moves_its_mass():
    pytest.importorskip("gymnax")
    env = classic.cartpole(vary=classic.CARTPOLE_PHYSICS)
    task = env.sample(jax.random.key(0))
    assert abs(float(task.length) - 0.5) > 0.01
    np.testing.assert_allclose(task.polemass_length, task.length * task.masspole, rtol=1e-6)
    np.testing.assert_allclose(task.total_mass, task.masscart + task.masspole, rtol=1e-6)
    task = classic.acrobot(vary={"link_length_1": (0.8, 0.8)}).sample(jax.random.key(0))
    np.testing.assert_allclose([task.link_com_pos_1, task.link_com_pos_2], [0.4, 0.5])


def test_rollouts_of_cartpole_end_where_the_pole_falls(float64):
    del float64
    pytest.importorskip("gymnax")
    env = classic.cartpole(horizon=60)
    task = env.sample(jax.random.key(0))

    def left(observation):
        return rl.Categorical(jnp.array([0.0, -1e9]) * jnp.ones((observation.shape[0], 1)))

    lives = jax.jit(lambda key: rl.lived(env, left, key, task, episodes=8))(jax.random.key(1))
    lengths = lives.alive.sum(1)
    assert lengths.min() >= 7 and lengths.max() <= 11  # Known of CartPole: 8 to 10 steps.
    np.testing.assert_array_equal(lives.reward.sum(1), lengths)
    assert lives.terminated.sum() == 8 and lives.reward.dtype == jnp.float64


@pytest.mark.parametrize(
    "name", ["PointRobot-misc", "MetaMaze-misc", "BernoulliBandit-misc", "Reacher-misc"]
)
def test_environments_that_draw_their_task_are_refused(name):
    pytest.importorskip("gymnax")
    with pytest.raises(
        ValueError, match=r"draws .* in reset_env, so that two episodes are two tasks"
    ):
        classic.from_gymnax(name)


def test_a_drawn_goal_is_refused_only_if_asked_for():
    gymnax = pytest.importorskip("gymnax")
    rooms, params = gymnax.make("FourRooms-misc")
    asked = params.replace(resample_goal_pos=True)
    with pytest.raises(ValueError, match="resample_goal_pos=False"):
        classic.from_gymnax(rooms, params=asked)
    fixed = params.replace(resample_goal_pos=False)
    assert classic.from_gymnax(rooms, params=fixed).actions == rl.Discrete(4)


@pytest.mark.parametrize(
    ("vary", "match"),
    [
        ({"lenght": (0.1, 1.0)}, "cannot vary 'lenght'; use one of gravity, masscart"),
        ({"total_mass": (1.0, 2.0)}, "cannot vary 'total_mass'"),
        ({"length": (1.0, 0.5)}, "use finite low <= high"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(vary, match):
    pytest.importorskip("gymnax")
    with pytest.raises(ValueError, match=match):
        classic.cartpole(vary=vary)


def test_a_stronger_torque_widens_the_bounds():
    pytest.importorskip("gymnax")
    assert classic.pendulum(vary={"max_torque": (1.0, 3.0)}).actions == rl.Continuous(1, -3.0, 3.0)


# Grids


@pytest.fixture(scope="module")
def grid():
    """Compiles a small grid once; tasks are arguments."""
    pytest.importorskip("xminigrid")
    env = grids.grid_world(grids.generate_rules(jax.random.key(0), 6), size=5, horizon=20)
    return env._replace(reset=jax.jit(env.reset), step=jax.jit(env.step))


def placed(state, place, *, ahead, pocket):
    """Puts the agent on an empty floor, looking up at a tile two rows below the wall."""
    floor = np.full_like(state.state.grid, 0) + np.array([1, 7], np.uint8)
    floor[1, 2] = ahead
    agent = state.state.agent.replace(
        position=jnp.array(place), direction=jnp.array(0), pocket=jnp.asarray(pocket)
    )
    return state.replace(state=state.state.replace(grid=jnp.asarray(floor), agent=agent))


def test_picking_up_the_right_object_ends_an_episode_and_the_wrong_one_does_not(grid):
    task, key = grid.sample(jax.random.key(1)), jax.random.key(2)
    state, observation = grid.reset(key, task)
    assert observation.shape == (5, 5, 25)
    np.testing.assert_array_equal(observation.sum(-1), 2)
    pocket = state.state.agent.pocket
    right, wrong = [
        grid.step(key, task, placed(state, (2, 2), ahead=tile, pocket=pocket), jnp.array(3))
        for tile in task.init_tiles[:2]
    ]
    assert bool(right.terminated) and not bool(wrong.terminated)
    np.testing.assert_allclose([right.reward, wrong.reward], [1 - 0.9 / 20, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(wrong.state.state.agent.pocket, task.init_tiles[1])


def test_objects_that_meet_become_the_one_to_pick_up(grid):
    rules, key = grids.generate_rules(jax.random.key(0), 50, produce=True), jax.random.key(2)
    tiles = np.concatenate([rules.init_tiles, rules.goal[:, None, 1:3]], axis=1)
    assert all(len({tuple(tile) for tile in row}) == 4 for row in tiles.tolist())  # All differ.
    task = jax.tree.map(lambda leaf: leaf[7], rules)
    first, second, other = task.init_tiles
    state, _ = grid.reset(key, task)
    # Put down at [2, 2], below the other object at [1, 2].
    put = grid.step(key, task, placed(state, (3, 2), ahead=second, pocket=first), jnp.array(4))
    np.testing.assert_array_equal(put.state.state.grid[1, 2], task.goal[1:3])
    assert not bool(put.terminated)
    forward = grid.step(key, task, put.state, jnp.array(0))
    assert bool(grid.step(key, task, forward.state, jnp.array(3)).terminated)
    wrong = grid.step(key, task, placed(state, (3, 2), ahead=other, pocket=first), jnp.array(4))
    np.testing.assert_array_equal(wrong.state.state.grid[1, 2], other)


def test_episodes_of_a_grid_differ_in_places_alone_and_rollouts_run(grid):
    task = grid.sample(jax.random.key(1))

    def uniform(observation):
        return rl.Categorical(jnp.zeros((observation.shape[0], 6)))

    lives = jax.jit(lambda key: rl.lived(grid, uniform, key, task, episodes=3))(jax.random.key(3))
    assert lives.observation.shape == (3, 20, 5, 5, 25)
    assert len({row.tobytes() for row in np.asarray(lives.observation[:, 0])}) > 1
    # No end but at the goal, the only reward.
    np.testing.assert_array_equal(lives.terminated, lives.reward > 0)
    states = [grid.reset(key, task)[0].state for key in jax.random.split(jax.random.key(2), 3)]
    assert len({np.asarray(state.grid).tobytes() for state in states}) == 3
    for state in states:
        np.testing.assert_array_equal(state.goal_encoding, task.goal)
        np.testing.assert_array_equal(state.rule_encoding, task.rules)


@pytest.mark.parametrize(
    ("options", "match"),
    [(dict(rooms=3), "use 1, 2, 4, 6 or 9"), (dict(view=4), "odd"), (dict(size=3), "size is 3")],
)
def test_grids_that_cannot_be_are_refused(options, match):
    pytest.importorskip("xminigrid")
    with pytest.raises(ValueError, match=match):
        grids.grid_world(grids.generate_rules(jax.random.key(0), 2), **options)


# Locomotion


def test_direction_tasks_are_balanced():
    assert float(locomotion.direction_tasks(40).goal.sum()) == 0
    around = locomotion.direction_tasks(6, plane=True).goal
    np.testing.assert_allclose(around.sum(0), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(around, axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="tasks is 3; use an even number"):
        locomotion.direction_tasks(3)


def test_rewards_of_robots_are_mamls():
    velocity, squares = jnp.array([2.0, -1.0]), jnp.array(4.0)
    found = [
        locomotion._cheetah_runs(jnp.array(-1.0), velocity, squares),
        locomotion._cheetah_keeps(jnp.array(1.5), velocity, squares),
        locomotion._ant_runs(jnp.array([0.6, 0.8]), velocity, squares),
        locomotion._ant_keeps(jnp.array(1.5), velocity, squares),
    ]
    np.testing.assert_allclose(
        found, [-2.2, -0.7, 0.4 + 0.05 - 0.02, 1 - 0.5 + 0.05 - 0.02], rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:Brax System:UserWarning")
def test_a_cheetah_runs_and_its_reward_is_of_its_direction(tmp_path, monkeypatch):
    pytest.importorskip("brax")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there.
    env = locomotion.cheetah_direction(mass=(0.5, 2.0), horizon=3)
    assert env.actions == rl.Continuous(6, -1.0, 1.0)

    @jax.jit
    @jax.vmap
    def life(task):
        state, observation = env.reset(jax.random.key(0), task)

        def step(state, key):
            action = jax.random.uniform(key, (6,), minval=-1.0)
            after = env.step(key, task, state, action)
            moved = after.state.x.pos[0, 0] - state.x.pos[0, 0]
            return after.state, (after.reward, moved, jnp.sum(action**2), after.observation)

        return observation, jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 3))[1]

    tasks = locomotion.RobotTask(jnp.array([1.0, -1.0, 1.0]), jnp.array([1.0, 1.0, 2.0]))
    first, (reward, moved, squares, observation) = life(tasks)
    assert first.shape == (3, 17) and observation.shape == (3, 3, 17)
    assert np.isfinite(observation).all()
    # 16 frames of 1/320 second.
    wanted = tasks.goal[:, None] * moved / 0.05 - 0.05 * squares
    np.testing.assert_allclose(reward, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(observation[0], observation[1], atol=1e-5)  # The goal moves nothing.
    assert np.abs(observation[0] - observation[2]).max() > 1e-3  # Masses do.
