"""Classic control of gymnax, with physics that varies from task to task.

A task is the environment's `EnvParams`, whose fields are arrays. Only the functions of gymnax that do not
reset by themselves are used: the time limit is the rollout's, and an episode ends by itself only by the
physics. Install gymnax with `pip install 'metajax[rl]'`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.envs.foreign import actions_of, installed, strong_types
from metajax.rl.types import Actions, Continuous, Env, Step
from metajax.types import Array, Key, Task, Tree

Ranges = Mapping[str, tuple[float, float]]

# Ranges wide enough that one policy does not fit all tasks; negative forces swap the actions.
CARTPOLE_PHYSICS: Ranges = {
    "length": (0.25, 1.5),
    "masspole": (0.05, 0.5),
    "masscart": (0.5, 2.0),
    "force_mag": (5.0, 15.0),
}
MOUNTAIN_CAR_PHYSICS: Ranges = {"force": (0.0008, 0.0015), "gravity": (0.002, 0.003)}
ACROBOT_PHYSICS: Ranges = {
    "link_length_1": (0.75, 1.25),
    "link_length_2": (0.75, 1.25),
    "link_mass_1": (0.75, 1.25),
    "link_mass_2": (0.75, 1.25),
}
PENDULUM_PHYSICS: Ranges = {"g": (5.0, 12.0), "m": (0.75, 1.25), "l": (0.75, 1.25)}

# Environments whose `reset_env` draws what a task should hold: its goal, its arms, its walls.
DRAW_THEIR_TASK = {
    "BernoulliBandit": "the arm that pays",
    "GaussianBandit": "the mean of the arm",
    "SimpleBandit": "the arms",
    "MetaMaze": "the goal",
    "PointRobot": "the goal",
    "Reacher": "the goal",
    "Swimmer": "the goal",
}
# Those that do so where an option of their parameters asks for it.
DRAW_IF_ASKED = {"FourRooms": "resample_goal_pos", "DeepSea": "sample_action_map"}


def from_gymnax(
    environment: Any,
    *,
    vary: Ranges | None = None,
    params: Any = None,
    horizon: int | None = None,
) -> Env:
    """Adapts an environment of gymnax 1.0; a task is its `EnvParams`, with fields drawn from ranges.

    Fields that follow from others are computed from them: `total_mass` and `polemass_length` of CartPole, and
    the centers of mass of Acrobot, half way along the links. (In gymnax they are fields of their own, so that
    a longer pole alone would keep the old moment of its mass.)

    Args:
      environment: Name that `gymnax.make` knows, such as "CartPole-v1", or an environment of gymnax.
      vary: Ranges `{field: (low, high)}` of fields of the parameters, drawn uniformly for each task; None
        varies nothing, and all tasks are equal.
      params: Parameters of gymnax that are not varied; None uses the environment's defaults.
      horizon: Largest number of steps of an episode; None is the parameters' `max_steps_in_episode`.

    Returns:
      An environment whose tasks are `EnvParams`.

    Raises:
      ImportError: If gymnax is not installed.
      ValueError: If the environment draws its task in `reset_env`, `vary` names an unknown or computed field
        or an empty range, or `horizon` is below 1.

    Example:
      >>> env = metajax.rl.envs.classic.from_gymnax("CartPole-v1", vary={"length": (0.25, 1.0)}, horizon=200)
      >>> task = env.sample(jax.random.key(0))
      >>> bool(jnp.allclose(task.polemass_length, task.length * task.masspole))
      True

    Reference: Lange, 2022 (https://github.com/RobertTLange/gymnax).
    """
    gymnax = installed("gymnax")
    if isinstance(environment, str):
        environment, defaults = gymnax.make(environment)
    else:
        defaults = environment.default_params
    params = defaults if params is None else params
    horizon = int(params.max_steps_in_episode) if horizon is None else horizon
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")
    name, vary = type(environment).__name__, dict(vary or {})
    _refuse_drawn_tasks(name, params)
    _check_ranges(name, params, vary)
    # Out of reach of whatever reads it: the time limit is the rollout's.
    params = params.replace(max_steps_in_episode=horizon + 1)
    complete = _COMPLETE.get(name, _unchanged)

    def with_values(values: Mapping[str, Any]) -> Task:
        return strong_types(complete(params.replace(**values), vary))

    def sample(key: Key) -> Task:
        keys = jax.random.split(key, max(len(vary), 1))
        ranges = zip(vary.items(), keys, strict=False)
        return with_values(
            {n: jax.random.uniform(k, minval=low, maxval=high) for (n, (low, high)), k in ranges}
        )

    ends = [with_values({n: ends[i] for n, ends in vary.items()}) for i in (0, 1)]
    actions = _widest([actions_of(environment.action_space(task)) for task in ends])
    shape = () if not isinstance(actions, Continuous) else environment.action_space(params).shape
    like = _types(environment, ends[0], actions, shape)

    def reset(key: Key, task: Task) -> tuple[Tree, Tree]:
        observation, state = environment.reset_env(key, task)
        return _cast(state, like[0]), _cast(observation, like[1])

    def step(key: Key, task: Task, state: Tree, action: Array) -> Step:
        action = action.reshape(shape) if isinstance(actions, Continuous) else action
        observation, state, reward, terminated, _ = environment.step_env(key, state, action, task)
        reward = jnp.asarray(reward, jnp.result_type(float)).reshape(())
        terminated = jnp.asarray(terminated, bool).reshape(())
        return Step(_cast(state, like[0]), _cast(observation, like[1]), reward, terminated)

    return Env(sample, reset, step, actions, horizon)


def cartpole(*, vary: Ranges | None = None, horizon: int = 200) -> Env:
    """Makes CartPole: balance a pole on a cart; a reward of one for each step until it falls.

    Args:
      vary: Ranges of `length` (half the pole's, meters), `masspole`, `masscart` (kilograms), `force_mag`
        (newtons), `gravity` or other fields, such as `CARTPOLE_PHYSICS`; None varies nothing.
      horizon: Largest number of steps: 200 as in CartPole-v0, 500 in v1.

    Returns:
      An environment with two actions and observations [4].

    Raises:
      ImportError: If gymnax is not installed.

    Example:
      >>> env = metajax.rl.envs.classic.cartpole()
      >>> env.actions, env.horizon
      (Discrete(n=2), 200)

    Reference: Barto, Sutton and Anderson, 1983 (https://doi.org/10.1109/TSMC.1983.6313077).
    """
    return from_gymnax("CartPole-v1", vary=vary, horizon=horizon)


def mountain_car(*, vary: Ranges | None = None, horizon: int = 200) -> Env:
    """Makes MountainCar: swing a weak car up a hill; a reward of -1 for each step until the goal.

    Args:
      vary: Ranges of `force`, `gravity`, `goal_position` or other fields, such as `MOUNTAIN_CAR_PHYSICS`;
        None varies nothing.
      horizon: Largest number of steps, 200 as in MountainCar-v0.

    Returns:
      An environment with three actions and observations [2].

    Raises:
      ImportError: If gymnax is not installed.

    Example:
      >>> env = metajax.rl.envs.classic.mountain_car()
      >>> env.actions, env.horizon
      (Discrete(n=3), 200)

    Reference: Moore, 1990 (https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.pdf).
    """
    return from_gymnax("MountainCar-v0", vary=vary, horizon=horizon)


def acrobot(*, vary: Ranges | None = None, horizon: int = 200) -> Env:
    """Makes Acrobot: swing a two-link arm above a line; a reward of -1 for each step, and 0 for the last.

    The line stands one unit above the pivot for links of unit length, whatever the lengths of the task.

    Args:
      vary: Ranges of `link_length_1`, `link_length_2`, `link_mass_1`, `link_mass_2`, `link_moi` or other
        fields, such as `ACROBOT_PHYSICS`; None varies nothing. Centers of mass lie half way along the links
        unless they are varied themselves; the moments of inertia stay.
      horizon: Largest number of steps: 200 as in Acrobot-v0, 500 in v1.

    Returns:
      An environment with three actions and observations [6].

    Raises:
      ImportError: If gymnax is not installed.

    Example:
      >>> env = metajax.rl.envs.classic.acrobot()
      >>> env.actions, env.horizon
      (Discrete(n=3), 200)

    Reference: Sutton, 1996
      (https://proceedings.neurips.cc/paper/1995/hash/8f1d43620bc6bb580df6e80b0dc05c48-Abstract.html).
    """
    return from_gymnax("Acrobot-v1", vary=vary, horizon=horizon)


def pendulum(*, vary: Ranges | None = None, horizon: int = 200) -> Env:
    """Makes Pendulum: swing it up and hold it; rewards are minus the cost of angle, speed and torque.

    Args:
      vary: Ranges of `g`, `m`, `l`, `max_torque` or other fields, such as `PENDULUM_PHYSICS`; None varies
        nothing.
      horizon: Largest number of steps, 200 as in Pendulum-v1.

    Returns:
      An environment with one continuous action, the torque, and observations [3].

    Raises:
      ImportError: If gymnax is not installed.

    Example:
      >>> env = metajax.rl.envs.classic.pendulum()
      >>> env.actions, env.horizon
      (Continuous(size=1, low=-2.0, high=2.0), 200)

    Reference: gymnasium's Pendulum-v1 (https://gymnasium.farama.org/environments/classic_control/pendulum/).
    """
    return from_gymnax("Pendulum-v1", vary=vary, horizon=horizon)


def _unchanged(params: Any, varied: Ranges) -> Any:
    """Returns the parameters."""
    del varied
    return params


def _complete_cartpole(params: Any, varied: Ranges) -> Any:
    """Computes the fields of CartPole that follow from others."""
    del varied
    return params.replace(
        total_mass=params.masscart + params.masspole,
        polemass_length=params.masspole * params.length,
    )


def _complete_acrobot(params: Any, varied: Ranges) -> Any:
    """Puts the centers of mass of varied links half way along them."""
    halves = {
        f"link_com_pos_{link}": getattr(params, f"link_length_{link}") / 2
        for link in (1, 2)
        if f"link_length_{link}" in varied and f"link_com_pos_{link}" not in varied
    }
    return params.replace(**halves)


_COMPLETE: dict[str, Callable[[Any, Ranges], Any]] = {
    "CartPole": _complete_cartpole,
    "Acrobot": _complete_acrobot,
}
_COMPUTED = {"CartPole": ("total_mass", "polemass_length")}


def _refuse_drawn_tasks(name: str, params: Any) -> None:
    """Raises an error where two episodes would be two tasks."""
    if name in DRAW_THEIR_TASK:
        raise ValueError(
            f"{name} draws {DRAW_THEIR_TASK[name]} in reset_env, so that two episodes are two tasks; "
            "write an Env whose `sample` draws it."
        )
    option = DRAW_IF_ASKED.get(name)
    if option is not None and bool(getattr(params, option)):
        raise ValueError(
            f"{name} with {option}=True draws its task in reset_env; use params with {option}=False."
        )


def _check_ranges(name: str, params: Any, vary: Ranges) -> None:
    """Raises an error for ranges that cannot be drawn from."""
    computed = {*_COMPUTED.get(name, ()), "max_steps_in_episode"}
    known = [field for field in vars(params) if field not in computed]
    for field, (low, high) in vary.items():
        if field not in known:
            raise ValueError(f"{name} cannot vary {field!r}; use one of {', '.join(known)}.")
        if np.ndim(getattr(params, field)) or not np.issubdtype(
            np.result_type(getattr(params, field)), np.floating
        ):
            raise ValueError(f"{field} of {name} is no real number; vary another field.")
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ValueError(f"The range of {field} is {low} to {high}; use finite low <= high.")


def _widest(found: list[Actions]) -> Actions:
    """Returns bounds that hold the actions of all tasks."""
    first, second = found
    if isinstance(first, Continuous) and isinstance(second, Continuous):
        return Continuous(first.size, min(first.low, second.low), max(first.high, second.high))
    return first


def _types(environment: Any, task: Task, actions: Actions, shape: tuple) -> tuple[Tree, Tree]:
    """Returns the shapes and types of states and observations, which `scan` needs equal in every step."""
    kind = jnp.result_type(float) if isinstance(actions, Continuous) else jnp.int32

    def first_step(key: Key) -> tuple[Any, Any]:
        observation, state = environment.reset_env(key, task)
        action = jnp.zeros(shape, kind)
        after = environment.step_env(key, state, action, task)
        return (state, observation), (after[1], after[0])

    before, after = jax.eval_shape(first_step, jax.random.key(0))
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if old.shape != new.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{type(environment).__name__}: {where} has shape {old.shape} at reset and {new.shape} "
                "after a step; they must be equal."
            )
    return after


def _cast(tree: Tree, like: Tree) -> Tree:
    """Gives leaves the types of others: Python numbers and weak types become arrays."""
    return jax.tree.map(lambda leaf, other: jnp.asarray(leaf, other.dtype), tree, like)
