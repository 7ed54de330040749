"""Half-cheetah and ant of brax: run in a direction, or at a speed, that the task sets.

The robots of MAML's and ProMP's experiments in another simulator: orders carry over, sizes of returns do not.
A robot is built once; its state is brax's pipeline state, without wrappers that reset by themselves. Install
brax with `pip install 'metajax[rl]'`. Compiling takes a minute.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.envs.foreign import installed, strong_types
from metajax.rl.types import Continuous, Env, Step
from metajax.types import Array, Key, Tree

# Rewards of rllab's environments, with actions in [-1, 1].
CHEETAH_CONTROL, ANT_CONTROL, ANT_SURVIVES, ANT_BONUS = 0.05, 0.005, 0.05, 1.0
INERTIA = "link.inertia.mass"


class RobotTask(NamedTuple):
    """A task of a robot.

    Attributes:
      goal: Direction, +1 or -1 or a unit vector [2]; or the speed to run at, in meters per second.
      mass: Factor of all masses, a float scalar.
    """

    goal: Array
    mass: Array


def cheetah_direction(
    *,
    mass: tuple[float, float] | None = None,
    horizon: int = 200,
    backend: str = "spring",
) -> Env:
    """Makes half-cheetah tasks of two directions: the reward is the speed that way, less 0.05 |a|^2.

    Args:
      mass: Range of a factor of all masses, drawn uniformly for a task; None varies nothing.
      horizon: Largest number of steps.
      backend: Simulator of brax: "spring", "positional", "generalized" or "mjx".

    Returns:
      An environment with `RobotTask`s; actions [6] in [-1, 1], observations [17]. Episodes do not end by
      themselves.

    Raises:
      ImportError: If brax is not installed.
      ValueError: If `horizon` is below 1, or `mass` is no range above zero.

    Example:
      >>> env = metajax.rl.envs.locomotion.cheetah_direction()
      >>> float(abs(env.sample(jax.random.key(0)).goal))
      1.0

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3.
    """
    return _robot("halfcheetah", _one_axis, _cheetah_runs, mass, horizon, backend)


def cheetah_velocity(
    *,
    speeds: tuple[float, float] = (0.0, 2.0),
    mass: tuple[float, float] | None = None,
    horizon: int = 200,
    backend: str = "spring",
) -> Env:
    """Makes half-cheetah tasks of a speed: the reward is -|v - goal| less 0.05 |a|^2.

    Args:
      speeds: Range of the goal, in meters per second: MAML's; ProMP's is 0 to 3.
      mass: Range of a factor of all masses, drawn uniformly for a task; None varies nothing.
      horizon: Largest number of steps.
      backend: Simulator of brax.

    Returns:
      An environment with `RobotTask`s; actions [6] in [-1, 1], observations [17]. Episodes do not end by
      themselves.

    Raises:
      ImportError: If brax is not installed.
      ValueError: If `horizon` is below 1, or `mass` is no range above zero.

    Example:
      >>> env = metajax.rl.envs.locomotion.cheetah_velocity()
      >>> env.actions
      Continuous(size=6, low=-1.0, high=1.0)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3.
    """
    return _robot("halfcheetah", _speed(speeds), _cheetah_keeps, mass, horizon, backend)


def ant_direction(
    *,
    plane: bool = False,
    mass: tuple[float, float] | None = None,
    horizon: int = 200,
    backend: str = "spring",
) -> Env:
    """Makes ant tasks of a direction: the reward is the speed that way, plus 0.05, less 0.005 |a|^2.

    Without the cost of contacts, which the simulator does not give.

    Args:
      plane: Whether directions are any in the plane, as in ProMP, instead of forward and backward, as in
        MAML.
      mass: Range of a factor of all masses, drawn uniformly for a task; None varies nothing.
      horizon: Largest number of steps.
      backend: Simulator of brax.

    Returns:
      An environment with `RobotTask`s, goals scalar or [2]; actions [8] in [-1, 1], observations [27]. An
      episode ends where the torso leaves heights of 0.2 to 1 meter.

    Raises:
      ImportError: If brax is not installed.
      ValueError: If `horizon` is below 1, or `mass` is no range above zero.

    Example:
      >>> env = metajax.rl.envs.locomotion.ant_direction(plane=True)
      >>> env.sample(jax.random.key(0)).goal.shape
      (2,)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3; Rothfuss et al., 2019
      (https://arxiv.org/abs/1810.06784), section 6.
    """
    return _robot("ant", _any_angle if plane else _one_axis, _ant_runs, mass, horizon, backend)


def ant_velocity(
    *,
    speeds: tuple[float, float] = (0.0, 3.0),
    mass: tuple[float, float] | None = None,
    horizon: int = 200,
    backend: str = "spring",
) -> Env:
    """Makes ant tasks of a speed: the reward is 1 - |v - goal|, plus 0.05, less 0.005 |a|^2.

    Args:
      speeds: Range of the goal, in meters per second.
      mass: Range of a factor of all masses, drawn uniformly for a task; None varies nothing.
      horizon: Largest number of steps.
      backend: Simulator of brax.

    Returns:
      An environment with `RobotTask`s; actions [8] in [-1, 1], observations [27]. An episode ends where the
      torso leaves heights of 0.2 to 1 meter.

    Raises:
      ImportError: If brax is not installed.
      ValueError: If `horizon` is below 1, or `mass` is no range above zero.

    Example:
      >>> env = metajax.rl.envs.locomotion.ant_velocity()
      >>> env.actions
      Continuous(size=8, low=-1.0, high=1.0)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3.
    """
    return _robot("ant", _speed(speeds), _ant_keeps, mass, horizon, backend)


def direction_tasks(tasks: int, *, plane: bool = False) -> RobotTask:
    """Lists test tasks of directions, balanced: a random draw of a few is not.

    Args:
      tasks: Number of tasks T; even for two directions.
      plane: Whether directions are angles, spread evenly over the circle, instead of forward and backward in
        turn.

    Returns:
      Tasks with leaves [T, ...], masses unchanged.

    Raises:
      ValueError: If `tasks` is below 1, or odd with two directions.

    Example:
      >>> metajax.rl.envs.locomotion.direction_tasks(4).goal.tolist()
      [1.0, -1.0, 1.0, -1.0]
    """
    if tasks < 1 or (tasks % 2 and not plane):
        raise ValueError(f"tasks is {tasks}; use an even number, for as many of each direction.")
    if plane:
        angles = 2 * jnp.pi * jnp.arange(tasks) / tasks
        return RobotTask(jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1), jnp.ones(tasks))
    return RobotTask(1.0 - 2.0 * (jnp.arange(tasks) % 2), jnp.ones(tasks))


def speed_tasks(tasks: int, *, low: float, high: float) -> RobotTask:
    """Lists test tasks of speeds: the middles of equal parts of the range.

    Args:
      tasks: Number of tasks T.
      low: Least speed, in meters per second.
      high: Largest speed.

    Returns:
      Tasks with leaves [T], masses unchanged.

    Raises:
      ValueError: If `tasks` is below 1.

    Example:
      >>> metajax.rl.envs.locomotion.speed_tasks(4, low=0.0, high=2.0).goal.tolist()
      [0.25, 0.75, 1.25, 1.75]
    """
    if tasks < 1:
        raise ValueError(f"tasks is {tasks}; use 1 or more.")
    return RobotTask(low + (high - low) * (jnp.arange(tasks) + 0.5) / tasks, jnp.ones(tasks))


def _one_axis(key: Key) -> Array:
    """Draws forward or backward, +1 or -1."""
    return jax.random.rademacher(key, (), jnp.result_type(float))


def _any_angle(key: Key) -> Array:
    """Draws a unit vector [2]."""
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def _speed(speeds: tuple[float, float]) -> Any:
    """Makes the function that draws a speed of a range."""
    low, high = speeds
    return lambda key: jax.random.uniform(key, minval=low, maxval=high)


def _along(goal: Array, velocity: Array) -> Array:
    """Computes the speed in a direction from a velocity [2]: along x, or along a unit vector."""
    return jnp.sum(goal * velocity) if jnp.ndim(goal) else goal * velocity[0]


def _cheetah_runs(goal: Array, velocity: Array, squares: Array) -> Array:
    """Rewards the cheetah's speed in a direction."""
    return _along(goal, velocity) - CHEETAH_CONTROL * squares


def _cheetah_keeps(goal: Array, velocity: Array, squares: Array) -> Array:
    """Rewards the cheetah for keeping a speed."""
    return -jnp.abs(velocity[0] - goal) - CHEETAH_CONTROL * squares


def _ant_runs(goal: Array, velocity: Array, squares: Array) -> Array:
    """Rewards the ant's speed in a direction."""
    return _along(goal, velocity) + ANT_SURVIVES - ANT_CONTROL * squares


def _ant_keeps(goal: Array, velocity: Array, squares: Array) -> Array:
    """Rewards the ant for keeping a speed; the bonus pays for staying alive."""
    near = ANT_BONUS - jnp.abs(velocity[0] - goal)
    return near + ANT_SURVIVES - ANT_CONTROL * squares


def _robot(
    name: str,
    draw: Any,
    rewards: Any,
    mass: tuple[float, float] | None,
    horizon: int,
    backend: str,
) -> Env:
    """Makes the environment of a robot of brax.

    Args:
      name: Name of the robot in `brax.envs`.
      draw: Function `key -> goal`.
      rewards: Function of the goal, the torso's velocity [2] and the sum of squares of the action.
      mass: Range of the factor of all masses, or None.
      horizon: Largest number of steps.
      backend: Simulator of brax.

    Returns:
      The environment.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")
    if mass is not None and not (np.isfinite(mass).all() and 0 < mass[0] <= mass[1]):
        raise ValueError(f"mass is {mass}; use a range of factors above 0, such as (0.5, 2.0).")
    robot = installed("brax.envs").get_environment(name, backend=backend)
    first_state = installed("brax.envs.base").State

    def of(task: RobotTask) -> Any:
        # A copy of the Python object with another system of the same structure, which may be traced.
        if mass is None:
            return robot
        heavier = copy.copy(robot)
        heavier.sys = robot.sys.tree_replace({INERTIA: robot.sys.link.inertia.mass * task.mass})
        return heavier

    def sample(key: Key) -> RobotTask:
        goal_key, mass_key = jax.random.split(key)
        low, high = mass or (1.0, 1.0)
        return RobotTask(draw(goal_key), jax.random.uniform(mass_key, minval=low, maxval=high))

    def reset(key: Key, task: RobotTask) -> tuple[Tree, Array]:
        begin = of(task).reset(key)
        return strong_types(begin.pipeline_state), strong_types(begin.obs)

    def step(key: Key, task: RobotTask, state: Tree, action: Array) -> Step:
        del key  # The physics is deterministic.
        # Rollouts are not differentiated: without tangents, the physics is not traced a second time.
        state, action = jax.lax.stop_gradient((state, action))
        body, zero = of(task), jnp.zeros(())
        after = body.step(first_state(state, None, zero, zero, {}), action)
        moved = after.pipeline_state.x.pos[0, :2] - state.x.pos[0, :2]
        reward = rewards(task.goal, moved / body.dt, jnp.sum(action**2))
        return Step(
            strong_types(after.pipeline_state),
            strong_types(after.obs),
            strong_types(reward),
            after.done > 0,
        )

    return Env(sample, reset, step, Continuous(robot.action_size, -1.0, 1.0), horizon)
