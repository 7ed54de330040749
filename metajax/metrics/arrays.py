"""Logits and weights of a task in the form that metrics compute with."""

import chex
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch


def logits_of(outputs: Array) -> Array:
    """Converts outputs to logits of all classes.

    Args:
      outputs: Float logits [B, N]; or the logit of class 1 of two, [B] or [B, 1].

    Returns:
      Logits [B, N] in float32 at least; a single logit becomes [0, logit].

    Raises:
      ValueError: If outputs have another shape.
    """
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs have shape {outputs.shape}; use logits [B], [B, 1] or [B, N].")
    outputs = outputs.astype(trees.float_dtype(outputs))
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        column = outputs.reshape(-1, 1)
        return jnp.concatenate([jnp.zeros_like(column), column], axis=1)
    return outputs


def weights_of(batch: Batch, examples: int, dtype: jnp.dtype) -> Array:
    """Returns the weights [B] of a batch, ones if it has none.

    Args:
      batch: Examples of one task.
      examples: Number of examples B.
      dtype: Type of the result.
    """
    if batch.weights is None:
        return jnp.ones(examples, dtype)
    chex.assert_shape(batch.weights, (examples,))
    return batch.weights.astype(dtype)
