"""Adapters from any framework's network to a `Model`: a pure, stateless pair of init and apply.

A network may hold nothing but learned parameters and constants. Running statistics, caches and random-number
generators change from call to call, which two pure functions cannot express and which would make a task
depend on the tasks before it; modules that hold any are refused. Dropout runs in its deterministic mode or is
left out.

Each adapter imports its framework itself, so that the others need not be installed.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import DEFAULT_PARTS, Array, Key, Model, Params, Parts, Tree


def from_functions(
    init: Callable[[Key, Tree], Params],
    apply: Callable[[Params, Tree], Tree],
    *,
    parts: Parts = DEFAULT_PARTS,
) -> Model:
    """Adapts two plain functions, such as the pair of `hk.without_apply_rng(hk.transform(f))`.

    Args:
      init: Function (key, inputs) -> params, any pytree of floating-point arrays; inputs are a tree of arrays
        [B, ...].
      apply: Function (params, inputs) -> outputs, an array [B, ...] or a tree of them.
      parts: Predicates of the head, the norms and the running averages, by the paths of the params, such as
        `Parts(head=metajax.trees.under("layers/1"))`.

    Returns:
      The model.

    Raises:
      TypeError: If `init` or `apply` is not callable.

    Example:
      >>> model = from_functions(lambda key, x: jnp.ones(x.shape[1]), lambda params, x: x @ params)
      >>> model.apply(jnp.ones(2), jnp.ones((5, 2))).shape
      (5,)
    """
    for name, function in (("init", init), ("apply", apply)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {function!r}.")
    return Model(init, apply, parts)


def from_flax(
    module: Any, *, noise: Key | None = None, parts: Parts = DEFAULT_PARTS, **call_options: Any
) -> Model:
    """Adapts a Flax Linen module; params are its 'params' collection.

    Args:
      module: A `flax.linen.Module` that maps inputs [B, ...] to outputs.
      noise: Random key of dropout, the same in each call of `apply`, for layers such as
        `dropblock.DropBlock`; None turns them off. `metajax.learners.with_dropout` gives each task its own.
        `linen.Dropout` draws from it too, unless it is deterministic: use `from_flax(net, noise=noise,
        deterministic=noise is None)` if the module's `__call__` takes `deterministic`.
      parts: Predicates of the head, the norms and the running averages, as in `from_functions`.
      **call_options: Options of `module.init` and `module.apply`, such as `deterministic=True`.

    Returns:
      The model.

    Raises:
      ImportError: If Flax is not installed.
      TypeError: If the module is of another kind.
      ValueError: (from `init`) If the module creates a collection besides 'params', such as the
        'batch_stats' of `linen.BatchNorm`.

    Example:
      >>> model = from_flax(metajax.models.MLP((8,), outputs=3))
      >>> params = model.init(jax.random.key(0), jnp.ones((5, 2)))
      >>> model.apply(params, jnp.ones((5, 2))).shape
      (5, 3)
    """
    linen = require("flax.linen", extra="flax")
    if not isinstance(module, linen.Module):
        raise TypeError(
            "from_flax takes an instance of flax.linen.Module, not of "
            f"{type(module).__name__}; use from_nnx, from_equinox or from_functions for others."
        )

    def init(key: Key, inputs: Tree) -> Params:
        variables = module.init(key, inputs, **call_options)
        others = [name for name in variables if name != "params"]
        _refuse_state(module, [f"the collection {name!r}" for name in others])
        return variables.get("params", {})

    def apply(params: Params, inputs: Tree) -> Tree:
        return module.apply({"params": params}, inputs, rngs=_random_streams(noise), **call_options)

    return Model(init, apply, parts)


# Folded into the dropout key for `linen.Dropout`; small numbers would repeat keys that others fold.
_DROPOUT = 0x64726F70


def with_pull(module: Any, *, noise: Key | None = None) -> Model:
    """Adapts a Flax Linen module for training its running averages: `apply` returns (outputs, pull).

    The pull is a scalar, the sum of the values that layers sow into the collection `layers.PULL`: half the
    squared distance of their running averages from the batch's statistics. It is zero without such layers.

    Args:
      module: A `flax.linen.Module` that maps inputs [B, ...] to outputs.
      noise: Random key of dropout, as in `from_flax`.

    Returns:
      A model whose `apply` returns a pair.
    """
    from metajax.models.layers import PULL

    def apply(params: Params, inputs: Tree) -> tuple[Tree, Array]:
        outputs, sown = module.apply(
            {"params": params}, inputs, mutable=[PULL], rngs=_random_streams(noise)
        )
        return outputs, sum(jax.tree.leaves(sown), jnp.zeros((), jnp.float32))

    return from_flax(module)._replace(apply=apply)


def _random_streams(noise: Key | None) -> dict[str, Key] | None:
    """Makes Flax's streams of random numbers: one for the layers here, and one for `linen.Dropout`."""
    from metajax.models.dropblock import NOISE

    if noise is None:
        return None
    return {NOISE: noise, "dropout": jax.random.fold_in(noise, _DROPOUT)}


def from_nnx(
    make: Callable[[Any], Any],
    *,
    constants: Callable[[str], bool] | None = None,
    parts: Parts = DEFAULT_PARTS,
) -> Model:
    """Adapts a Flax NNX module; params are the values of its `nnx.Param`s as nested dictionaries.

    Plain arrays that the module holds are constants: they keep the values of `make(nnx.Rngs(0))` and never
    adapt.

    Args:
      make: Function (nnx.Rngs) -> nnx.Module that maps inputs [B, ...] to outputs. It runs at once, for the
        structure of the module and its constants, and in `init`, for its values.
      constants: Predicate of the paths of variables that are constants too, such as
        `metajax.trees.under("table")` for a table of positions; `nnx.Param`s may be among them.
      parts: Predicates of the head, the norms and the running averages, as in `from_functions`.

    Returns:
      The model.

    Raises:
      ImportError: If Flax is not installed.
      ValueError: If the module holds variables that are neither parameters nor constants: the `BatchStat`s
        of `nnx.BatchNorm`, or the `RngState` of `nnx.Dropout` (`nnx.Dropout(rate, deterministic=True)`
        without rngs holds none); or if `constants` selects no variable.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
      >>> params = model.init(jax.random.key(0), None)
      >>> model.apply(params, jnp.ones((5, 2))).shape
      (5, 3)
    """
    nnx = require("flax.nnx", extra="flax")

    def is_constant(path: Any) -> bool:
        return constants is not None and constants("/".join(map(str, path)))

    def is_param(path: Any, leaf: Any) -> bool:
        return isinstance(leaf, nnx.Param) and not is_constant(path)

    # Under a trace the module's plain arrays would be tracers; constants need their values.
    with jax.ensure_compile_time_eval():
        module = make(nnx.Rngs(0))
    _check_constants(
        constants, ["/".join(map(str, path)) for path, _ in nnx.state(module).flat_state()]
    )
    # The structure is static and immutable, so every call of apply may share it, and the constants.
    structure, _, fixed = nnx.split(module, is_param, ...)
    state = [
        _describe(".".join(map(str, path)), leaf)
        for path, leaf in fixed.flat_state()
        if isinstance(leaf, nnx.Variable) and not is_constant(path)
    ]
    _refuse_state(module, state, "an array that never changes, make it a plain array")

    def init(key: Key, inputs: Tree) -> Params:
        del inputs
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)), is_param, ...)[1])

    def apply(params: Params, inputs: Tree) -> Tree:
        return nnx.merge(structure, params, fixed)(inputs)

    return Model(init, apply, parts)


def from_equinox(
    make: Callable[[Key], Any],
    *,
    constants: Callable[[str], bool] | None = None,
    parts: Parts = DEFAULT_PARTS,
) -> Model:
    """Adapts an Equinox module; params are the module with None for all but its float JAX arrays.

    NumPy arrays that the module holds are constants, and never adapt.

    Args:
      make: Function (key) -> eqx.Module that maps one example [...] to its output, as is Equinox's
        convention; apply vmaps it over B. It is traced at once, for the structure of the module, and runs in
        `init`, for its values.
      constants: Predicate of the paths of JAX arrays that are constants too, such as
        `metajax.trees.under("table")`; they keep the values of `make(jax.random.key(0))`.
      parts: Predicates of the head, the norms and the running averages, as in `from_functions`.

    Returns:
      The model.

    Raises:
      ImportError: If Equinox is not installed.
      ValueError: If the module holds JAX arrays that are neither floating-point nor constants, or an
        `eqx.nn.StateIndex` as `eqx.nn.BatchNorm` does; or if `constants` selects no array.

    Example:
      >>> import equinox as eqx
      >>> model = from_equinox(lambda key: eqx.nn.Linear(2, 3, key=key))
      >>> params = model.init(jax.random.key(0), None)
      >>> model.apply(params, jnp.ones((5, 2))).shape
      (5, 3)
    """
    eqx = require("equinox", extra="equinox")
    statics = []

    def is_state(leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.StateIndex)

    def is_constant(path: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return constants is not None and constants(name)

    def part(module: Any, *, params: bool) -> Any:
        """Selects the parameters, or the other JAX arrays."""

        def keep(path, leaf):
            is_param = _is_float(leaf) and not is_constant(path)
            return leaf if isinstance(leaf, jax.Array) and is_param == params else None

        return jax.tree_util.tree_map_with_path(keep, module, is_leaf=is_state)

    def split() -> Any:
        """Returns the constants of a module; its static part goes to `statics`."""
        module = make(jax.random.key(0))
        fixed = part(module, params=False)
        leaves, _ = jax.tree.flatten_with_path(module, is_leaf=is_state)
        state = [
            _describe(jax.tree_util.keystr(path), leaf)
            for path, leaf in leaves
            if is_state(leaf)
            or (isinstance(leaf, jax.Array) and not (_is_float(leaf) or is_constant(path)))
        ]
        arrays = [path for path, leaf in leaves if isinstance(leaf, jax.Array)]
        _check_constants(
            constants, [jax.tree_util.keystr(path, simple=True, separator="/") for path in arrays]
        )
        _refuse_state(module, state, "an array that never changes, make it a NumPy array")
        statics.append(eqx.filter(module, lambda leaf: isinstance(leaf, jax.Array), inverse=True))
        return fixed

    fixed = _values_of(split)

    def init(key: Key, inputs: Tree) -> Params:
        del inputs
        return part(make(key), params=True)

    def apply(params: Params, inputs: Tree) -> Tree:
        return jax.vmap(eqx.combine(params, fixed, statics[0]))(inputs)

    return Model(init, apply, parts)


def _values_of(make: Callable[[], Any]) -> Any:
    """Traces a function, and computes the arrays that it makes only if there are any."""
    shapes = jax.eval_shape(make)
    if not jax.tree.leaves(shapes):
        return shapes
    with jax.ensure_compile_time_eval():
        return jax.jit(make)()


def _is_float(leaf: Any) -> bool:
    """Checks whether a leaf is an array of floating-point numbers."""
    return jnp.issubdtype(getattr(leaf, "dtype", jnp.int32), jnp.inexact)


def _describe(path: str, leaf: Any) -> str:
    """Names a leaf by its path and its dtype or type."""
    return f"{path} ({leaf.dtype if isinstance(leaf, jax.Array) else type(leaf).__name__})"


def _check_constants(constants: Callable[[str], bool] | None, arrays: Sequence[str]) -> None:
    """Raises a ValueError if the predicate of constants selects none of the arrays."""
    if constants is not None and not any(map(constants, arrays)):
        name = getattr(constants, "__name__", constants)
        raise ValueError(
            f"constants={name} selects no array; the arrays are {', '.join(arrays)}. Select one of "
            "them, or leave constants out."
        )


def _refuse_state(module: Any, held: Sequence[str], constant: str | None = None) -> None:
    """Raises a ValueError if a module holds state."""
    if held:
        marked = constant and f" If it is {constant} or name it in constants=."
        raise ValueError(
            f"{type(module).__name__} holds state besides its parameters: {', '.join(held)}. A "
            "model here is pure and stateless: normalize by the batch at hand or each example, "
            "not by running statistics, and make dropout deterministic, without its own generator."
            f"{marked or ''}"
        )


def require(name: str, *, extra: str) -> ModuleType:
    """Imports an optional package.

    Args:
      name: Full name of the module.
      extra: Extra of metajax that installs it, for the error message.

    Returns:
      The module.

    Raises:
      ImportError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"This needs the package {name}; install it with: pip install 'metajax[{extra}]'"
        ) from error
