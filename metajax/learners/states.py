"""Fast states of learners without inner steps: sums per class, or a buffer of examples of fixed capacity.

A fast state keeps its shape from `start` on, so that adaptation can be scanned, exported and continued.
`C` is the capacity of a buffer, the largest number of examples that a task ever has; `metajax.types` lists
the other letters.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

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

# Logit of a class without examples: so low that no softmax gives the class any weight, and still finite.
ABSENT = -1e9


class ClassSums(NamedTuple):
    """Features summed per class.

    Attributes:
      sums: Weighted sums of the features of each class, [N, ...].
      counts: Total weight of the examples of each class, [N].
    """

    sums: Array
    counts: Array


class Examples(NamedTuple):
    """Buffer of C examples: those seen so far in their order, then unused rows.

    Attributes:
      features: Features [C, ...]; zeros in unused rows.
      targets: Int class labels [C], or float regression targets [C, Y].
      weights: Float weights [C]; zero in unused rows.
    """

    features: Array
    targets: Array
    weights: Array


class Kept(NamedTuple):
    """Fast state of learners that keep their examples.

    Attributes:
      examples: Buffer of all examples so far.
      made: Tree of arrays that the learner derives from all examples in each call of `adapt`, such as a
        solved head; zeros before the first call.
    """

    examples: Examples
    made: Tree


def add_to_sums(sums: ClassSums, features: Array, batch: Batch) -> ClassSums:
    """Adds the features of a batch to the sums of their classes.

    Args:
      sums: Sums so far, of N classes.
      features: Float features [B, ...] of the batch.
      batch: Labels [B] and weights of the examples.

    Returns:
      The new sums. A label outside [0, N) makes all counts NaN.
    """
    ways = sums.counts.shape[0]
    members = one_hot(batch.targets, ways, features.dtype, axis=0)
    members *= weights_of(batch, features.dtype)
    added = jnp.tensordot(members, features, axes=1)
    counts = jnp.sum(members, axis=1) * one_or_nan(batch, ways, members.dtype)
    return ClassSums(sums.sums + added, sums.counts + counts)


def summing(features_of: FeaturesFn, ways: int) -> tuple[StartFn, AdaptFn]:
    """Makes `start` and `adapt` of a learner whose fast state is `ClassSums`.

    Args:
      features_of: Function (meta, inputs [B, ...]) -> features [B, ...].
      ways: Number of classes N.

    Returns:
      The functions `start` and `adapt`.
    """

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
    """Makes `start` and `adapt` of a learner whose fast state is `Kept`.

    Adapting piece by piece equals adapting to the whole with the key of the last call, provided that the
    features of an example do not depend on its batch.

    Args:
      features_of: Function (meta, inputs [B, ...]) -> features [B, ...].
      ways: Number of classes N; None for regression targets.
      make: Function (meta, key, examples) -> `Kept.made`, called with all examples so far. Rows of weight
        zero are unused.

    Returns:
      The functions `start` and `adapt`.
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
    """Wraps `adapt` so that a batch without any weight leaves the fast state unchanged.

    It is for learners that descend a loss which is a mean over examples: without weight that mean is NaN. A
    loss that is a sum is defined there, and has derivatives with respect to the weights, so it is descended
    as usual. A batch whose weights are known to be nonzero, or None, is passed on unchanged.

    Args:
      adapt: Function to wrap.
      predict: Learner's `predict`, of which only the shapes of the outputs are used.
      loss: Inner loss.

    Returns:
      The wrapped `adapt`.
    """

    def adapt_or_keep(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        weights, values = batch.weights, known_values(batch.weights)
        if weights is None or (values is not None and (values != 0).any()):
            return adapt(meta, fast, key, batch)
        # With all weights zero, the loss is NaN for every output or for none: zeros decide which.
        outputs = zeros_of(jax.eval_shape(predict, meta, fast, batch.inputs))
        undefined = jnp.isnan(jax.lax.stop_gradient(loss(outputs, batch)))
        empty = jnp.all(weights == 0) & undefined
        # The discarded branch must be finite too: the gradient of `where` multiplies its NaN by zero, NaN.
        weights = jnp.where(empty, jnp.ones_like(weights), weights)
        targets = jax.tree.map(
            lambda leaf: jnp.where(empty, jnp.zeros_like(leaf), leaf), batch.targets
        )
        adapted = adapt(meta, fast, key, batch._replace(targets=targets, weights=weights))
        return jax.tree.map(lambda new, old: jnp.where(empty, old, new), adapted, fast)

    return adapt_or_keep


def require_like(like: Batch | None) -> Batch:
    """Returns the example batch that `start` needs.

    Args:
      like: Example batch, or None where the caller gave none.

    Returns:
      The example batch.

    Raises:
      ValueError: If there is none.
    """
    if like is None:
        raise ValueError(
            "Learner.start needs the shapes of a task's examples; give it `like`, a batch of as many as the "
            "task will have or its jax.ShapeDtypeStructs, or give the objective's TaskEvidence `like=`."
        )
    return like


def zeros_of(shapes: Tree) -> Tree:
    """Makes arrays of zeros.

    Args:
      shapes: Tree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree of zeros of the same shapes and dtypes.
    """
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def class_means(sums: ClassSums) -> Array:
    """Computes the mean features of each class: the prototypes c_k.

    Args:
      sums: Sums and counts of N classes.

    Returns:
      Means [N, ...]; zeros for a class without examples.

    Reference: Snell et al., 2017 (https://arxiv.org/abs/1703.05175), eq. 1.
    """
    counts = sums.counts.reshape(-1, *[1] * (sums.sums.ndim - 1))
    return sums.sums / jnp.where(counts > 0, counts, 1)


def unit(x: Array) -> Array:
    """Scales vectors to length one.

    Args:
      x: Float vectors [..., D].

    Returns:
      Unit vectors [..., D]; a vector of zeros stays zero, with a derivative of zero.
    """
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Bounded inside the root, whose derivative at zero is infinite.
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(x.dtype).eps ** 2))


def features_by(encoder: Model, field: str) -> FeaturesFn:
    """Makes the features function of an encoder whose parameters are a field of the meta-parameters.

    Args:
      encoder: Encoder.
      field: Name of the field.

    Returns:
      A function (meta, inputs [B, ...]) -> features [B, ...].
    """
    params_of = operator.attrgetter(field)
    return lambda meta, inputs: encoder.apply(params_of(meta), inputs)


def init_encoder(encoder: Model, key: Key, inputs: Tree) -> tuple[Params, int, jnp.dtype]:
    """Initializes an encoder and finds the size and the dtype of its features.

    Args:
      encoder: Encoder with features [B, D].
      key: Random key; consumed.
      inputs: Example inputs [B, ...].

    Returns:
      The parameters, the number of features D, and the dtype of the features.

    Raises:
      ValueError: If the features are not of shape [B, D].
    """
    params = encoder.init(key, inputs)
    features = jax.eval_shape(encoder.apply, params, inputs)
    if features.ndim != 2:
        raise ValueError(f"Features are {features.shape}; use an encoder that gives [B, D].")
    return params, features.shape[1], features.dtype


def exact(encoder: Model) -> Model:
    """Casts features to the floating dtype of the encoder's parameters, float32 at least.

    All that a learner computes from features, and the parameters that it adds, have the dtype of features.
    The dtype does not follow the inputs, which may be token ids, pixels, or wider than the parameters. Nor
    does it follow the precision in which the encoder computes: sums, solutions and steps in bfloat16 would be
    too coarse.

    Args:
      encoder: Encoder whose output is one array. If it has no parameters, the dtype of its output counts.

    Returns:
      The encoder; its `init` raises a ValueError for parameters that are not floating-point arrays.
    """

    def apply(params: Params, inputs: Tree) -> Array:
        features = encoder.apply(params, inputs)
        floats, _ = trees.split_floats(params)
        return features.astype(trees.float_dtype(floats if jax.tree.leaves(floats) else features))

    def init(key: Key, inputs: Tree) -> Params:
        return trees.require_floats(encoder.init(key, inputs))

    return encoder._replace(init=init, apply=apply)


def rescaled(encoder: Model) -> Model:
    """Scales the features of each example to a root mean square of one, about the size of a one-hot label.

    It is for learners that read (example, label) pairs: image encoders may give far smaller features, and
    then the label is all that such a learner reads. Do not use it where the length of the features carries
    information, as in regression.

    Args:
      encoder: Encoder with features [B, D].

    Returns:
      The encoder with rescaled features, cast as by `exact`.
    """

    encoder = exact(encoder)

    def apply(params: Params, inputs: Tree) -> Array:
        features = encoder.apply(params, inputs)
        return features.shape[-1] ** 0.5 * unit(features)

    return encoder._replace(apply=apply)


def mask_absent(logits: Array, counts: Array) -> Array:
    """Replaces the logits of classes without examples by `ABSENT`.

    Args:
      logits: Float logits [..., N].
      counts: Total weight of the examples of each class, [N]; NaN where a label was out of range.

    Returns:
      Logits [..., N], NaN where counts are NaN.
    """
    chex.assert_rank(counts, 1)
    chex.assert_equal_shape_suffix([logits, counts], 1)
    # The NaN is added, not selected, so that gradients are NaN too.
    logits += jnp.where(jnp.isnan(counts), counts, 0).astype(logits.dtype)
    return jnp.where(counts == 0, jnp.asarray(ABSENT, logits.dtype), logits)


def put_behind(
    kept: Tree, weights: Array, more: Tree, more_weights: Array | None
) -> tuple[Tree, Array]:
    """Appends examples to a buffer; padding takes no row.

    Args:
      kept: Tree of arrays [C, ...], whose first rows are the examples so far.
      weights: Float weights [C], zero in unused rows.
      more: Tree of arrays [B, ...] of further examples, with the structure of `kept`.
      more_weights: Float weights [B] of the further examples, where zero marks padding; None if each counts
        once.

    Returns:
      The arrays [C, ...] and weights [C] of all examples. If they exceed the capacity, a compiled program
      makes the floating-point arrays NaN.

    Raises:
      ValueError: If an eager call exceeds the capacity, or the further examples have other shapes or dtypes.
    """
    room, count, before = (
        weights.shape[0],
        trees.count(more, "examples' arrays"),
        jnp.sum(weights != 0),
    )
    seen = jnp.ones(count, bool) if more_weights is None else more_weights != 0
    full = _check_room(before + jnp.sum(seen), room)
    # Examples take consecutive rows and padding takes none, so that an order drawn over rows by a key does
    # not depend on where the padding lies. Row C is out of range, and a write to it is dropped.
    places = jnp.where(seen, before + jnp.cumsum(seen) - 1, room)

    def put(old: Array, new: Array) -> Array:
        new = _alike(old, jnp.asarray(new))
        old = old.at[places].set(new, mode="drop")
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return old
        return old + jnp.where(full, jnp.nan, 0).astype(old.dtype)

    more_weights = jnp.ones(count, weights.dtype) if more_weights is None else more_weights
    return jax.tree.map(put, kept, more), put(weights, more_weights.astype(weights.dtype))


def _check_room(needed: Array, room: int) -> Array:
    """Returns whether the examples exceed the capacity; raises a ValueError if that is known to be so."""
    full = needed > room
    if not isinstance(full, Tracer) and full:
        raise ValueError(
            f"{int(needed)} examples are more than the {room} that the fast state has room for; give "
            "Learner.start as `like` as many examples as the task will ever have."
        )
    return full


def _alike(old: Array, new: Array) -> Array:
    """Casts examples to the dtype of the buffer; raises a ValueError where that would lose information."""
    if old.shape[1:] == new.shape[1:] and jnp.promote_types(old.dtype, new.dtype) == old.dtype:
        return new.astype(old.dtype)
    given, kept = (f"{array.dtype}{list(array.shape[1:])}" for array in (new, old))
    raise ValueError(
        f"examples are of {given}, and the fast state keeps {kept}; give Learner.start as `like` examples of "
        "the kind that the task will have."
    )


def keep(examples: Examples, features: Array, batch: Batch) -> Examples:
    """Appends a batch to a buffer of examples.

    Args:
      examples: Buffer of capacity C.
      features: Float features [B, ...] of the batch.
      batch: Targets and weights of the examples.

    Returns:
      The buffer with the batch appended.
    """
    kept, more = (examples.features, examples.targets), (features, batch.targets)
    (features, targets), weights = put_behind(kept, examples.weights, more, batch.weights)
    return Examples(features, targets, weights)


def weights_of(batch: Batch, dtype: jnp.dtype) -> Array:
    """Returns the weights of a batch.

    Args:
      batch: Examples of one task.
      dtype: Floating dtype of the result.

    Returns:
      Weights [B]; ones if the batch has none.
    """
    if batch.weights is None:
        return jnp.ones(trees.count(batch.inputs), dtype)
    return batch.weights.astype(dtype)


def labels_of(batch: Batch | Examples, ways: int | None, dtype: jnp.dtype) -> Array:
    """Encodes targets as vectors that a network reads.

    Args:
      batch: Targets and weights of B examples.
      ways: Number of classes N; None for regression targets.
      dtype: Floating dtype of the result.

    Returns:
      One-hot labels [B, N], all NaN if a label is outside [0, N); or the targets [B, Y] if `ways` is None.
    """
    if ways is None:
        return batch.targets.astype(dtype)
    return one_hot(batch.targets, ways, dtype) * _one_or_nan(batch, ways, dtype)


def check_batch(batch: Batch, ways: int | None) -> None:
    """Refuses a batch that a learner cannot read.

    Args:
      batch: Examples of one task.
      ways: Number of classes N; None for regression targets [B, Y].

    Raises:
      ValueError: If the targets are not labels, as `losses.check_labels` has it; or, for regression, if
        targets are not [B, Y] or weights are not [B].
    """
    examples = trees.count(batch.inputs)
    if ways is not None:
        return check_labels(batch, ways, examples=examples)
    shape = jnp.shape(batch.targets)
    if len(shape) != 2 or shape[0] != examples:
        raise ValueError(
            f"targets are of shape {shape}, of {examples} examples; use values [{examples}, Y]."
        )
    if batch.weights is not None and jnp.shape(batch.weights) != (examples,):
        raise ValueError(
            f"weights are of shape {jnp.shape(batch.weights)}, of {examples} examples; use shape "
            f"({examples},)."
        )


def check_ways(ways: int | None, num_outputs: int) -> int:
    """Returns the size of an encoded label, which is the number of outputs too.

    Args:
      ways: Number of classes N; None for regression.
      num_outputs: Number Y of regression targets of an example.

    Returns:
      N, or Y if `ways` is None.

    Raises:
      ValueError: If `ways` is below 2 or `num_outputs` below 1.
    """
    if ways is not None and ways < 2:
        raise ValueError(f"ways is {ways}; use 2 or more, or None for regression.")
    if num_outputs < 1:
        raise ValueError(f"num_outputs is {num_outputs}; use 1 or more.")
    return num_outputs if ways is None else ways


def counts_of(examples: Examples, ways: int) -> Array:
    """Sums the weights of the examples of each class.

    Args:
      examples: Buffer of examples with labels.
      ways: Number of classes N.

    Returns:
      Total weights [N]; NaN if a label is outside [0, N).
    """
    dtype = examples.weights.dtype
    members = one_hot(examples.targets, ways, dtype, axis=0)
    return members @ examples.weights * _one_or_nan(examples, ways, dtype)


def _one_or_nan(examples: Batch | Examples, ways: int, dtype: jnp.dtype) -> Array:
    """Applies `losses.one_or_nan` to targets and weights of a batch or a buffer."""
    return one_or_nan(Batch(None, examples.targets, examples.weights), ways, dtype)
