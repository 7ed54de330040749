"""Environments of other packages: their physics, ends and errors, step by step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.rl.envs import classic, grids, locomotion, skeletons
from metajax.zoo.environments import find_environment, listed_tasks, make_environment


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


def test_drawn_grids_hold_the_object_of_their_goal():
    pytest.importorskip("xminigrid")
    env = grids.drawn_grids(size=5, objects=2, horizon=4)
    tasks = jax.jit(jax.vmap(env.sample))(jax.random.split(jax.random.key(0), 8))
    goals = tasks.goal[:, 1:3]
    assert jnp.all(jnp.any(jnp.all(tasks.init_tiles == goals[:, None], axis=2), axis=1))
    assert len({tuple(goal) for goal in np.asarray(goals).tolist()}) > 4
    with pytest.raises(ValueError, match="objects is 1; use 2 to 20"):
        grids.drawn_grids(objects=1)


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


@pytest.mark.filterwarnings("ignore:Brax System:UserWarning")
def test_a_skeleton_is_the_axes_of_capsules(tmp_path, monkeypatch):
    pytest.importorskip("brax")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there.
    draw = skeletons.skeleton("halfcheetah", axes=(0, 2))
    upright = jnp.array([np.cos(np.pi / 4), 0.0, np.sin(np.pi / 4), 0.0])  # x becomes -z
    frames = types.SimpleNamespace(
        pos=jnp.zeros((7, 3)).at[0].set(jnp.array([2.0, 0.0, 1.0])),
        rot=jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (7, 1)).at[0].set(upright),
    )
    points = np.asarray(draw(types.SimpleNamespace(x=frames)))
    assert (
        np.isnan(points[2:-1:3]).all() and np.isfinite(np.delete(points, range(2, 24, 3), 0)).all()
    )
    # The torso is a capsule of one meter along its own x; its shin one of 0.3 m around (-0.14, -0.07).
    ends = points[:2][np.argsort(points[:2, 1])]
    np.testing.assert_allclose(ends, [[2.0, 0.5], [2.0, 1.5]], atol=1e-6)
    np.testing.assert_allclose(points[-1], [2.0, 1.0])
    np.testing.assert_allclose(points[9:11].mean(0), [-0.14, -0.07], atol=1e-6)
    assert np.linalg.norm(points[9] - points[10]) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Brax System:UserWarning")
@pytest.mark.parametrize("plane", [False, True])
def test_ants_are_tested_in_tasks_of_the_kind_they_are_trained_in(plane, tmp_path, monkeypatch):
    pytest.importorskip("brax")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there.
    own = {"plane": plane}
    drawn = jax.eval_shape(make_environment("ant_direction", own).sample, jax.random.key(0))
    listed = listed_tasks("ant_direction", own, 4)
    assert listed.goal.shape[1:] == drawn.goal.shape == ((2,) if plane else ())
    captions = [find_environment("ant_direction").caption(type(listed)(g, 1)) for g in listed.goal]
    wanted = [f"towards {angle} degrees" for angle in (0, 90, 180, 270)]
    assert captions == (wanted if plane else ["forward", "backward"] * 2)
