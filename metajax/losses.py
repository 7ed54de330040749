"""Losses and metrics of one task: functions of its outputs and its batch, averaged over examples.

Labels outside [0, N) are refused where their values are known, which is in eager calls; in a compiled
program they make the loss and its gradients NaN. An example of weight zero is padding, of any label.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import trees
from metajax.types import Array, Batch


def weighted_mean(values: Array, weights: Array | None) -> Array:
    """Averages values [B] by weights [B]; None weighs all alike. All-zero weights yield NaN."""
    values = _exact(values)
    if weights is None:
        return jnp.mean(values)
    chex.assert_equal_shape([values, weights])
    weights = weights.astype(values.dtype)
    return jnp.sum(values * weights) / jnp.sum(weights)


def check_labels(batch: Batch, ways: int, *, examples: int) -> None:
    """Refuses targets that are no labels [B] in [0, N), as far as that is known before a program runs.

    Args:
      batch: Examples of one task.
      ways: Number of classes N.
      examples: Number of examples B.

    Raises:
      ValueError: for targets of another shape or type, for labels whose values are known to be out of range,
        and for as many targets or weights as there are not examples.
    """
    shape, dtype = jnp.shape(batch.targets), jnp.result_type(batch.targets)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"targets are {dtype} of shape {shape}; use integer labels [{examples}] from 0 to {ways - 1}."
        )
    for name, array in (("targets", batch.targets), ("weights", batch.weights)):
        if array is not None and jnp.shape(array) != (examples,):
            raise ValueError(
                f"{name} are of shape {jnp.shape(array)}, of {examples} examples; use shape ({examples},)."
            )
    labels, weights = known_values(batch.targets), known_values(batch.weights)
    if labels is None or (weights is None and batch.weights is not None):
        return
    labels = labels if weights is None else labels[weights != 0]
    if labels.size and (labels.min() < 0 or labels.max() >= ways):
        raise ValueError(
            f"labels are {labels.min()} to {labels.max()}, of {ways} ways; use 0 to {ways - 1}."
        )


def known_values(array: Array | None) -> np.ndarray | None:
    """The values of an array; None in a program that is traced, or if other processes hold a part of it."""
    if array is None or isinstance(array, jax.core.Tracer):
        return None
    return np.asarray(array) if getattr(array, "is_fully_addressable", True) else None


def one_or_nan(batch: Batch, ways: int, dtype: jnp.dtype) -> Array:
    """Returns one, a scalar, or NaN if a label of an example with weight is outside [0, N).

    A loss multiplied by it has NaN gradients too; where `jnp.where` put NaN into a loss they would be zero.
    """
    wrong = batch.targets < 0
    # What the labels' type cannot hold is out of range for none, and could not be compared with them.
    if ways <= jnp.iinfo(batch.targets.dtype).max:
        wrong |= batch.targets >= ways
    if batch.weights is not None:
        wrong &= batch.weights != 0
    return jnp.where(jnp.any(wrong), jnp.nan, jnp.ones((), dtype))


def one_hot(targets: Array, ways: int, dtype: jnp.dtype, *, axis: int = -1) -> Array:
    """Labels [B] as rows [B, N] of zeros and a one, or columns [N, B]; zeros for a label outside [0, N).

    Counted in int32: in 8 bits class 256 would be class 0 again.
    """
    return jax.nn.one_hot(jnp.asarray(targets, jnp.int32), ways, dtype=dtype, axis=axis)


def _check_logits(outputs: Array, batch: Batch) -> int:
    """Checks logits [B, N] and labels, and returns N."""
    if outputs.ndim != 2:
        raise ValueError(f"outputs are of shape {outputs.shape}; use logits [B, N].")
    check_labels(batch, outputs.shape[1], examples=outputs.shape[0])
    return outputs.shape[1]


def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Softmax cross-entropy in nats, the mean over examples.

    Args:
      outputs: [B, N] logits.
      batch: `targets` [B] int in [0, N); of examples with weight zero any int.

    Returns:
      A scalar, NaN if a label is out of range. It is a mean where the original MAML code sums over the N K
      examples and divides by K: a step size quoted from there is N times larger here.
    """
    ways = _check_logits(outputs, batch)
    # Labels of padding too, which have a loss and no weight.
    labels = jnp.clip(batch.targets.astype(jnp.int32), 0, ways - 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(_exact(outputs), labels)
    return weighted_mean(losses, batch.weights) * one_or_nan(batch, ways, losses.dtype)


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
    alone would call it right as often as NaN stands at the label. NaN if a label is outside [0, N).
    """
    ways = _check_logits(outputs, batch)
    hits = (jnp.argmax(outputs, axis=-1) == batch.targets) & ~jnp.isnan(outputs).any(axis=-1)
    mean = weighted_mean(hits.astype(outputs.dtype), batch.weights)
    return mean * one_or_nan(batch, ways, mean.dtype)


def _exact(values: Array) -> Array:
    """Values in float32 at least: a mean of bfloat16 has three digits, and sums of ones end at 256."""
    return values.astype(trees.float_dtype(values))
