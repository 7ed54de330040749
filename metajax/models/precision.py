"""The precision that a network computes in, apart from that of its parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Model, Params


def in_precision(model: Model, dtype: Any) -> Model:
    """Computes in `dtype`, on parameters that stay as they are.

    Parameters are cast anew in each call, so gradients come back in the parameters' own precision, and inner
    and outer updates are as fine as that: in bfloat16 itself, a step of less than 1/256 of a parameter would
    round to nothing.

    Args:
      model: its parameters and outputs are float32.
      dtype: what floating parameters and inputs are cast to, such as `jnp.bfloat16`. Integers stay.

    Returns:
      A model with the same `init`, whose `apply` returns float32, for the loss to be computed in.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; use a floating one, such as bfloat16.")

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def apply(params: Params, inputs: Array) -> Array:
        outputs = model.apply(jax.tree.map(cast, params), cast(inputs))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)

    return model._replace(apply=apply)
