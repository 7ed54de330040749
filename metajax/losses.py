"""Losses and metrics of one task: functions of its outputs and its batch, averaged over examples.

Labels outside [0, N) raise a ValueError if their values are known, as they are in eager calls; in a compiled
program they make the loss and its gradients NaN. An example of weight zero is padding, with any label.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from metajax import trees
from metajax.types import Array, Batch


def weighted_mean(values: Array, weights: Array | None) -> Array:
    """Averages values by weights.

    Args:
      values: Numbers [B].
      weights: Float weights [B]; None weighs all examples equally.

    Returns:
      A scalar in float32 or the wider type of the values; NaN if all weights are zero.

    Example:
      >>> weighted_mean(jnp.array([1.0, 4.0, 9.0]), jnp.array([1.0, 2.0, 0.0])).item()
      3.0
    """
    values = _exact(values)
    if weights is None:
        return jnp.mean(values)
    chex.assert_equal_shape([values, weights])
    weights = weights.astype(values.dtype)
    return jnp.sum(values * weights) / jnp.sum(weights)


def check_labels(batch: Batch, ways: int, *, examples: int) -> None:
    """Checks that targets are labels [B] in [0, N), as far as is known before a program runs.

    Args:
      batch: Examples of one task.
      ways: Number of classes N.
      examples: Number of examples B.

    Raises:
      ValueError: If targets have another shape or type, labels with known values are out of range, or the
        number of targets or weights is not B.

    Example:
      >>> check_labels(metajax.Batch(None, jnp.array([0, 2])), ways=2, examples=2)
      Traceback (most recent call last):
      ValueError: labels are from 0 to 2 for 2 ways; use labels from 0 to 1.
    """
    shape, dtype = jnp.shape(batch.targets), jnp.result_type(batch.targets)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"targets are {dtype} of shape {shape}; use integer labels [{examples}] from 0 to {ways - 1}."
        )
    for name, array in (("targets", batch.targets), ("weights", batch.weights)):
        if array is not None and jnp.shape(array) != (examples,):
            raise ValueError(
                f"{name} have shape {jnp.shape(array)} for {examples} examples; use shape ({examples},)."
            )
    labels, weights = known_values(batch.targets), known_values(batch.weights)
    if labels is None or (weights is None and batch.weights is not None):
        return
    labels = labels if weights is None else labels[weights != 0]
    if labels.size and (labels.min() < 0 or labels.max() >= ways):
        raise ValueError(
            f"labels are from {labels.min()} to {labels.max()} for {ways} ways; "
            f"use labels from 0 to {ways - 1}."
        )


def known_values(array: Array | None) -> np.ndarray | None:
    """Reads the values of an array, if they are known.

    Args:
      array: Array or None.

    Returns:
      A NumPy array; None for None, inside a traced program, and if other processes hold a part of the array.

    Example:
      >>> known_values(jnp.arange(3))
      array([0, 1, 2], dtype=int32)
    """
    if array is None or isinstance(array, Tracer):
        return None
    return np.asarray(array) if getattr(array, "is_fully_addressable", True) else None


def one_or_nan(batch: Batch, ways: int, dtype: jnp.dtype) -> Array:
    """Returns one, or NaN if a label of an example with weight is outside [0, N).

    A loss multiplied by it has NaN gradients too; `jnp.where(wrong, nan, loss)` would have zero gradients.

    Args:
      batch: Examples of one task, with integer labels [B].
      ways: Number of classes N.
      dtype: Type of the result.

    Returns:
      A scalar, 1 or NaN.

    Example:
      >>> one_or_nan(metajax.Batch(None, jnp.array([0, 2])), ways=2, dtype=jnp.float32).item()
      nan
    """
    wrong = batch.targets < 0
    # N may be too large for the labels' type to represent; no label can reach it then.
    if ways <= jnp.iinfo(batch.targets.dtype).max:
        wrong |= batch.targets >= ways
    if batch.weights is not None:
        wrong &= batch.weights != 0
    return jnp.where(jnp.any(wrong), jnp.nan, jnp.ones((), dtype))


def one_hot(targets: Array, ways: int, dtype: jnp.dtype, *, axis: int = -1) -> Array:
    """Encodes labels as rows or columns of zeros and a one.

    Args:
      targets: Integer labels [B]; a label outside [0, N) becomes zeros.
      ways: Number of classes N.
      dtype: Type of the result.
      axis: Axis of the classes: -1 for [B, N], 0 for [N, B].

    Returns:
      One-hot codes [B, N] or [N, B].

    Example:
      >>> one_hot(jnp.array([1, 0]), 2, jnp.float32).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    # Compared in int32: in 8 bits class 256 would be class 0 again.
    return jax.nn.one_hot(jnp.asarray(targets, jnp.int32), ways, dtype=dtype, axis=axis)


def cross_entropy(outputs: Array, batch: Batch) -> Array:
    """Computes the softmax cross-entropy in nats, averaged over examples.

    Args:
      outputs: Float logits [B, N].
      batch: Examples whose `targets` are integer labels [B] in [0, N), or any integer at weight zero.

    Returns:
      A scalar, NaN if a label is out of range. It is a mean; the original MAML code sums over the N K
      examples and divides by K, so a step size quoted from there is N times larger here.

    Raises:
      ValueError: If outputs are not [B, N], or targets are not labels [B] in range (see `check_labels`).

    Example:
      >>> logits, batch = jnp.log(jnp.array([[0.25, 0.75]])), metajax.Batch(None, jnp.array([1]))
      >>> round(cross_entropy(logits, batch).item(), 4)  # -log 0.75
      0.2877
    """
    ways = _check_logits(outputs, batch)
    # Padding has a loss too, of weight zero, and needs a label in range.
    labels = jnp.clip(batch.targets.astype(jnp.int32), 0, ways - 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(_exact(outputs), labels)
    return weighted_mean(losses, batch.weights) * one_or_nan(batch, ways, losses.dtype)


def squared_error(outputs: Array, batch: Batch) -> Array:
    """Computes the squared error, averaged over output dimensions and examples.

    Args:
      outputs: Float outputs [B, ...].
      batch: Examples whose `targets` have the shape of the outputs.

    Returns:
      A scalar.

    Example:
      >>> squared_error(jnp.array([[1.0], [2.0]]), metajax.Batch(None, jnp.array([[1.0], [4.0]]))).item()
      2.0
    """
    chex.assert_equal_shape([outputs, batch.targets])
    errors = jnp.mean(
        jnp.square(_exact(outputs) - batch.targets), axis=tuple(range(1, outputs.ndim))
    )
    return weighted_mean(errors, batch.weights)


def accuracy(outputs: Array, batch: Batch) -> Array:
    """Computes the fraction of examples whose largest logit is at the label.

    Ties go to the lowest class. An example with a NaN among its logits is wrong whatever its label: argmax
    returns the place of the NaN, and would be right whenever that is the label.

    Args:
      outputs: Float logits [B, N].
      batch: Examples whose `targets` are integer labels [B] in [0, N).

    Returns:
      A scalar in [0, 1]; NaN if a label is out of range.

    Raises:
      ValueError: If outputs are not [B, N], or targets are not labels [B] in range (see `check_labels`).

    Example:
      >>> accuracy(jnp.eye(2), metajax.Batch(None, jnp.array([0, 0]))).item()
      0.5
    """
    ways = _check_logits(outputs, batch)
    hits = (jnp.argmax(outputs, axis=-1) == batch.targets) & ~jnp.isnan(outputs).any(axis=-1)
    mean = weighted_mean(hits.astype(outputs.dtype), batch.weights)
    return mean * one_or_nan(batch, ways, mean.dtype)


def _check_logits(outputs: Array, batch: Batch) -> int:
    """Checks logits [B, N] and labels, and returns N."""
    if outputs.ndim != 2:
        raise ValueError(f"outputs have shape {outputs.shape}; use logits [B, N].")
    check_labels(batch, outputs.shape[1], examples=outputs.shape[0])
    return outputs.shape[1]


def _exact(values: Array) -> Array:
    """Converts values to float32 at least: bfloat16 has three digits, and its sums of ones end at 256."""
    return values.astype(trees.float_dtype(values))
