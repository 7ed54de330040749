"""Over which axes of a mesh an array varies, within `jax.shard_map`: JAX asks operands to agree on it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Tree = Any


def vary_alike(*operands: Array) -> list[Array]:
    """Within `shard_map`, lets all operands vary over the mesh axes of any, as JAX's own primitives ask."""
    axes = frozenset().union(*map(_varying, operands))
    return [_vary(operand, axes - _varying(operand)) for operand in operands]


def zeros_alike(like: Tree) -> Tree:
    """Makes zeros for a scan to start from, that vary over the mesh axes over which its results will.

    Args:
      like: what `jax.eval_shape` says of the results.
    """
    return jax.tree.map(lambda leaf: _vary(jnp.zeros(leaf.shape, leaf.dtype), _varying(leaf)), like)


def _varying(operand: Array) -> frozenset:
    """The mesh axes over which an operand varies, within `shard_map`."""
    aval = jax.typeof(operand)
    kind = getattr(aval, "manual_axis_type", None)
    return aval.vma if kind is None else kind.varying  # the name of this changed in jax 0.10


def _vary(operand: Array, axes: frozenset) -> Array:
    return lax.pcast(operand, tuple(axes), to="varying") if axes else operand
