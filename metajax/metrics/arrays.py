"""Outputs and weights of a task as metrics read them."""

import chex
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch


def logits_of(outputs: Array) -> Array:
    """Logits [B, N] in float32 at least; those [B] or [B, 1] of class 1 get zeros of class 0 beside them."""
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs are of shape {outputs.shape}; use logits [B], [B, 1] or [B, N].")
    outputs = outputs.astype(trees.float_dtype(outputs))
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        column = outputs.reshape(-1, 1)
        return jnp.concatenate([jnp.zeros_like(column), column], axis=1)
    return outputs


def weights_of(batch: Batch, examples: int, dtype: jnp.dtype) -> Array:
    """Weights [B] of a batch, ones where it has none."""
    if batch.weights is None:
        return jnp.ones(examples, dtype)
    chex.assert_shape(batch.weights, (examples,))
    return batch.weights.astype(dtype)
