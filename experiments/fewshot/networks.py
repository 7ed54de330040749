"""The networks that the flags of few-shot classification name, and what is made of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax.inner.adjoints import Adjoint
from metajax.learners.wrappers.dropout import with_dropout
from metajax.learners.wrappers.one_query import one_query_at_a_time
from metajax.losses import cross_entropy
from metajax.models import in_precision
from metajax.objectives.scoring import MetricFn, Scoring
from metajax.types import Array, Episode, Key, Learner, Meta, Metrics, Model, Objective
from metajax.zoo import models
from metajax.zoo.row_models import ROW_MODELS

from ..flags.settings import UsageError
from ..setup.learners import inner_adjoint, learner_maker
from .options import FewshotPlan

_COMPARER_OPTIONS = ("filters", "norm", "implementation")


def build(plan: FewshotPlan, **options: Any) -> Model:
    """Builds the network.

    Args:
      plan: The run.
      **options: Further options of `metajax.zoo.build_model`.

    Returns:
      The model, in the precision of the run.
    """
    model = models.build_model(plan.network.model, **plan.network.network_options, **options)
    return in_precision(model, jnp.dtype(plan.common.training.precision))


def check_reads_images(model: str) -> None:
    """Raises UsageError for a network of rows of tables."""
    if model in ROW_MODELS and ROW_MODELS[model].reads == "pictures":
        raise UsageError(
            f"--model={model} reads the vectors of a frozen encoder; name one by --encoder."
        )
    if model in ROW_MODELS:
        raise UsageError(
            f"--model={model} reads {ROW_MODELS[model].reads} of tables, and these are images; use one of "
            f"{', '.join(models.MODELS)}."
        )


def check(plan: FewshotPlan, inputs: Array) -> None:
    """Raises UsageError where the network does not fit its options, or these images."""
    try:
        ingredients = _of_noise(plan, None)
        jax.eval_shape(ingredients["model"].init, jax.random.key(0), inputs)
    except ValueError as error:
        raise UsageError(f"--model={plan.network.model} does not fit: {error}") from error


def learner_maker_with_noise(plan: FewshotPlan, **parts: Any) -> Callable[..., Learner]:
    """Makes a function that makes learners, with dropout in training or one query at a time in test.

    Args:
      plan: The run.
      **parts: Further parts of learners, as in `learner_maker`.

    Returns:
      Function (inner steps, adjoint, testing=False) -> learner.
    """

    def of_noise(noise: Key | None) -> Callable[..., Learner]:
        return learner_maker(plan.common.inner, cross_entropy, **_of_noise(plan, noise), **parts)

    quiet = of_noise(None)

    def make(steps: int, adjoint: Adjoint, testing: bool = False) -> Learner:
        if testing and plan.episodes.one_query_at_a_time:
            return one_query_at_a_time(quiet(steps, adjoint, testing=True))
        if testing or not plan.drop_rate:
            return quiet(steps, adjoint, testing=testing)
        return with_dropout(lambda noise: of_noise(noise)(steps, adjoint))

    return make


def reader_of_features(
    plan: FewshotPlan, **parts: Any
) -> tuple[Learner, Callable[[Meta, Array], Array]] | None:
    """Makes the learner of a sequence that takes features, and the function that encodes.

    Args:
      plan: The run.
      **parts: Further parts of the learner, as in `learner_maker`.

    Returns:
      Both, or None where the learner on inputs has to be taken: where more than an encoder reads inputs, or
      the encoder does not see each example by itself.
    """
    inner = plan.common.inner
    encoder_of = inner.entry.encoder_of
    if encoder_of is None or plan.drop_rate or plan.network.norm_policy == "batch":
        return None
    networks = _of_noise(plan, None)
    encoder = networks["encoder"]
    networks["encoder"] = encoder._replace(apply=lambda params, features: features)
    make = learner_maker(inner, cross_entropy, **networks, **parts)

    def encode(meta: Meta, inputs: Array) -> Array:
        return encoder.apply(encoder_of(meta), inputs)

    return make(inner.steps, inner_adjoint(inner.adjoint)), encode


def classification(plan: FewshotPlan, metrics: Mapping[str, MetricFn]) -> Objective:
    """Makes the objective of supervised training.

    Args:
      plan: The run.
      metrics: Metric by name.

    Returns:
      Objective of batches of single images.
    """
    scoring = Scoring(cross_entropy, metrics)

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        noise = key if plan.drop_rate else None
        trainee = build(plan, outputs=None, training=True, noise=noise)
        classify = plan.common.inner.entry.objective(trainee, scoring)
        return classify(meta, key, episode)  # which leaves the key alone

    return objective


def _of_noise(plan: FewshotPlan, noise: Key | None) -> dict[str, Model | None]:
    """Builds the networks of a learner, with dropout by a key of noise."""
    maps = plan.common.inner.learner == "relation"
    comparer = None
    if maps:
        options = plan.network.network_options
        shared = {name: options.get(name) for name in _COMPARER_OPTIONS}
        precision = jnp.dtype(plan.common.training.precision)
        comparer = in_precision(models.build_comparer(**shared), precision)
    return {
        "model": build(plan, outputs=plan.episodes.ways, noise=noise),
        "encoder": build(plan, outputs=None, maps=maps, noise=noise),
        "comparer": comparer,
    }
