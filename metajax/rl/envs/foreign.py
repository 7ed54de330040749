"""What adapters of other packages' environments share."""

import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.types import Actions, Continuous, Discrete
from metajax.types import Array, Tree


def installed(name: str, extra: str = "rl") -> ModuleType:
    """Imports an optional package.

    Args:
      name: Name of the module.
      extra: Extra of metajax that installs it, for the error message.

    Returns:
      The module.

    Raises:
      ImportError: If it, or a package that it needs, is not installed; the message names the command.

    Example:
      >>> metajax.rl.envs.foreign.installed("math").__name__
      'math'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = error.name or name
        raise ImportError(
            f"This needs the package {package}; install it with: pip install 'metajax[{extra}]'"
        ) from error


def strong_types(tree: Tree) -> Tree:
    """Converts leaves to arrays of their own type: a scan's carry must not change from weak to strong types.

    Args:
      tree: Tree of arrays, keys or Python numbers.

    Returns:
      Tree of arrays.

    Example:
      >>> metajax.rl.envs.foreign.strong_types(0.5).weak_type
      False
    """

    def settle(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(leaf))

    return jax.tree.map(settle, tree)


def actions_of(space: Any) -> Actions:
    """Translates a space of actions of gymnasium or gymnax.

    Args:
      space: Object with `n`, or with `shape`, `low` and `high`.

    Returns:
      `Discrete` or `Continuous`.

    Raises:
      ValueError: If the bounds differ between components, or the space is neither discrete nor a box.

    Example:
      >>> import types
      >>> metajax.rl.envs.foreign.actions_of(types.SimpleNamespace(n=3))
      Discrete(n=3)
    """
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if not all(hasattr(space, name) for name in ("shape", "low", "high")):
        kind = type(space).__name__
        raise ValueError(
            f"Actions are a {kind}; use a Discrete or a Box, or flatten them by a wrapper."
        )
    low, high = np.unique(np.asarray(space.low)), np.unique(np.asarray(space.high))
    if len(low) > 1 or len(high) > 1:
        raise ValueError(
            f"Bounds of actions differ: {low.tolist()} to {high.tolist()}; use gymnasium's RescaleAction."
        )
    return Continuous(int(np.prod(space.shape)), float(low[0]), float(high[0]))
