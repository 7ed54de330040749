"""Losses and metrics of one task: functions of its outputs and its batch, averaged over examples."""

import chex
import jax.numpy as jnp
import optax

from metajax.types import Array, Batch


def weighted_mean(values: Array, weights: Array | None) -> Array:
    """Averages values [B] by weights [B]; None weighs all alike. All-zero weights yield NaN."""
    values = _exact(values)
    if weights is None:
        return jnp.mean(values)
    chex.assert_equal_shape([values, weights])
    weights = weights.astype(values.dtype)
    return jnp.sum(values * weights) / jnp.sum(weights)


def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Softmax cross-entropy in nats, the mean over examples.

    Args:
      outputs: [B, N] logits.
      batch: `targets` [B] int in [0, N).

    Returns:
      A scalar. It is a mean where the original MAML code sums over the N K examples and divides by K: a step
      size quoted from there is N times larger here.
    """
    chex.assert_rank([outputs, batch.targets], [2, 1])
    losses = optax.softmax_cross_entropy_with_integer_labels(_exact(outputs), batch.targets)
    return weighted_mean(losses, batch.weights)


def squared_error(outputs: Array, batch: Batch) -> Array:
    """Squared error, the mean over examples and output dimensions; outputs and targets are [B, D]."""
    chex.assert_equal_shape([outputs, batch.targets])
    errors = jnp.mean(
        jnp.square(_exact(outputs) - batch.targets), axis=tuple(range(1, outputs.ndim))
    )
    return weighted_mean(errors, batch.weights)


def accuracy(outputs: Array, batch: Batch) -> Array:
    """Fraction of examples in [0, 1] whose largest logit is the label.

    Ties go to the lowest class. An example with a NaN among its logits is wrong whatever its label: argmax
    alone would call it right as often as NaN stands at the label.
    """
    chex.assert_rank([outputs, batch.targets], [2, 1])
    hits = (jnp.argmax(outputs, axis=-1) == batch.targets) & ~jnp.isnan(outputs).any(axis=-1)
    return weighted_mean(hits.astype(outputs.dtype), batch.weights)


def _exact(values: Array) -> Array:
    """Values in float32 at least: a mean of bfloat16 has three digits, and sums of ones end at 256."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
