"""Environments as a run's options name them, and samplers of their tasks."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metajax import rl
from metajax.types import Key
from metajax.zoo.environments import listed_tasks, make_environment

from ..flags.settings import UsageError

SPLITS = ("train", "valid", "test")


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


def environment(name: str, options: Mapping[str, Any]) -> rl.Env:
    """Makes an environment.

    Args:
      name: Value of `--env`.
      options: Values of its own options.

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
        # Its types alone: running episodes would take longer than a small training, and compile a robot for
        # minutes.
        rl.check_env(env, jax.random.key(0), walk=False)
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
    """
    samplers: dict[str, Any] = dict.fromkeys(SPLITS, TaskSampler(env))
    data: dict[str, Any] = dict.fromkeys(SPLITS)
    listed = listed_tasks(name, options, tests)
    if listed is not None:
        samplers["test"], data["test"] = ListedTasks(), listed
    return samplers, data


def in_words(name: str, options: Mapping[str, Any], env: rl.Env) -> str:
    """Describes an environment, its own options and its actions."""
    given = f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else ""
    kind = env.actions
    actions = (
        f"{kind.n} choices" if isinstance(kind, rl.Discrete) else f"vectors of {kind.size} numbers"
    )
    return f"{name}{given}, {env.horizon} steps at most, {actions}"
