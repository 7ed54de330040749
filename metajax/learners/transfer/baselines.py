"""Transfer baselines: an encoder pre-trained to classify all training classes, and a head per task.

Pre-training is supervised: `classification_objective` scores batches of single images of all training
classes, such as `episodes.batches.BatchSampler` draws. All learners here have meta-parameters `BaselineMeta`,
so one pre-trained encoder serves every learner with the same kind of classifier, linear or cosine. The letter
`P` is the number of pre-training classes.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.deprecation import renamed_arguments
from metajax.learners.gradient.base import GradientMeta, gradient_learner
from metajax.learners.metric.base import similarities
from metajax.learners.metric.heads import logistic
from metajax.learners.states import (
    ClassSums,
    Examples,
    Kept,
    check_batch,
    class_means,
    counts_of,
    exact,
    init_encoder,
    keeping,
    mask_absent,
    summing,
    unit,
)
from metajax.losses import one_hot, one_or_nan
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Batch,
    Episode,
    Fast,
    InitFn,
    Key,
    Learner,
    LossFn,
    Metrics,
    Model,
    Objective,
    Params,
    Tree,
)


class Head(NamedTuple):
    """Linear or cosine classifier.

    Attributes:
      rows: Weights [N, D], one row per class.
      bias: Biases [N]; unused by a cosine classifier.
    """

    rows: Array
    bias: Array


class BaselineMeta(NamedTuple):
    """Meta-parameters of transfer baselines.

    Attributes:
      encoder: Parameters of the encoder.
      classifier: Classifier of all P training classes.
      running: Running mean [D] of the training features, under the key `centre`; the optimizer must be
        wrapped in `train.running_averages`.
    """

    encoder: Params
    classifier: Head
    running: Mapping[str, Array]


def cosine_scale(classes: int) -> float:
    """Returns the factor of cosines in Baseline++, as in its authors' code.

    Args:
      classes: Number of classes.

    Returns:
      2 for up to 200 classes, else 10.
    """
    return 2.0 if classes <= 200 else 10.0


def logits_of(head: Head, features: Array, *, cosine: bool) -> Array:
    """Computes the logits of a linear or cosine classifier.

    Args:
      head: Classifier of N classes.
      features: Float features [B, D].
      cosine: Whether logits are scaled cosines, as in Baseline++, instead of linear.

    Returns:
      Logits [B, N].

    Reference: Chen et al., 2019 (https://arxiv.org/abs/1904.04232), section 3.2.
    """
    chex.assert_rank([features, head.rows], 2)
    if cosine:
        scale = cosine_scale(len(head.rows))
        return scale * similarities(features, head.rows, distance="cosine")
    return features @ head.rows.T + head.bias


def classification_objective(
    trainee: Model,
    scoring: Scoring | LossFn,
    *,
    cosine: bool = False,
) -> Objective:
    """Makes the objective of supervised pre-training: it classifies query images among all training classes.

    Args:
      trainee: Encoder in training mode: its `apply` returns features [B, D] and the pull of its running
        averages, a scalar, as `zoo.build_model(..., training=True)` does.
      scoring: Loss and metrics of logits [B, P], as in `query_objective`, or a loss alone. A penalty is
        called with None as the fast state.
      cosine: Whether the classifier is the cosine classifier of Baseline++.

    Returns:
      An objective (meta, key, episode) -> (loss, metrics), where meta is a `BaselineMeta` and only
      `episode.query` is read. The gradient with respect to a running average is the average minus its value
      in the batch, which `train.running_averages` expects; the value of the loss does not include this term.

    Example:
      >>> encoder, task = metajax.toys.toy_model(None), metajax.toys.toy_episode(jax.random.key(0))
      >>> trainee = encoder._replace(apply=lambda params, inputs: (encoder.apply(params, inputs), 0.0))
      >>> objective = classification_objective(trainee, metajax.cross_entropy)
      >>> learner = metajax.learners.simpleshot(encoder, ways=3, classes=6)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.query.inputs)
      >>> loss, metrics = jax.eval_shape(objective, meta, jax.random.key(2), task)
      >>> loss.shape, list(metrics)
      ((), ['loss'])
    """
    scoring = as_scoring(scoring)

    def objective(meta: BaselineMeta, key: Key, task: Episode) -> tuple[Array, Metrics]:
        del key
        features, pull = trainee.apply(meta.encoder, task.query.inputs)
        # d/dr |r - c|^2 / 2 = r - c: a step of size 1 - decay along it is an exponential moving average.
        centre = jax.lax.stop_gradient(jnp.mean(features, axis=0))
        pull += jnp.sum(jnp.square(meta.running["centre"] - centre)) / 2
        logits = logits_of(meta.classifier, features, cosine=cosine)
        values = scoring.penalize(scoring.measure(logits, task.query), meta, None)
        # Zero in value: only the gradient of the pull counts.
        return scoring.total(values) + (pull - jax.lax.stop_gradient(pull)), values

    return objective


@renamed_arguments(rate="learning_rate")
def baseline(
    encoder: Model,
    loss: LossFn,
    *,
    ways: int,
    classes: int,
    steps: int = 100,
    learning_rate: float = 0.01,
    minibatch: int | None = 4,
    cosine: bool = False,
) -> Learner[BaselineMeta, Fast]:
    """Fits a head to features of the frozen encoder by gradient descent: Baseline, or Baseline++.

    Fine-tuning uses a momentum of 0.9 with a dampening of 0.9, and a weight decay of 0.001. A linear head
    starts at zero, a cosine head at random.

    Args:
      encoder: Network without a head, with features [B, D].
      loss: Loss of the head.
      ways: Number of classes N of a task.
      classes: Number of pre-training classes P.
      steps: Number of fine-tuning steps per call of `adapt`. Adapting piece by piece takes as many on each
        piece.
      learning_rate: Step size of fine-tuning.
      minibatch: Number of support examples per step; None for all.
      cosine: Whether logits are scaled cosines of features and weights: Baseline++.

    Returns:
      A learner with meta-parameters `BaselineMeta` and the fast state of `gradient_learner`. Train it on
      `classification_objective`: no gradient flows through fine-tuning to the encoder.

    Example:
      >>> task, encoder = metajax.toys.toy_episode(jax.random.key(0)), metajax.toys.toy_model(None)
      >>> learner = baseline(encoder, metajax.cross_entropy, ways=3, classes=64, steps=10)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Chen et al., 2019 (https://arxiv.org/abs/1904.04232), section 3.2.
    """

    encoder = exact(encoder)

    def new_head(key: Key, features: int, dtype: Any) -> Head:
        # A random linear head is noise that so few small steps do not remove. With zeros, accuracy on 300
        # validation tasks of Tiny ImageNet, 5-way 1-shot, was 39.4% instead of 32.0% on the same encoder. A
        # cosine head needs a direction, and turns faster if its rows are short: uniform as in the paper's
        # code.
        rows = jnp.zeros((ways, features), dtype)
        if cosine:
            limit = features**-0.5
            rows = jax.random.uniform(key, rows.shape, dtype, -limit, limit)
        return Head(rows, jnp.zeros(ways, dtype))

    head = Model(
        init=lambda key, features: new_head(key, features.shape[1], features.dtype),
        apply=lambda rows, features: logits_of(rows, features, cosine=cosine),
    )
    # optax.ema(0.9) is momentum with dampening: v <- 0.9 v + 0.1 g.
    rule = optax.chain(
        optax.add_decayed_weights(1e-3), optax.ema(0.9, debias=False), optax.sgd(learning_rate)
    )
    inner = gradient_learner(head, loss, rule=rule, steps=steps, minibatch=minibatch)

    def start(meta: BaselineMeta, key: Key, like: Batch | None = None) -> Fast:
        del like
        rows = meta.classifier.rows
        return inner.start(GradientMeta(new_head(key, rows.shape[1], rows.dtype), ()), key)

    def adapt(meta: BaselineMeta, fast: Fast, key: Key, batch: Batch) -> Fast:
        check_batch(batch, ways)
        features = jax.lax.stop_gradient(encoder.apply(meta.encoder, batch.inputs))
        # A label out of range must make the loss NaN even if no minibatch contains it.
        shown = batch._replace(inputs=features * one_or_nan(batch, ways, features.dtype))
        return inner.adapt(GradientMeta(fast.params, ()), fast, key, shown)

    def predict(meta: BaselineMeta, fast: Fast, inputs: Tree) -> Array:
        return head.apply(fast.params, encoder.apply(meta.encoder, inputs))

    return Learner(_init(encoder, classes), start, adapt, predict, inner.adapted)


@renamed_arguments(strength="regularization")
def linear_probe(
    encoder: Model, *, ways: int, classes: int, regularization: float = 1.0, steps: int = 10
) -> Learner[BaselineMeta, Kept]:
    """Fits a logistic regression, each class against all others, to centered unit-length features.

    Args:
      encoder: Network without a head, with features [B, D].
      ways: Number of classes N of a task.
      classes: Number of pre-training classes P.
      regularization: Weight of the penalty, as in `logistic`, above 0.
      steps: Number of Newton steps.

    Returns:
      A learner with meta-parameters `BaselineMeta` and fast state `Kept`, whose `made` is the head [D, N].
      Adapting again fits all examples so far. Train it on `classification_objective`.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = linear_probe(metajax.toys.toy_model(None), ways=3, classes=64)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Tian et al., 2020 (https://arxiv.org/abs/2003.11539), section 3.2.
    """
    solve, features_of = logistic(steps), functools.partial(_centered, exact(encoder))

    def fit(meta: BaselineMeta, key: Key, examples: Examples) -> Array:
        del meta, key
        labels = one_hot(examples.targets, ways, examples.features.dtype)
        return solve(examples.features, labels, examples.weights, regularization)

    def predict(meta: BaselineMeta, fast: Kept, inputs: Tree) -> Array:
        return mask_absent(features_of(meta, inputs) @ fast.made, counts_of(fast.examples, ways))

    return Learner(_init(exact(encoder), classes), *keeping(features_of, ways, fit), predict)


def simpleshot(
    encoder: Model, *, ways: int, classes: int, refine: int = 0
) -> Learner[BaselineMeta, ClassSums]:
    """Predicts the class of the nearest mean of centered unit-length features (CL2N).

    Args:
      encoder: Network without a head, with features [B, D].
      ways: Number of classes N of a task.
      classes: Number of pre-training classes P.
      refine: Number of times that each class mean is recomputed from support and queries, where a query
        counts with its class probabilities. Above 0, predictions depend on the other queries: they are
        transductive.

    Returns:
      A learner with meta-parameters `BaselineMeta` and fast state `ClassSums`. Train it on
      `classification_objective`.

    Raises:
      ValueError: If `refine` is negative.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> learner = simpleshot(metajax.toys.toy_model(None), ways=3, classes=64)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)

    Reference: Wang et al., 2019 (https://arxiv.org/abs/1911.04623), section 2; refinement, Ren et al., 2018
    (https://arxiv.org/abs/1803.00676), eq. 4.
    """
    if refine < 0:
        raise ValueError(f"refine is {refine}; use 0 or more.")
    features_of = functools.partial(_centered, exact(encoder))

    def predict(meta: BaselineMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries = features_of(meta, inputs)

        def logits(sums: ClassSums) -> Array:
            similar = similarities(queries, class_means(sums), distance="euclidean")
            return mask_absent(similar, fast.counts)

        def moved(sums: ClassSums, _: Any) -> tuple[ClassSums, None]:
            # Soft k-means, eq. 4 of Ren et al.
            shares = jax.nn.softmax(logits(sums))
            return ClassSums(fast.sums + shares.T @ queries, fast.counts + shares.sum(0)), None

        sums, _ = jax.lax.scan(moved, fast, length=refine)
        return logits(sums)

    return Learner(_init(exact(encoder), classes), *summing(features_of, ways), predict)


def _init(encoder: Model, classes: int) -> InitFn:
    """Makes the `init` of an encoder and a classifier of all training classes."""

    def init(key: Key, inputs: Tree) -> BaselineMeta:
        encoder_key, head_key = jax.random.split(key)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        rows = jax.nn.initializers.glorot_uniform()(head_key, (classes, dim), dtype)
        head = Head(rows, jnp.zeros(classes, dtype))
        return BaselineMeta(params, head, {"centre": jnp.zeros(dim, dtype)})

    return init


def _centered(encoder: Model, meta: BaselineMeta, inputs: Tree) -> Array:
    """Computes features [B, D] minus their mean in training, scaled to unit length."""
    return unit(encoder.apply(meta.encoder, inputs) - meta.running["centre"])
