"""Relation networks: a learned network compares a query with each class."""

import chex
import jax
import jax.numpy as jnp

from metajax import trees
from metajax.learners.metric.base import MetricMeta, require_ways
from metajax.learners.states import ClassSums, class_means, exact, features_by, mask_absent, summing
from metajax.losses import check_labels, one_hot, one_or_nan, weighted_mean
from metajax.types import Array, Batch, Key, Learner, Model, Tree


def relation(encoder: Model, comparer: Model, *, ways: int) -> Learner[MetricMeta, ClassSums]:
    """Makes relation networks: a learned network scores whether a query belongs to a class.

    The comparer reads the mean features of a class, concatenated with the features of a query. Train with
    `relation_loss`, as in the paper; the outputs are logits of the relation scores, so any loss of logits
    works too.

    Args:
      encoder: Network with features [B, ..., C]; feature maps in the paper.
      comparer: Network from pairs [B, ..., 2 C], class first, to the logit [B, 1] of the relation score.
      ways: Number of classes N. Learners of different N share their meta-parameters.

    Returns:
      A learner with meta-parameters `MetricMeta` and fast state `ClassSums`. The logit of a class without
      examples is `states.ABSENT`.

    Raises:
      ValueError: If `ways` is below 1.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = relation(metajax.toys.toy_model(None), metajax.toys.toy_model(1), ways=3)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Sung et al., 2018 (https://arxiv.org/abs/1711.06025), eq. 1. The paper sums the features of a
    class; they are averaged here, so that the number of shots may vary.
    """
    require_ways(ways)
    encoder = exact(encoder)

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params_key, comparer_key = jax.random.split(key)
        params = encoder.init(params_key, inputs)
        features = jax.eval_shape(encoder.apply, params, inputs)
        pairs = jnp.zeros((*features.shape[:-1], 2 * features.shape[-1]), features.dtype)
        learned = trees.require_floats(comparer.init(comparer_key, pairs))
        return MetricMeta(params, (), learned)

    def predict(meta: MetricMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries, classes = encoder.apply(meta.params, inputs), class_means(fast)
        count, shape = queries.shape[0], queries.shape[1:]
        # All B N pairs at once, as one batch of the comparer.
        pairs = jnp.concatenate(
            [
                jnp.broadcast_to(classes, (count, ways, *shape)),
                jnp.broadcast_to(queries[:, None], (count, ways, *shape)),
            ],
            axis=-1,
        )
        scores = comparer.apply(meta.comparer, pairs.reshape(count * ways, *pairs.shape[2:]))
        return mask_absent(scores.reshape(count, ways), fast.counts)

    return Learner(init, *summing(features_by(encoder, "params"), ways), predict)


def relation_loss(outputs: Array, batch: Batch) -> Array:
    """Computes the squared error of relation scores: target 1 for the query's class, 0 for all others.

    Args:
      outputs: Float logits [B, N] of the scores.
      batch: Examples with labels [B] in [0, N); an example of weight zero may have any int.

    Returns:
      A scalar, eq. 2: the sum over classes, averaged over examples. NaN if a label is out of range.

    Example:
      >>> batch = metajax.Batch(None, jnp.array([0, 1]))
      >>> float(relation_loss(jnp.zeros((2, 2)), batch))  # every score is 1/2
      0.5

    Reference: Sung et al., 2018 (https://arxiv.org/abs/1711.06025), eq. 2.
    """
    chex.assert_rank(outputs, 2)
    examples, ways = outputs.shape
    check_labels(batch, ways, examples=examples)
    # At least float32: a score near one has no digits left in bfloat16.
    outputs = outputs.astype(trees.float_dtype(outputs))
    labels = one_hot(batch.targets, ways, outputs.dtype)
    errors = jnp.sum(jnp.square(jax.nn.sigmoid(outputs) - labels), axis=-1)
    return weighted_mean(errors, batch.weights) * one_or_nan(batch, ways, errors.dtype)
