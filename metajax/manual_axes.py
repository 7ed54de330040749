"""Mesh axes that arrays vary over within `jax.shard_map`: JAX asks operands to agree on them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Tree = Any


def vary_alike(*operands: Array) -> list[Array]:
    """Lets all operands vary over the mesh axes of any, as JAX's own primitives ask within `shard_map`.

    Args:
      *operands: Arrays.

    Returns:
      The arrays, of unchanged values; outside of `shard_map`, the operands themselves.
    """
    axes = frozenset().union(*map(_axes_of, operands))
    return [_vary(operand, axes - _axes_of(operand)) for operand in operands]


def zeros_alike(like: Tree) -> Tree:
    """Makes zeros that vary over the mesh axes of a scan's results, as its initial carry has to.

    Args:
      like: Tree of results, as `jax.eval_shape` returns it.

    Returns:
      A tree of zeros of the same shapes and dtypes.
    """
    return jax.tree.map(lambda leaf: _vary(jnp.zeros(leaf.shape, leaf.dtype), _axes_of(leaf)), like)


def _axes_of(operand: Array) -> frozenset:
    """Finds the mesh axes over which an operand varies within `shard_map`."""
    aval = jax.typeof(operand)
    kind = getattr(aval, "manual_axis_type", None)
    return aval.vma if kind is None else kind.varying  # jax 0.10 renamed the attribute


def _vary(operand: Array, axes: frozenset) -> Array:
    """Lets an operand vary over more mesh axes."""
    return lax.pcast(operand, tuple(axes), to="varying") if axes else operand
