"""The networks that the flags of few-shot classification name, and what is made of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.fewshot.options import FewshotSettings, norm_policy
from experiments.flags.learner import inner_adjoint, learner_maker
from experiments.flags.settings import UsageError
from metajax.inner.adjoints import Adjoint
from metajax.learners.wrappers.dropout import with_dropout
from metajax.learners.wrappers.one_query import one_query_at_a_time
from metajax.losses import cross_entropy
from metajax.models import in_precision
from metajax.objectives.scoring import MetricFn, Scoring
from metajax.types import Array, Episode, Key, Learner, Meta, Metrics, Model, Objective
from metajax.zoo import models

_COMPARER_OPTIONS = ("filters", "norm", "kernels")
_OPTIONS = (*_COMPARER_OPTIONS, "patch", "drop_rate")


def build(settings: FewshotSettings, **options: Any) -> Model:
    """Builds the network that the flags name; the options are further ones of `models.build_model`."""
    flags = {name: getattr(settings, name) for name in _OPTIONS}
    model = models.build_model(settings.model, **flags, **options)
    return in_precision(model, jnp.dtype(settings.precision))


def check(settings: FewshotSettings, inputs: Array) -> None:
    """Raises UsageError where the network does not fit its options, or these images."""
    try:
        ingredients = _of_noise(settings, None)
        jax.eval_shape(ingredients["model"].init, jax.random.key(0), inputs)
    except ValueError as error:
        raise UsageError(f"--model={settings.model} does not fit: {error}") from error


def learner_maker_with_noise(settings: FewshotSettings, **parts: Any) -> Callable[..., Learner]:
    """Makes learners as `learner_maker` does, if the flags say so with dropout in training and one query at a
    time in validation and test.
    """

    def of_noise(noise: Key | None) -> Callable[..., Learner]:
        return learner_maker(settings, cross_entropy, **_of_noise(settings, noise), **parts)

    quiet = of_noise(None)

    def make(steps: int, adjoint: Adjoint, testing: bool = False) -> Learner:
        if testing and settings.beside_support:
            return one_query_at_a_time(quiet(steps, adjoint, testing=True))
        if testing or not settings.drop_rate:
            return quiet(steps, adjoint, testing=testing)
        return with_dropout(lambda noise: of_noise(noise)(steps, adjoint))

    return make


def reader_of_features(
    settings: FewshotSettings, **parts: Any
) -> tuple[Learner, Callable[[Meta, Array], Array]] | None:
    """Makes the learner of a sequence that takes features, and the function that encodes.

    Returns:
      Both, or None where the learner on inputs has to be taken: where more than an encoder reads inputs, or
      the encoder does not see each example by itself.
    """
    encoder_of = settings.entry.encoder_of
    if encoder_of is None or settings.drop_rate or norm_policy(settings) == "batch":
        return None
    networks = _of_noise(settings, None)
    encoder = networks["encoder"]
    networks["encoder"] = encoder._replace(apply=lambda params, features: features)
    make = learner_maker(settings, cross_entropy, **networks, **parts)

    def encode(meta: Meta, inputs: Array) -> Array:
        return encoder.apply(encoder_of(meta), inputs)

    return make(settings.inner_steps, inner_adjoint(settings)), encode


def classification(settings: FewshotSettings, metrics: Mapping[str, MetricFn]) -> Objective:
    """The objective of supervised training."""
    scoring = Scoring(cross_entropy, metrics)

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        noise = key if settings.drop_rate else None
        trainee = build(settings, outputs=None, training=True, noise=noise)
        classify = settings.entry.objective(trainee, scoring)
        return classify(meta, key, episode)  # which leaves the key alone

    return objective


def _of_noise(settings: FewshotSettings, noise: Key | None) -> dict[str, Model | None]:
    """The networks that a learner is made of."""
    maps = settings.learner == "relation"
    comparer = None
    if maps:
        flags = {name: getattr(settings, name) for name in _COMPARER_OPTIONS}
        comparer = in_precision(models.build_comparer(**flags), jnp.dtype(settings.precision))
    return {
        "model": build(settings, outputs=settings.ways, noise=noise),
        "encoder": build(settings, outputs=None, maps=maps, noise=noise),
        "comparer": comparer,
    }
