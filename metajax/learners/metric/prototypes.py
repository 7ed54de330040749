"""Prototypical networks: a class is the mean of its support features."""

from metajax.inner.scalars import Positive, as_positive
from metajax.learners.metric.base import DISTANCES, MetricMeta, require_ways, similarities
from metajax.learners.states import (
    ClassSums,
    class_means,
    exact,
    features_by,
    init_encoder,
    mask_absent,
    summing,
)
from metajax.types import Array, Key, Learner, Model, Tree


def protonet(
    encoder: Model,
    *,
    ways: int,
    distance: str = "euclidean",
    scale: float | Positive = 1.0,
) -> Learner[MetricMeta, ClassSums]:
    """Makes prototypical networks: logits compare a query with the mean support features of each class.

    Eq. 1 defines the prototype c_k of class k as the mean of its support features f(x); the logit of class k
    is -|f(query) - c_k|^2, eq. 2, times `scale`.

    Args:
      encoder: Network without a head, with features [B, D].
      ways: Number of classes N. Learners of different N share their meta-parameters: training at more ways
        than testing is common.
      distance: One of "euclidean", for minus the squared distance as in eq. 2, and "cosine", for the cosine.
      scale: Factor of the logits, an inverse temperature above 0; `metajax.learned(10.0)` learns it, starting
        at 10. Cosines need a scale of about 10.

    Returns:
      A learner with meta-parameters `MetricMeta` and fast state `ClassSums`. The logit of a class without
      examples is `states.ABSENT`.

    Raises:
      ValueError: If `ways` is below 1, or `distance` or `scale` is invalid.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = protonet(metajax.toys.toy_model(None), ways=3)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task).shape
      (12, 3)

    Reference: Snell et al., 2017 (https://arxiv.org/abs/1703.05175), eq. 1 and 2; learned scale, Oreshkin et
    al., 2018 (https://arxiv.org/abs/1805.10123), section 2.1.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; use one of {', '.join(DISTANCES)}.")
    require_ways(ways)
    encoder, factor = exact(encoder), as_positive(scale, name="scale")

    def init(key: Key, inputs: Tree) -> MetricMeta:
        params, _, dtype = init_encoder(encoder, key, inputs)
        return MetricMeta(params, factor.init(dtype))

    def predict(meta: MetricMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries = encoder.apply(meta.params, inputs)
        similar = similarities(queries, class_means(fast), distance=distance)
        return mask_absent(similar * factor.value(meta.scale), fast.counts)

    return Learner(init, *summing(features_by(encoder, "params"), ways), predict)
