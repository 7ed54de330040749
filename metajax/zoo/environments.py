"""Environments by name, with their options and defaults: the choices of `--env`."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.rl import solve
from metajax.rl.envs.arm import tip
from metajax.rl.types import Env
from metajax.types import Array
from metajax.zoo.options import Option, complete, nearest, option


class Environment(NamedTuple):
    """An environment by name.

    Attributes:
      module: Module that has the function, loaded when it is first needed: some need optional packages.
      function: Name of the function that makes the environment; its arguments are the options.
      options: Options that only some environments have, declared with default, help and limits.
      tasks: Function `(module, options, number) -> tasks [number, ...]`, a list that covers the distribution
        evenly, for tests; None where tasks are drawn.
      expert: Function `(env, options) -> expert`, where the expert is a function `(task, observation) ->
        action` that knows the task; None without any. Its return is the oracle's.
      value: Function `(env, options) -> value`, where value is a function `task -> return`: the largest
        expected return of an episode, exactly; None where it is not known.
      body: Function `(task, observation) -> points [P, 2]` on a plane, of which the last is what moves to the
        goal; None where there is nothing to draw.
      goal: Function `task -> place [2]` of the goal on that plane.
      skeleton: Function `() -> draw`, where draw is `state -> points [P, 2]` on a plane, a polyline
        with NaN between its pieces, for what observations alone do not show.
      caption: Function `task -> words` that name a goal which is no place.
      places: Names of leaves of the state that `reset` may draw though steps seldom change them, such as the
        places of objects.
      quick: Whether a step compiles in seconds, so that a run may first try the environment.
      defaults: Settings by flag under which the environment's name alone learns well; they replace the
        driver's defaults.
    """

    module: str
    function: str
    options: Mapping[str, Option] = MappingProxyType({})
    tasks: Callable[[Any, Mapping[str, Any], int], Any] | None = None
    expert: Callable[[Env, Mapping[str, Any]], Callable[[Any, Any], Any]] | None = None
    value: Callable[[Env, Mapping[str, Any]], Callable[[Any], Array]] | None = None
    body: Callable[[Any, Any], Array] | None = None
    goal: Callable[[Any], Array] | None = None
    skeleton: Callable[[], Callable[[Any], Array]] | None = None
    caption: Callable[[Any], str] | None = None
    places: tuple[str, ...] = ()
    quick: bool = True
    defaults: Mapping[str, Any] = MappingProxyType({})


_ENVS = "metajax.rl.envs"
_HORIZON = {"horizon": option(int, None, "Largest number of steps of an episode.", least=1)}


def _classic(function: str) -> Environment:
    """Makes the entry of a classic control problem of gymnax."""
    vary = option(bool, False, "Draws the physics of each task; else all tasks are the same.")
    return Environment(f"{_ENVS}.classic", function, options={"vary": vary, **_HORIZON})


def _robot(
    function: str,
    tasks: Callable[[Any, Mapping[str, Any], int], Any],
    *,
    name: str,
    axes: tuple[int, int],
    caption: Callable[[Any], str],
    options: Mapping[str, Option] = MappingProxyType({}),
) -> Environment:
    """Makes the entry of a robot of brax, which is drawn on the plane of two of its coordinates."""

    def skeleton() -> Callable[[Any], Array]:
        return importlib.import_module(f"{_ENVS}.skeletons").skeleton(name, axes=axes)

    return Environment(
        f"{_ENVS}.locomotion",
        function,
        options={**options, **_HORIZON},
        tasks=tasks,
        skeleton=skeleton,
        caption=caption,
        quick=False,
    )


def _direction(task: Any) -> str:
    """Names the direction, along an axis or on the plane, that a robot's task asks for."""
    if np.ndim(task.goal):
        return f"towards {np.degrees(np.arctan2(task.goal[1], task.goal[0])) % 360:.0f} degrees"
    return "forward" if task.goal > 0 else "backward"


def _speed(task: Any) -> str:
    """Names the speed that a robot's task asks for."""
    return f"at {task.goal:.2f} m/s"


def _point(task: Array, observation: Array) -> Array:
    """Draws a point on the plane."""
    del task
    return observation[None]


def _links(task: Any, observation: Array) -> Array:
    """Draws the shoulder, the elbow and the tip of an arm."""
    cosines, sines = observation[:2], observation[2:4]
    joints = jnp.arctan2(sines, cosines)
    first = jnp.stack([jnp.cos(joints[0]), jnp.sin(joints[0])])
    return jnp.stack([jnp.zeros(2), task.lengths[0] * first, tip(task.lengths, joints)])


def _best_arm(env: Env, options: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """Makes the expert that pulls the arm that pays most."""
    del env, options
    return lambda task, observation: jnp.argmax(task)


def _planned(env: Env, options: Mapping[str, Any]) -> Callable[[Any], Array]:
    """Makes the value of the best policy that knows the tables, from the first state."""
    del options
    return lambda task: solve.plan(*task, horizon=env.horizon).value[0, 0]


def _straight(env: Env, options: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """Makes the expert that walks straight to the goal."""
    del env, options
    return lambda task, observation: solve.straight_to(task)(observation).mode()


def _posture(env: Env, options: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """Makes the expert that turns the joints of its arm towards the posture that reaches the target."""
    del env, options
    return lambda task, observation: solve.reach(task)(observation[None]).mode()[0]


# The cheetah is seen from the side, the ant from above.
_CHEETAH = {"name": "halfcheetah", "axes": (0, 2)}
_ANT = {"name": "ant", "axes": (0, 1)}
ENVIRONMENTS: dict[str, Environment] = {
    "bandit": Environment(
        _ENVS,
        "bandit",
        options={
            "arms": option(int, 5, "Arms of the bandit.", least=1),
            "pulls": option(int, 10, "Pulls of an episode.", least=1),
        },
        expert=_best_arm,
        value=lambda env, options: lambda task: env.horizon * jnp.max(task),
    ),
    "mdp": Environment(
        _ENVS,
        "tabular_mdp",
        options={
            "states": option(int, 10, "States of the Markov decision process.", least=1),
            "choices": option(int, 5, "Choices in each state.", least=1),
            **_HORIZON,
        },
        value=_planned,
    ),
    "navigation": Environment(
        _ENVS,
        "navigation",
        options={
            "reward": option(
                str,
                "dense",
                "Reward: dense is minus the distance to the goal, sparse is paid near it only.",
                choices=("dense", "sparse"),
            ),
            **_HORIZON,
        },
        tasks=lambda envs, options, number: envs.navigation_tasks(number, reward=options["reward"]),
        expert=_straight,
        body=_point,
        goal=lambda task: task,
    ),
    "corners": Environment(
        _ENVS,
        "four_corners",
        options=_HORIZON,
        tasks=lambda envs, options, number: envs.corner_tasks(number),
        body=_point,
        goal=lambda task: task,
    ),
    "reacher": Environment(
        _ENVS,
        "reacher",
        options=_HORIZON,
        expert=_posture,
        body=_links,
        goal=lambda task: task.target,
    ),
    "cartpole": _classic("cartpole"),
    "mountain_car": _classic("mountain_car"),
    "acrobot": _classic("acrobot"),
    "pendulum": _classic("pendulum"),
    "grid": Environment(
        f"{_ENVS}.grids",
        "drawn_grids",
        options={
            "objects": option(
                int, 3, "Objects on the grid, one of them the right one.", least=2, most=20
            ),
            "produce": option(bool, False, "The right object must be made out of two others."),
            "size": option(int, 9, "Height and width of the grid, walls included.", least=5),
            "rooms": option(int, 1, "Rooms of the grid: 1, 2, 4, 6 or 9.", least=1, most=9),
            "view": option(int, 5, "Side of the square that the agent sees, odd.", least=3),
            **_HORIZON,
        },
        places=("state.state.grid",),
    ),
    "cheetah_direction": _robot(
        "cheetah_direction",
        lambda brax, options, number: brax.direction_tasks(number),
        **_CHEETAH,
        caption=_direction,
    ),
    "cheetah_velocity": _robot(
        "cheetah_velocity",
        lambda brax, options, number: brax.speed_tasks(number, low=0, high=2),
        **_CHEETAH,
        caption=_speed,
    ),
    "ant_direction": _robot(
        "ant_direction",
        lambda brax, options, number: brax.direction_tasks(number, plane=options["plane"]),
        **_ANT,
        caption=_direction,
        options={"plane": option(bool, False, "Draws any direction; else forward or backward.")},
    ),
    "ant_velocity": _robot(
        "ant_velocity",
        lambda brax, options, number: brax.speed_tasks(number, low=0, high=3),
        **_ANT,
        caption=_speed,
    ),
}


def make_environment(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Env:
    """Makes the environment registered as `name`.

    Args:
      name: A key of `ENVIRONMENTS`.
      options: Values of its options; defaults fill in the rest.

    Returns:
      The environment.

    Raises:
      ValueError: If the name is unknown, or the environment has no such option.
      ImportError: If it needs a package that is missing.

    Example:
      >>> make_environment("bandit", {"arms": 3}).actions.n
      3
    """
    entry = find_environment(name)
    module = importlib.import_module(entry.module)
    chosen = complete(name, options, entry.options)
    # What is not given is the function's own choice.
    chosen = {option: value for option, value in chosen.items() if value is not None}
    if "vary" in chosen:
        physics = getattr(module, f"{name.upper()}_PHYSICS")
        chosen["vary"] = physics if chosen["vary"] else None
    return getattr(module, entry.function)(**chosen)


def find_environment(name: str) -> Environment:
    """Finds the entry of an environment.

    Args:
      name: A key of `ENVIRONMENTS`.

    Returns:
      The entry.

    Raises:
      ValueError: If the name is unknown.

    Example:
      >>> find_environment("bandit").function
      'bandit'
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"environment {name!r} is unknown; {nearest(name, list(ENVIRONMENTS))}")
    return ENVIRONMENTS[name]


def listed_tasks(name: str, options: Mapping[str, Any], number: int) -> Any:
    """Lists test tasks of an environment that cover its distribution evenly.

    Args:
      name: A key of `ENVIRONMENTS`.
      options: Values of its options.
      number: Number of tasks.

    Returns:
      Tasks [number, ...]; None for environments whose test tasks are drawn.

    Example:
      >>> listed_tasks("bandit", {}, 10) is None
      True
    """
    entry = find_environment(name)
    if entry.tasks is None:
        return None
    module = importlib.import_module(entry.module)
    return entry.tasks(module, complete(name, options, entry.options), number)


def value_in(name: str, env: Env, options: Mapping[str, Any]) -> Callable[[Any], Array] | None:
    """Finds the largest expected return of an episode for who knows the task.

    Args:
      name: A key of `ENVIRONMENTS`.
      env: The environment.
      options: Values of its options.

    Returns:
      Function `task -> return`; None for environments where it is not known.

    Example:
      >>> env = make_environment("bandit")
      >>> value = value_in("bandit", env, {})
      >>> round(float(value(jnp.array([0.1, 0.9, 0.3]))), 3)  # ten pulls of the best arm
      9.0
    """
    value = find_environment(name).value
    return None if value is None else value(env, options)


def expert_of(name: str, env: Env, options: Mapping[str, Any]) -> Callable[[Any, Any], Any] | None:
    """Finds a policy that knows the task.

    Args:
      name: A key of `ENVIRONMENTS`.
      env: The environment.
      options: Values of its options.

    Returns:
      Function `(task, observation) -> action`; None for environments without one.

    Example:
      >>> env = make_environment("bandit")
      >>> expert = expert_of("bandit", env, {})
      >>> int(expert(jnp.array([0.1, 0.9, 0.3]), jnp.zeros(1)))
      1
    """
    expert = find_environment(name).expert
    return None if expert is None else expert(env, options)
