"""Environments by name, with their options and defaults: the choices of `--env`."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax.rl.types import Env
from metajax.zoo.options import Option, complete, nearest, option


class Environment(NamedTuple):
    """An environment by name.

    Attributes:
      module: Module that has the function, loaded when it is first needed: some need optional packages.
      function: Name of the function that makes the environment; its arguments are the options.
      options: Options that only some environments have, declared with default, help and limits.
      expert: Name of the function `(env) -> (task, observation) -> action` in that module that knows the
        task; None without any. Its return is the oracle's.
      defaults: Settings by flag under which the environment's name alone learns well; they replace the
        driver's defaults.
    """

    module: str
    function: str
    options: Mapping[str, Option] = MappingProxyType({})
    expert: str | None = None
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
