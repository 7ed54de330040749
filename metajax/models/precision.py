"""Networks that compute in another precision than that of their parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Model, Params, Tree


def in_precision(model: Model, dtype: Any) -> Model:
    """Computes a network in `dtype`; its parameters keep their precision.

    Parameters are cast in each call, so gradients come back in the parameters' own precision, and inner and
    outer updates are as fine as that: in bfloat16, a step of less than 1/256 of a parameter would round to
    nothing.

    Args:
      model: Network of float32 parameters.
      dtype: Floating dtype that floating parameters and inputs are cast to, such as `jnp.bfloat16`. Integers
        stay.

    Returns:
      A model with the same `init`, whose `apply` returns float32, the precision of the loss.

    Raises:
      ValueError: If `dtype` is not a floating one.

    Example:
      >>> from metajax.toys import toy_model
      >>> model = in_precision(toy_model(3), jnp.bfloat16)
      >>> params = model.init(jax.random.key(0), jnp.ones((5, 2)))
      >>> params["body"].dtype.name, model.apply(params, jnp.ones((5, 2))).dtype.name
      ('float32', 'float32')
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; use a floating one, such as bfloat16.")

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def apply(params: Params, inputs: Tree) -> Tree:
        outputs = model.apply(jax.tree.map(cast, params), jax.tree.map(cast, inputs))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)

    return model._replace(apply=apply)
