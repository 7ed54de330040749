"""Fast states of learners without inner steps: sums per class, or arrays of examples with room for more."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.losses import check_labels, known_values, one_hot, one_or_nan
from metajax.types import (
    AdaptFn,
    Array,
    Batch,
    Fast,
    Key,
    LossFn,
    Meta,
    Model,
    Params,
    PredictFn,
    StartFn,
    Tree,
)

# (meta, inputs [B, ...]) -> features [B, ...].
FeaturesFn = Callable[[Meta, Tree], Array]

# The logit of a class of which no example was seen: no softmax gives it any weight.
ABSENT = -1e9


class ClassSums(NamedTuple):
    """Features summed by class.

    Attributes:
      sums: Weighted sum of each class's features, [N, ...].
      counts: Weight of each class's examples, [N].
    """

    sums: Array
    counts: Array


class Examples(NamedTuple):
    """Features of the examples so far, in the order given, and room for more behind them.

    Attributes:
      features: Features [C, ...]; zeros where there is room.
      targets: Int labels [C], or values [C, Y].
      weights: Float weights [C]; zero where there is room.
    """

    features: Array
    targets: Array
    weights: Array


class Kept(NamedTuple):
    """Fast state of learners that keep their examples.

    Attributes:
      examples: All examples so far.
      made: Tree of arrays that the learner makes of all of them in each call of `adapt`; zeros before.
    """

    examples: Examples
    made: Tree


def add_to_sums(sums: ClassSums, features: Array, batch: Batch) -> ClassSums:
    """Adds a batch of features [B, ...]; a label outside [0, N) makes all counts NaN."""
    ways = sums.counts.shape[0]
    members = one_hot(batch.targets, ways, features.dtype, axis=0)
    members *= weights_of(batch, features.dtype)
    added = jnp.tensordot(members, features, axes=1)
    counts = jnp.sum(members, axis=1) * one_or_nan(batch, ways, members.dtype)
    return ClassSums(sums.sums + added, sums.counts + counts)


def summing(features_of: FeaturesFn, ways: int) -> tuple[StartFn, AdaptFn]:
    """Makes `start` and `adapt` of learners whose fast state is `ClassSums` of features."""

    def start(meta: Meta, key: Key, like: Batch | None = None) -> ClassSums:
        del key
        features = jax.eval_shape(features_of, meta, require_like(like).inputs)
        sums = jnp.zeros((ways, *features.shape[1:]), features.dtype)
        return ClassSums(sums, jnp.zeros(ways, features.dtype))

    def adapt(meta: Meta, fast: ClassSums, key: Key, batch: Batch) -> ClassSums:
        del key
        check_batch(batch, ways)
        return add_to_sums(fast, features_of(meta, batch.inputs), batch)

    return start, adapt


def keeping(
    features_of: FeaturesFn,
    ways: int | None,
    make: Callable[[Meta, Key, Examples], Tree] = lambda meta, key, examples: (),
) -> tuple[StartFn, AdaptFn]:
    """Makes `start` and `adapt` of learners whose fast state is `Kept`.

    Adapting in pieces equals adapting to the whole with the key of the last call, as far as features do not
    depend on the batch.

    Args:
      features_of: (meta, inputs [B, ...]) -> features [B, ...].
      ways: Number of classes N; None for values.
      make: (meta, key, examples) -> `Kept.made`, from all examples so far. Those of weight zero are room.
    """

    def start(meta: Meta, key: Key, like: Batch | None = None) -> Kept:
        shapes = jax.eval_shape(of_batch, meta, key, require_like(like))
        return zeros_of(shapes)

    def of_batch(meta: Meta, key: Key, batch: Batch) -> Kept:
        features = features_of(meta, batch.inputs)
        examples = Examples(features, batch.targets, weights_of(batch, features.dtype))
        return Kept(examples, make(meta, key, examples))

    def adapt(meta: Meta, fast: Kept, key: Key, batch: Batch) -> Kept:
        check_batch(batch, ways)
        examples = keep(fast.examples, features_of(meta, batch.inputs), batch)
        return Kept(examples, make(meta, key, examples))

    return start, adapt


def skipping_empty(adapt: AdaptFn, predict: PredictFn, loss: LossFn) -> AdaptFn:
    """Returns an `adapt` that keeps the fast state where no example of a batch has weight.

    For learners that descend a loss that is a mean over examples, NaN where there are none. A loss that is a
    sum has a value there, and derivatives with respect to the weights: it is descended. A batch that is known
    to have weight, as one without weights is, is passed on as it is.
    """

    def adapt_or_keep(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        weights, values = batch.weights, known_values(batch.weights)
        if weights is None or (values is not None and (values != 0).any()):
            return adapt(meta, fast, key, batch)
        # Whether the loss of no weight is NaN does not depend on the outputs.
        outputs = zeros_of(jax.eval_shape(predict, meta, fast, batch.inputs))
        undefined = jnp.isnan(jax.lax.stop_gradient(loss(outputs, batch)))
        empty = jnp.all(weights == 0) & undefined
        # The branch not taken has to be finite, or its NaN would come back through the gradient.
        weights = jnp.where(empty, jnp.ones_like(weights), weights)
        targets = jax.tree.map(
            lambda leaf: jnp.where(empty, jnp.zeros_like(leaf), leaf), batch.targets
        )
        adapted = adapt(meta, fast, key, batch._replace(targets=targets, weights=weights))
        return jax.tree.map(lambda new, old: jnp.where(empty, old, new), adapted, fast)

    return adapt_or_keep


def require_like(like: Batch | None) -> Batch:
    """Returns the example batch that `start` needs; ValueError if it is None."""
    if like is None:
        raise ValueError(
            "Learner.start needs the shapes of a task's examples; give it `like`, a batch of as many as the "
            "task will have or its jax.ShapeDtypeStructs, or give the objective's TaskEvidence `like=`."
        )
    return like


def zeros_of(shapes: Tree) -> Tree:
    """Makes arrays of zeros of the shapes and types in a tree."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def class_means(sums: ClassSums) -> Array:
    """Mean features of each class, [N, ...], eq. 1 of prototypical networks; zeros where there are none."""
    counts = sums.counts.reshape(-1, *[1] * (sums.sums.ndim - 1))
    return sums.sums / jnp.where(counts > 0, counts, 1)


def unit(x: Array) -> Array:
    """Scales rows [..., D] to length one; a row of zeros stays one, with a derivative of zero."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(x.dtype).eps ** 2))


def features_by(encoder: Model, field: str) -> FeaturesFn:
    """Applies an encoder whose parameters are a field of the meta-parameters."""
    params_of = operator.attrgetter(field)
    return lambda meta, inputs: encoder.apply(params_of(meta), inputs)


def init_encoder(encoder: Model, key: Key, inputs: Tree) -> tuple[Params, int, jnp.dtype]:
    """Makes an encoder's parameters, and finds the number D and the type of its features.

    Raises:
      ValueError: for features that are not [B, D].
    """
    params = encoder.init(key, inputs)
    features = jax.eval_shape(encoder.apply, params, inputs)
    if features.ndim != 2:
        raise ValueError(f"Features are {features.shape}; use an encoder that gives [B, D].")
    return params, features.shape[1], features.dtype


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

    def apply(params: Params, inputs: Tree) -> Array:
        features = encoder.apply(params, inputs)
        floats, _ = trees.split_floats(params)
        return features.astype(trees.float_dtype(floats if jax.tree.leaves(floats) else features))

    def init(key: Key, inputs: Tree) -> Params:
        return trees.require_floats(encoder.init(key, inputs))

    return encoder._replace(init=init, apply=apply)


def rescaled(encoder: Model) -> Model:
    """Scales features [B, D] of each example to a root mean square of one, about the size of a label.

    For what reads examples beside their labels: encoders of images may give far smaller features, beside
    which a label is all that is read. Where the length of features says something, as in regression, it has
    to stay.
    """

    encoder = exact(encoder)

    def apply(params: Params, inputs: Tree) -> Array:
        features = encoder.apply(params, inputs)
        return features.shape[-1] ** 0.5 * unit(features)

    return encoder._replace(apply=apply)


def mask_absent(logits: Array, counts: Array) -> Array:
    """Replaces the logits [..., N] of classes without examples by `ABSENT`, and by NaN if counts are NaN."""
    # Added, so that gradients are NaN too.
    logits += jnp.where(jnp.isnan(counts), counts, 0).astype(logits.dtype)
    return jnp.where(counts == 0, jnp.asarray(ABSENT, logits.dtype), logits)


def put_behind(
    kept: Tree, weights: Array, more: Tree, more_weights: Array | None
) -> tuple[Tree, Array]:
    """Puts examples behind those kept so far; padding takes no room.

    Args:
      kept: Arrays [C, ...] with room for C examples, those kept so far first.
      weights: Float weights [C], zero where there is room.
      more: Arrays [B, ...] of further examples, a tree like `kept`.
      more_weights: Their float weights [B]; zero marks padding. None where all count once.

    Returns:
      The arrays [C, ...] and weights [C] of all. Without room for all of them, those of floats are NaN in a
      compiled program.

    Raises:
      ValueError: in an eager call, without room for all of them; for examples of another kind.
    """
    room, count, before = len(weights), trees.count(more, "examples' arrays"), jnp.sum(weights != 0)
    seen = jnp.ones(count, bool) if more_weights is None else more_weights != 0
    full = _check_room(before + jnp.sum(seen), room)
    # Places count examples alone: an order drawn over places is the same wherever padding lies.
    places = jnp.where(seen, before + jnp.cumsum(seen) - 1, room)

    def put(old: Array, new: Array) -> Array:
        new = _alike(old, jnp.asarray(new))
        if more_weights is None and count <= room:
            # Without padding one contiguous copy; a batch that fills all the room replaces the old array.
            old = jax.lax.dynamic_update_slice_in_dim(old, new, before, axis=0)
        else:
            old = old.at[places].set(new, mode="drop")
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return old
        return old + jnp.where(full, jnp.nan, 0).astype(old.dtype)

    more_weights = jnp.ones(count, weights.dtype) if more_weights is None else more_weights
    return jax.tree.map(put, kept, more), put(weights, more_weights.astype(weights.dtype))


def _check_room(needed: Array, room: int) -> Array:
    """Whether more examples than there is room for are needed; ValueError if that is known to be so."""
    full = needed > room
    if not isinstance(full, jax.core.Tracer) and full:
        raise ValueError(
            f"{int(needed)} examples are more than the {room} that the fast state has room for; give "
            "Learner.start as `like` as many examples as the task will ever have."
        )
    return full


def _alike(old: Array, new: Array) -> Array:
    """Brings examples to the type of those kept; ValueError where that would lose something."""
    if old.shape[1:] == new.shape[1:] and jnp.promote_types(old.dtype, new.dtype) == old.dtype:
        return new.astype(old.dtype)
    given, kept = (f"{array.dtype}{list(array.shape[1:])}" for array in (new, old))
    raise ValueError(
        f"examples are of {given}, and the fast state keeps {kept}; give Learner.start as `like` examples of "
        "the kind that the task will have."
    )


def keep(examples: Examples, features: Array, batch: Batch) -> Examples:
    """Puts a batch of features [B, ...] behind those kept so far."""
    kept, more = (examples.features, examples.targets), (features, batch.targets)
    kept, weights = put_behind(kept, examples.weights, more, batch.weights)
    return Examples(*kept, weights)


def weights_of(batch: Batch, dtype: jnp.dtype) -> Array:
    """Returns the weights [B] of a batch, ones where it has none."""
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
