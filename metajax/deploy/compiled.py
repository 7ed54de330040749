"""Compiled functions of trained learners, which classifiers of one bundle share."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.deploy.bundle import Form
from metajax.deploy.spec import LearnerSpec, make_learner_of
from metajax.learners.states import ABSENT
from metajax.types import Array, Batch, Fast, Meta, Tree

# Their solvers stop before they converge, so that examples of weight zero leave a trace.
_ITERATE = {"metaoptnet"}


class Compiled(NamedTuple):
    """Compiled functions of a learner.

    Attributes:
      adapt: Function (meta, batch of features) -> fast state.
      predict: Function (meta, fast, features, number of classes, temperature) -> probabilities [B, N].
    """

    adapt: Callable[[Meta, Batch], Fast]
    predict: Callable[[Meta, Fast, Tree, Array, Array], Array]


def adapt_to(
    spec: LearnerSpec, form: Form, meta: Meta, examples: Mapping[str, np.ndarray]
) -> tuple[Compiled, Fast]:
    """Adapts a learner to examples.

    Args:
      spec: Description of the learner.
      form: Form of the examples.
      meta: Meta-parameters.
      examples: Examples [n, ...] by class name, as `form.read` returns them.

    Returns:
      The compiled learner for so many classes, and its state after all examples.
    """
    counts = [len(kept) for kept in examples.values()]
    features = form.features(np.concatenate(list(examples.values())))
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    weights = np.ones(len(labels), np.float32)
    if pads(spec):
        more = room(len(labels)) - len(labels)

        def padded(leaf: np.ndarray) -> np.ndarray:
            return np.concatenate([leaf, np.zeros((more, *leaf.shape[1:]), leaf.dtype)])

        features, labels, weights = jax.tree.map(padded, (features, labels, weights))
    ways = min(max(2, room(len(counts))), spec.most_ways) if spec.any_ways else spec.ways
    learner = compiled(spec.key(), form, ways)
    return learner, learner.adapt(meta, Batch(features, jnp.asarray(labels), jnp.asarray(weights)))


def answers_of(
    learner: Compiled, meta: Meta, fast: Fast, features: Tree, *, classes: int, temperature: float
) -> np.ndarray:
    """Answers queries, each as if it were the only one.

    Args:
      learner: Compiled learner.
      meta: Meta-parameters.
      fast: State after the examples.
      features: Features of M queries, tree of arrays [M, ...], M of 1 or more.
      classes: Number of classes N that were learned.
      temperature: Divisor of the logits.

    Returns:
      Probabilities [M, N] float32.
    """
    number = len(jax.tree.leaves(features)[0])
    more = room(number) - number
    padded = jax.tree.map(
        lambda leaf: jnp.asarray(np.concatenate([leaf, np.repeat(leaf[-1:], more, 0)])), features
    )
    known = jnp.asarray(classes), jnp.asarray(temperature, jnp.float32)
    return np.asarray(learner.predict(meta, fast, padded, *known))[:number, :classes]


def room(count: int) -> int:
    """Rounds a number of examples up, so that few programs serve all numbers.

    Args:
      count: Number of 1 or more.

    Returns:
      The next power of two.

    Example:
      >>> room(5), room(8)
      (8, 8)
    """
    return 1 << (count - 1).bit_length()


def pads(spec: LearnerSpec) -> bool:
    """Finds out whether examples of weight zero leave the learner's answers as they are.

    Statistics of the batch count them, minibatches draw them, a reader of sequences reads them, and a solver
    that stops early has taken other steps.

    Args:
      spec: Description of the learner.

    Returns:
      True if its support set may be padded.

    Example:
      >>> from metajax.deploy import LearnerSpec
      >>> pads(LearnerSpec("protonet", "mlp", 5, 5)), pads(LearnerSpec("snail", "mlp", 5, 5))
      (True, False)
    """
    reads = not spec.any_ways and not spec.entry.inner
    minibatches = spec.options.get("minibatch")
    return not (spec.sees_the_batch or minibatches or reads or spec.learner in _ITERATE)


@functools.lru_cache(maxsize=32)
def compiled(spec_key: str, form: Form, ways: int) -> Compiled:
    """Compiles a learner for a number of classes; classifiers of one bundle share it.

    Args:
      spec_key: Description of the learner in one line, as `LearnerSpec.key` returns it.
      form: Form of the examples.
      ways: Number of classes.

    Returns:
      The compiled functions.
    """
    spec = LearnerSpec.of_key(spec_key)
    learner = make_learner_of(spec, ways=ways, alone=True, about=form.about)
    key = jax.random.key(0)

    @jax.jit
    def adapt(meta: Meta, batch: Batch) -> Fast:
        batch = batch._replace(inputs=form.inputs(batch.inputs))
        return learner.adapt(meta, learner.start(meta, key, batch), key, batch)

    @jax.jit
    def predict(meta: Meta, fast: Fast, features: Tree, count: Array, temperature: Array) -> Array:
        outputs = learner.predict(meta, fast, form.inputs(features))
        logits = jnp.where(jnp.arange(ways) < count, outputs / temperature, ABSENT)
        return jax.nn.softmax(logits, -1)

    return Compiled(adapt, predict)
