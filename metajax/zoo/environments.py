"""Environments by name, with their options and defaults: the choices of `--env`."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from metajax.rl.types import Env
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
      defaults: Settings by flag under which the environment's name alone learns well; they replace the
        driver's defaults.
    """

    module: str
    function: str
    options: Mapping[str, Option] = MappingProxyType({})
    tasks: Callable[[Any, Mapping[str, Any], int], Any] | None = None
    expert: Callable[[Env, Mapping[str, Any]], Callable[[Any, Any], Any]] | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})


_VARY = {
    "vary": option(bool, True, "Varies the physics between tasks; without it all are the same."),
}
_CLASSIC, _LOCOMOTION = "metajax.rl.envs.classic", "metajax.rl.envs.locomotion"
_ENVS = "metajax.rl.envs"

ENVIRONMENTS: dict[str, Environment] = {
    "bandit": Environment(
        _ENVS,
        "bandit",
        options={
            "arms": option(int, 5, "Arms of the bandit.", least=1),
            "pulls": option(int, 10, "Pulls of an episode.", least=1),
        },
        expert=lambda env, options: lambda task, observation: jnp.argmax(task),
    ),
    "mdp": Environment(
        _ENVS,
        "tabular_mdp",
        options={
            "states": option(int, 10, "States of the Markov decision process.", least=1),
            "choices": option(int, 5, "Choices in each state.", least=1),
        },
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
        },
        tasks=lambda envs, options, n: envs.navigation_tasks(n, reward=options["reward"]),
        expert=lambda env, options: lambda task, observation: (task - observation) / 0.1,
    ),
    "corners": Environment(
        _ENVS,
        "four_corners",
        tasks=lambda envs, options, n: envs.corner_tasks(n),
    ),
    "reacher": Environment(_ENVS, "reacher"),
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
    make = getattr(importlib.import_module(entry.module), entry.function)
    return make(**complete(name, options, entry.options))


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
