"""Transfer baselines: an encoder trained to tell all training classes apart, and a head for each task.

Their training is supervised: `classification_objective` scores batches of single images of all training
classes, such as `episodes.batches.BatchSampler` draws. All of them learn a `BaselineMeta`, so that what was
trained once serves every learner here of the same classifier, linear or cosine.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.learners.gradient.base import GradientMeta, gradient_learner
from metajax.learners.metric.comparing import similarities
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
    """A linear or cosine classifier: a row a class [N, D], and what is added [N]."""

    rows: Array
    bias: Array


class BaselineMeta(NamedTuple):
    """What pre-training learns.

    Attributes:
      encoder: its params.
      classifier: of all training classes.
      running: `centre` [D], the running mean of training features. Train under `running_averages`.
    """

    encoder: Params
    classifier: Head
    running: Mapping[str, Array]


def cosine_scale(classes: int) -> float:
    """What Baseline++ multiplies cosines by, as its authors' code does: 2 for up to 200 classes, else 10."""
    return 2.0 if classes <= 200 else 10.0


def logits_of(head: Head, features: Array, *, cosine: bool) -> Array:
    """Logits [B, N] of features [B, D]: linear, or scaled cosines, section 3.2 of Chen et al."""
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
    """Scores the classifier of all training classes on the query set, which holds images of any class.

    Args:
      trainee: the encoder in training, whose `apply` gives features [B, D] and the pull of its running
        averages, as `models.build_model(..., training=True)` does.
      scoring: Loss and metrics of logits, as in `query_objective`; its penalty is given no fast state.
      cosine: whether the classifier is that of Baseline++.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`, meta being a `BaselineMeta`. The gradient of what runs is the
      average less what the batch has, which `running_averages` understands; the value has no part of it.
    """
    scoring = as_scoring(scoring)

    def objective(meta: BaselineMeta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        del key
        features, pull = trainee.apply(meta.encoder, episode.query.inputs)
        centre = jax.lax.stop_gradient(jnp.mean(features, axis=0))
        pull += jnp.sum(jnp.square(meta.running["centre"] - centre)) / 2
        logits = logits_of(meta.classifier, features, cosine=cosine)
        values = scoring.penalise(scoring.measure(logits, episode.query), meta, None)
        return scoring.total(values) + (pull - jax.lax.stop_gradient(pull)), values

    return objective


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
    """Fits a head to features of the frozen encoder by gradient descent: Baseline, or Baseline++ if cosine.

    A linear head starts from zero, and that of cosines at random.

    Args:
      encoder: gives features [B, D], without a head.
      loss: of the head.
      ways: N of a task.
      classes: C, those of pre-training.
      steps: of fine-tuning, a call of `adapt`; momentum 0.9 with as much dampening, weight decay 0.001.
        Adapting in pieces takes as many steps on each piece.
      learning_rate: their size.
      minibatch: support examples a step sees.
      cosine: logits are scaled cosines of features and rows.

    Returns:
      A learner with `BaselineMeta`, and the fast state of `gradient_learner`. Train it on
      `classification_objective`: nothing flows through the fine-tuning to the encoder.

    Reference: Chen et al., 2019 (https://arxiv.org/abs/1904.04232), section 3.2.
    """

    encoder = exact(encoder)

    def new_head(key: Key, features: int, dtype: Any) -> Head:
        # Of a linear head what is random is noise, which so few small steps do not take back: in 300
        # validation tasks of Tiny ImageNet, 5-way 1-shot, 39.4% instead of 32.0 on the same encoder. Cosines
        # need a direction, and turn the faster the shorter their rows are, which are as in the paper's code.
        rows = jnp.zeros((ways, features), dtype)
        if cosine:
            limit = features**-0.5
            rows = jax.random.uniform(key, rows.shape, dtype, -limit, limit)
        return Head(rows, jnp.zeros(ways, dtype))

    head = Model(
        init=lambda key, features: new_head(key, features.shape[1], features.dtype),
        apply=lambda rows, features: logits_of(rows, features, cosine=cosine),
    )
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
        # A minibatch may not see the label that is out of range.
        shown = batch._replace(inputs=features * one_or_nan(batch, ways, features.dtype))
        return inner.adapt(GradientMeta(fast.params, ()), fast, key, shown)

    def predict(meta: BaselineMeta, fast: Fast, inputs: Tree) -> Array:
        return head.apply(fast.params, encoder.apply(meta.encoder, inputs))

    return Learner(_init(encoder, classes), start, adapt, predict, inner.adapted)


def linear_probe(
    encoder: Model, *, ways: int, classes: int, regularization: float = 1.0, steps: int = 10
) -> Learner[BaselineMeta, Kept]:
    """Fits a logistic regression, each class against the others, to centred features of length one.

    Args:
      encoder: gives features [B, D], without a head.
      ways: N of a task.
      classes: C, those of pre-training.
      regularization: of its regularisation, as of `heads.logistic`.
      steps: Newton's.

    Returns:
      A learner with `BaselineMeta` and `Kept`, which has made the head [D, N]. Adapting again fits all
      examples so far.

    Reference: Tian et al., 2020 (https://arxiv.org/abs/2003.11539), section 3.2.
    """
    solve, features_of = logistic(steps), functools.partial(_centred, exact(encoder))

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
    """Nearest class mean of centred features of length one (CL2N).

    Args:
      encoder: gives features [B, D], without a head.
      ways: N of a task.
      classes: C, those of pre-training.
      refine: how often prototypes are moved to the mean of support and queries, these by the probabilities
        they have. Above 0 an answer depends on the other queries: it is transductive.

    Returns:
      A learner with `BaselineMeta` and `ClassSums`.

    Reference: Wang et al., 2019 (https://arxiv.org/abs/1911.04623), section 2; refinement, Ren et al., 2018
    (https://arxiv.org/abs/1803.00676), eq. 4.
    """
    if refine < 0:
        raise ValueError(f"refine is {refine}; use 0 or more.")
    features_of = functools.partial(_centred, exact(encoder))

    def predict(meta: BaselineMeta, fast: ClassSums, inputs: Tree) -> Array:
        queries = features_of(meta, inputs)

        def logits(sums: ClassSums) -> Array:
            similar = similarities(queries, class_means(sums), distance="euclidean")
            return mask_absent(similar, fast.counts)

        def moved(sums: ClassSums, _: Any) -> tuple[ClassSums, None]:
            shares = jax.nn.softmax(logits(sums))
            return ClassSums(fast.sums + shares.T @ queries, fast.counts + shares.sum(0)), None

        sums, _ = jax.lax.scan(moved, fast, length=refine)
        return logits(sums)

    return Learner(_init(exact(encoder), classes), *summing(features_of, ways), predict)


def _init(encoder: Model, classes: int) -> Callable[[Key, Tree], BaselineMeta]:
    def init(key: Key, inputs: Tree) -> BaselineMeta:
        encoder_key, head_key = jax.random.split(key)
        params, dim, dtype = init_encoder(encoder, encoder_key, inputs)
        rows = jax.nn.initializers.glorot_uniform()(head_key, (classes, dim), dtype)
        head = Head(rows, jnp.zeros(classes, dtype))
        return BaselineMeta(params, head, {"centre": jnp.zeros(dim, dtype)})

    return init


def _centred(encoder: Model, meta: BaselineMeta, inputs: Tree) -> Array:
    """Features [B, D] less the centre, of length one."""
    return unit(encoder.apply(meta.encoder, inputs) - meta.running["centre"])
