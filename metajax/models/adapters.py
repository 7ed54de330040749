"""Turns a network of any framework into a `Model`: a pure, stateless pair of init and apply.

What is learned must be all that a network holds. Running statistics, caches and generators of
random numbers change from call to call, which two pure functions cannot express and which would
make a task depend on the tasks before it; modules that hold any are refused. Dropout is run in its
deterministic mode or left out.

The frameworks are imported only by the function that adapts them.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Key, Model, Params


def from_functions(
    init: Callable[[Key, Array], Params], apply: Callable[[Params, Array], Array]
) -> Model:
    """Adapts two plain functions, for example `hk.without_apply_rng(hk.transform(f))`'s.

    Args:
      init: (key, inputs [B, ...]) -> params, any pytree of floating-point arrays.
      apply: (params, inputs [B, ...]) -> outputs [B, ...].
    """
    for name, function in (("init", init), ("apply", apply)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {function!r}.")
    return Model(init, apply)


def from_flax(module: Any, *, noise: Key | None = None, **call_options: Any) -> Model:
    """Adapts a Flax Linen module; params are its 'params' collection.

    Args:
      module: a `flax.linen.Module` that maps inputs [B, ...] to outputs.
      noise: what `apply` draws from in layers such as `dropblock.DropBlock`, the same in each call: see
        `metajax.noisy`. None, and they let everything pass.
      **call_options: passed on to `module.init` and `module.apply`, such as `deterministic=True`.

    Raises:
      ImportError: if Flax is not installed.
      TypeError: if the module is of another kind.
      ValueError: (from `init`) if the module creates a collection besides 'params', such as the
        'batch_stats' of `linen.BatchNorm`.
    """
    linen = require("flax.linen", extra="flax")
    if not isinstance(module, linen.Module):
        raise TypeError(
            "from_flax takes an instance of flax.linen.Module, not of "
            f"{type(module).__name__}; use from_nnx, from_equinox or from_functions for others."
        )

    def init(key: Key, inputs: Array) -> Params:
        variables = module.init(key, inputs, **call_options)
        others = [name for name in variables if name != "params"]
        _refuse_state(module, [f"the collection {name!r}" for name in others])
        return variables.get("params", {})

    def apply(params: Params, inputs: Array) -> Array:
        return module.apply({"params": params}, inputs, rngs=_streams(noise), **call_options)

    return Model(init, apply)


def with_pull(module: Any, *, noise: Key | None = None) -> Model:
    """Adapts a Flax Linen module that trains: `apply` returns (outputs, pull).

    The pull is a scalar, the sum of what layers sow into the collection `layers.PULL`: half the squared
    distance of their running averages from the batch's statistics. It is zero where there are no such layers.
    `noise` is as of `from_flax`.
    """
    from metajax.models.layers import PULL

    def apply(params: Params, inputs: Array) -> tuple[Array, Array]:
        outputs, sown = module.apply(
            {"params": params}, inputs, mutable=[PULL], rngs=_streams(noise)
        )
        return outputs, sum(jax.tree.leaves(sown), jnp.zeros((), jnp.float32))

    return Model(from_flax(module).init, apply)


def _streams(noise: Key | None) -> dict[str, Key] | None:
    """Flax's streams of random numbers."""
    from metajax.models.dropblock import NOISE

    return None if noise is None else {NOISE: noise}


def from_nnx(make: Callable[[Any], Any]) -> Model:
    """Adapts a Flax NNX module; params are the values of its `nnx.Param`s as nested dictionaries.

    Args:
      make: (nnx.Rngs) -> nnx.Module that maps inputs [B, ...] to outputs. It is traced at once for
        the structure of the module, and run by `init` for its values.

    Raises:
      ImportError: if Flax is not installed.
      ValueError: if the module holds anything besides `nnx.Param`s: the `BatchStat`s of
        `nnx.BatchNorm`, or the `RngState` of `nnx.Dropout` (`nnx.Dropout(rate, deterministic=True)`
        without rngs holds none).
    """
    nnx = require("flax.nnx", extra="flax")

    def split(module: Any) -> tuple[Any, Any]:
        structure, state, rest = nnx.split(module, nnx.Param, ...)
        _refuse_state(module, [_describe(".".join(map(str, k)), v) for k, v in rest.flat_state()])
        return structure, nnx.to_pure_dict(state)

    # The structure is static and immutable, so every call of apply may share it.
    structure, _ = split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        return split(make(nnx.Rngs(key)))[1]

    def apply(params: Params, inputs: Array) -> Array:
        return nnx.merge(structure, params)(inputs)

    return Model(init, apply)


def from_equinox(make: Callable[[Key], Any]) -> Model:
    """Adapts an Equinox module; params are the module with None for all but its float arrays.

    Args:
      make: (key) -> eqx.Module that maps one example [...] to its output: Equinox's convention, so
        apply vmaps it over B. It is traced at once for the structure of the module, and run by
        `init` for its values.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if the module holds arrays that are not floating-point, or an `eqx.nn.StateIndex`
        as `eqx.nn.BatchNorm` does.
    """
    eqx = require("equinox", extra="equinox")

    def is_param(leaf: Any) -> bool:
        return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)

    def is_state(leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.StateIndex) or (_is_array(leaf) and not is_param(leaf))

    module = eqx.filter_eval_shape(make, jax.random.key(0))
    leaves, _ = jax.tree.flatten_with_path(module, is_leaf=is_state)
    held = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if is_state(leaf)]
    _refuse_state(module, [_describe(path, leaf) for path, leaf in held])
    static = eqx.filter(module, is_param, inverse=True)

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        return eqx.filter(make(key), is_param)

    def apply(params: Params, inputs: Array) -> Array:
        return jax.vmap(eqx.combine(params, static))(inputs)

    return Model(init, apply)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _describe(path: str, leaf: Any) -> str:
    return f"{path} ({leaf.dtype if _is_array(leaf) else type(leaf).__name__})"


def _refuse_state(module: Any, held: Sequence[str]) -> None:
    if held:
        raise ValueError(
            f"{type(module).__name__} holds state besides its parameters: {', '.join(held)}. A "
            "model here is pure and stateless: normalise by the batch at hand or each example, "
            "not by running statistics, and make dropout deterministic, without its own generator."
        )


def require(name: str, *, extra: str) -> ModuleType:
    """Imports an optional package, or raises an ImportError that names the extra to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This needs the package {name}; install it with: pip install 'metajax[{extra}]'"
        ) from error
