"""Environments as a run's options name them, and samplers of their tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from metajax import rl
from metajax.types import Array, Key
from metajax.zoo.environments import find_environment, listed_tasks, make_environment

from ..flags.settings import UsageError

SPLITS = ("train", "valid", "test")
# Steps of the two episodes of random actions in which an environment is tried before training.
_TRIED_STEPS = 200


class TaskSampler:
    """Draws the tasks of an environment.

    Args:
      env: Environment.
    """

    by_task = None

    def __init__(self, env: rl.Env):
        self._env = env

    def __call__(self, data: Any, key: Key) -> Any:
        """Draws a task; there are no data."""
        del data
        return self._env.sample(key)

    def identify(self, data: Any, key: Key) -> Any:
        """Returns the task itself, for the hash of the test tasks."""
        return self(data, key)


class ListedTasks:
    """Takes the tasks of a list one after another: its data are tasks with a leading axis."""

    by_task = 0

    def __call__(self, data: Any, key: Key) -> Any:
        """Returns the task, which `make_evaluate` has taken from the list."""
        del key
        return data

    identify = __call__


def environment(name: str, options: Mapping[str, Any], *, tried: bool = False) -> rl.Env:
    """Makes an environment, and checks it against the contract of environments.

    Args:
      name: Value of `--env`.
      options: Values of its own options.
      tried: Whether its first steps are run too, unless a step takes minutes to compile, as a robot's;
        else it is checked by its types alone.

    Returns:
      The environment.

    Raises:
      UsageError: If it cannot be made with these options, or breaks the contract of environments.
      ImportError: If it needs a package that is missing.
    """
    try:
        env = make_environment(name, options)
    except ValueError as error:
        raise UsageError(f"--env={name} does not work here: {error}") from error
    try:
        rl.check_env(env, jax.random.key(0), walk=False)
        if tried and (entry := find_environment(name)).quick:
            short = env._replace(horizon=min(env.horizon, _TRIED_STEPS))
            rl.check_env(short, jax.random.key(0), episodes=2, visible=entry.places)
    except ValueError as error:
        raise UsageError(f"--env={name} breaks the contract: {error}") from error
    return env


def example_inputs(env: rl.Env) -> Any:
    """Makes example observations [1, ...] of an environment, to initialize from."""
    task = jax.eval_shape(env.sample, jax.random.key(0))
    _, observation = jax.eval_shape(env.reset, jax.random.key(0), task)
    return jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape), leaf.dtype), observation)


def task_samplers(
    name: str, options: Mapping[str, Any], env: rl.Env, *, tests: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes the samplers of tasks of each split, and their data.

    Args:
      name: Value of `--env`.
      options: Values of its own options.
      env: The environment.
      tests: Number of test tasks.

    Returns:
      Samplers and data by split. Test tasks are a list where the environment has one; all others are drawn.

    Raises:
      UsageError: If there is no list of so many test tasks.
    """
    samplers: dict[str, Any] = dict.fromkeys(SPLITS, TaskSampler(env))
    data: dict[str, Any] = dict.fromkeys(SPLITS)
    try:
        listed = listed_tasks(name, options, tests)
    except ValueError as error:
        raise UsageError(
            f"--eval_episodes={tests} does not go with --env={name}: {error}"
        ) from error
    if listed is not None:
        samplers["test"], data["test"] = ListedTasks(), listed
    return samplers, data


def points_of(name: str) -> Callable[[Any, Any, Any], Array] | None:
    """Finds the function that draws what moves in an environment.

    Args:
      name: Value of `--env`.

    Returns:
      Function of a task, a state and an observation to points [P, 2] on a plane; None where there is nothing
      to draw.
    """
    entry = find_environment(name)
    if entry.skeleton:
        draw = entry.skeleton()
        return lambda task, state, observation: draw(state)
    if body := entry.body:
        return lambda task, state, observation: body(task, observation)
    return None


def in_words(name: str, options: Mapping[str, Any], env: rl.Env) -> str:
    """Describes an environment, its own options and its actions."""
    given = f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else ""
    kind = env.actions
    actions = (
        f"{kind.n} choices" if isinstance(kind, rl.Discrete) else f"vectors of {kind.size} numbers"
    )
    return f"{name}{given}, {env.horizon} steps at most, {actions}"
