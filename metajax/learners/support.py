"""What learners without inner steps keep of the examples they have seen: sums a class, or all of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.losses import check_labels, one_hot, one_or_nan
from metajax.types import AdaptFn, Array, Batch, Key, Meta, Model, Params, StartFn, Tree

# The logit of a class of which no example was seen: no softmax gives it any weight.
ABSENT = -1e9


class ClassSums(NamedTuple):
    """Features summed by class.

    Attributes:
      sums: [N, ...], a class's features weighted and summed; a scalar zero before the first example.
      counts: [N] the weight of each class's examples.
    """

    sums: Array
    counts: Array


class Examples(NamedTuple):
    """Features of every example, in the order seen.

    Attributes:
      features: [n, ...]; None before the first.
      targets: [n] int, or values [n, Y].
      weights: [n]; those of padding are zero.
    """

    features: Array | None
    targets: Array
    weights: Array


def no_sums(ways: int) -> ClassSums:
    """Sums of no examples."""
    return ClassSums(jnp.zeros((), jnp.float32), jnp.zeros(ways, jnp.float32))


def add_to_sums(sums: ClassSums, features: Array, batch: Batch) -> ClassSums:
    """Adds a batch of features [B, ...]; a label outside [0, N) makes all counts NaN."""
    ways = sums.counts.shape[0]
    members = one_hot(batch.targets, ways, features.dtype, axis=0)
    members *= weights_of(batch, features.dtype)
    added = jnp.tensordot(members, features, axes=1)
    counts = jnp.sum(members, axis=1) * one_or_nan(batch, ways, members.dtype)
    return ClassSums(sums.sums + added, sums.counts + counts)


def summing(features_of: Callable[[Meta, Array], Array], ways: int) -> tuple[StartFn, AdaptFn]:
    """The `start` and `adapt` of learners that remember `ClassSums` of (meta, inputs) -> features."""

    def start(meta: Meta, key: Key, like: Batch | None = None) -> ClassSums:
        del meta, key, like
        return no_sums(ways)

    def adapt(meta: Meta, fast: ClassSums, key: Key, batch: Batch) -> ClassSums:
        del key
        check_batch(batch, ways)
        return add_to_sums(fast, features_of(meta, batch.inputs), batch)

    return start, adapt


def class_means(sums: ClassSums) -> Array:
    """Mean features of each class, [N, ...], eq. 1 of prototypical networks; zeros where there are none."""
    counts = sums.counts.reshape(-1, *[1] * (sums.sums.ndim - 1))
    return sums.sums / jnp.where(counts > 0, counts, 1)


def unit(x: Array) -> Array:
    """Scales rows [..., D] to length one; a row of zeros stays one, with a derivative of zero."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(x.dtype).eps ** 2))


def exact(encoder: Model) -> Model:
    """Gives features in the floating type of the encoder's parameters, float32 at least.

    Whatever a learner computes behind its encoder, and the parameters it has of its own, are of the type of
    features. Inputs do not choose it: they may be token ids, pixels, or wider than the parameters. Nor does
    the precision in which the encoder computes: sums, solutions and steps of bfloat16 would be too coarse.

    Args:
      encoder: its outputs are one array; of an encoder without parameters, its type counts instead.

    Returns:
      The encoder, whose `init` raises ValueError for parameters that are not floating-point arrays.
    """

    def apply(params: Params, inputs: Array) -> Array:
        features = encoder.apply(params, inputs)
        floats, _ = trees.split_floats(params)
        return features.astype(trees.float_dtype(floats if jax.tree.leaves(floats) else features))

    def init(key: Key, inputs: Array) -> Params:
        return trees.require_floats(encoder.init(key, inputs))

    return encoder._replace(init=init, apply=apply)


def rescaled(encoder: Model) -> Model:
    """Scales features [B, D] of each example to a root mean square of one, about the size of a label.

    For what reads examples beside their labels: encoders of images may give far smaller features, beside
    which a label is all that is read. Where the length of features says something, as in regression, it has
    to stay.
    """

    encoder = exact(encoder)

    def apply(params: Params, inputs: Array) -> Array:
        features = encoder.apply(params, inputs)
        return features.shape[-1] ** 0.5 * unit(features)

    return encoder._replace(apply=apply)


def mask_absent(logits: Array, counts: Array) -> Array:
    """Replaces the logits [..., N] of classes without examples by `ABSENT`, and by NaN if counts are NaN."""
    # Added, so that gradients are NaN too.
    logits += jnp.where(jnp.isnan(counts), counts, 0).astype(logits.dtype)
    return jnp.where(counts == 0, jnp.asarray(ABSENT, logits.dtype), logits)


def no_examples() -> Examples:
    """No examples."""
    return Examples(None, jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.float32))


def put_behind(kept: Tree, weights: Array, more: Tree, more_weights: Array) -> tuple[Tree, Array]:
    """Puts examples behind those kept so far; padding takes no room.

    Args:
      kept: Arrays [C, ...] with room for C examples, those kept so far first.
      weights: Float weights [C], zero where there is room.
      more: Arrays [B, ...] of further examples, a tree like `kept`.
      more_weights: Their float weights [B]; zero marks padding.

    Returns:
      The arrays [C, ...] and weights [C] of all. Without room for all of them they are NaN in a compiled
      program.

    Raises:
      ValueError: in an eager call, without room for all of them.
    """
    room, seen = len(weights), more_weights != 0
    places = jnp.sum(weights != 0) + jnp.cumsum(seen) - 1
    full = places[-1] >= room
    if not isinstance(full, jax.core.Tracer) and full:
        raise ValueError(
            f"{int(places[-1]) + 1} examples are more than the {room} that the fast state has room for; give "
            "Learner.start as `like` as many examples as the task will ever have."
        )
    places = jnp.where(seen, places, room)
    nan = jnp.where(full, jnp.nan, 0)

    def put(old: Array, new: Array) -> Array:
        all_ = old.at[places].set(new.astype(old.dtype), mode="drop")
        return all_ + nan.astype(all_.dtype) if jnp.issubdtype(all_.dtype, jnp.inexact) else all_

    kept, weights = jax.tree.map(put, (kept, weights), (more, more_weights))
    return kept, weights


def keep(examples: Examples, features: Array, batch: Batch) -> Examples:
    """Puts a batch of features [B, ...] behind those kept so far."""
    weights = weights_of(batch, features.dtype)
    if examples.features is None:
        return Examples(features, batch.targets, weights)
    more = Examples(features, batch.targets, weights)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), examples, more)


def weights_of(batch: Batch, dtype: jnp.dtype) -> Array:
    """The weights [B] of a batch, ones where it has none."""
    if batch.weights is None:
        return jnp.ones(trees.count(batch.inputs), dtype)
    return batch.weights.astype(dtype)


def labels_of(batch: Batch | Examples, ways: int | None, dtype: jnp.dtype) -> Array:
    """Labels as a network reads them: [B, N] of zeros and ones, or the values [B, Y] if `ways` is None.

    They are NaN if a label is outside [0, N).
    """
    if ways is None:
        return batch.targets.astype(dtype)
    return one_hot(batch.targets, ways, dtype) * one_or_nan(batch, ways, dtype)


def check_batch(batch: Batch, ways: int | None) -> None:
    """Refuses a batch that a learner of `ways` classes, or of values [B, Y] if None, does not read.

    Raises:
      ValueError: as of `losses.check_labels`; for values, where they are not [B, Y] of as many examples.
    """
    examples = trees.count(batch.inputs)
    if ways is not None:
        return check_labels(batch, ways, examples=examples)
    shape = jnp.shape(batch.targets)
    if len(shape) != 2 or shape[0] != examples:
        raise ValueError(
            f"targets are of shape {shape}, of {examples} examples; use values [{examples}, Y]."
        )


def check_ways(ways: int | None, values: int) -> int:
    """How many numbers a label is read as, and an answer has; ValueError where that is none."""
    if ways is not None and ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more, or None for values.")
    if values < 1:
        raise ValueError(f"values is {values}; use 1 or more.")
    return values if ways is None else ways


def counts_of(examples: Examples, ways: int) -> Array:
    """The weight of each class's examples, [N]; NaN if a label is outside [0, N)."""
    dtype = examples.weights.dtype
    members = one_hot(examples.targets, ways, dtype, axis=0)
    return members @ examples.weights * one_or_nan(examples, ways, dtype)
