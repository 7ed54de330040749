"""From flags to what is trained: the estimator of the meta-gradient of an outer step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

from experiments.flags.learner import PAIRS, SIGMA, UNROLLS, inner_adjoint
from experiments.flags.training import TrainingSettings
from experiments.setup.init_from import frozen_encoder, still_encoder
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.metagrads.estimators import backprop, reptile, scheduled, switch_at
from metajax.metagrads.evolution_strategies import evolution, pes
from metajax.objectives.query import annealed_weights, multi_step_objective, query_objective
from metajax.objectives.scoring import Scoring
from metajax.train import running_averages
from metajax.types import Learner, MetaGrad, Objective, StatefulMetaGrad

MakeLearner = Callable[[int, Adjoint], Learner]


def meta_gradient(
    make_learner: MakeLearner,
    scoring: Scoring,
    settings: TrainingSettings,
    *,
    tasks_at_once: int | None,
    trained: Callable[[Learner], Objective] | None = None,
) -> MetaGrad | StatefulMetaGrad:
    """Makes the estimator that the flags name.

    Args:
      make_learner: (inner steps, adjoint) -> the learner, all on the same meta-parameters.
      scoring: Outer loss and metrics; chunks and penalty are those of the flags.
      settings: The flags.
      tasks_at_once: As in `backprop`.
      trained: learner -> the objective of training; None is the loss of queries after adapting.
    """
    scoring = chunked(scoring, settings, penalty=settings.penalty)
    learner = make_learner(settings.inner_steps, inner_adjoint(settings))
    if settings.estimator == "reptile":
        return reptile(learner, scoring, tasks_at_once=tasks_at_once)
    sigma = SIGMA if settings.es_sigma is None else settings.es_sigma
    if settings.estimator == "pes":
        unrolls = settings.pes_unrolls or UNROLLS
        return pes(learner, scoring, sigma=sigma, unrolls=unrolls, tasks_at_once=tasks_at_once)
    estimate = functools.partial(backprop, tasks_at_once=tasks_at_once)
    if settings.estimator == "es":
        pairs = settings.es_pairs or PAIRS
        estimate = functools.partial(
            evolution, sigma=sigma, pairs=pairs, tasks_at_once=tasks_at_once
        )

    def of_objective(objective: Objective) -> MetaGrad:
        return estimate(_on_still_encoder(objective) if settings.freeze else objective)

    if trained:
        return of_objective(trained(learner))
    return _annealed(make_learner, scoring, settings, of_objective)


def chunked(scoring: Scoring, settings: TrainingSettings, **more: Any) -> Scoring:
    """Puts the chunks of the flags into a scoring, and what else is given."""
    return dataclasses.replace(scoring, chunk=settings.queries_at_once or None, **more)


def multi_step_loss(settings: TrainingSettings) -> int:
    """Meta-steps over which the loss after every inner step counts; 0 where only the last ever does."""
    if settings.multi_step_loss is not None:
        return settings.multi_step_loss
    fits = settings.inner_steps > 1 and settings.estimator == "backprop"
    return settings.steps // 10 if settings.entry.multi_step and fits else 0


def _annealed(
    make_learner: MakeLearner,
    scoring: Scoring,
    settings: TrainingSettings,
    of_objective: Callable[[Objective], MetaGrad],
) -> MetaGrad:
    """Makes the meta-gradient of queries after adapting, with what the flags anneal."""

    def of_adjoint(adjoint: Adjoint) -> MetaGrad:
        learner = make_learner(settings.inner_steps, adjoint)
        final = of_objective(query_objective(learner, scoring))
        over = multi_step_loss(settings)
        if not over:
            return final
        weights = annealed_weights(settings.inner_steps, over=over)
        every = functools.partial(
            multi_step_objective,
            make_learner(1, adjoint),
            scoring,
            recompute=adjoint.store != "all",
        )
        # Once the weights have arrived, the losses before the last are not worth their time.
        return switch_at(
            over, scheduled(lambda step: of_objective(every(weights=weights(step)))), final
        )

    last = of_adjoint(inner_adjoint(settings))
    if not settings.first_order_steps:
        return last
    return switch_at(settings.first_order_steps, of_adjoint(ADJOINTS["first_order"]), last)


def _on_still_encoder(objective: Objective) -> Objective:
    return lambda meta, key, task: objective(still_encoder(meta), key, task)


def outer_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Makes the outer optimizer: clipped and scheduled as asked."""
    rate, end = settings.outer_lr, settings.outer_lr_end
    if settings.outer_schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, settings.steps, alpha=end / rate)
    elif settings.outer_schedule == "linear":
        rate = optax.linear_schedule(rate, end, settings.steps)
    clip = optax.clip(settings.clip) if settings.clip else optax.identity()
    optimizers = {"adam": optax.adam, "sgd": optax.sgd}
    optimizer = optax.chain(clip, optimizers[settings.outer_optimizer](rate))
    if settings.freeze:
        optimizer = optax.chain(frozen_encoder(), optimizer)
    return running_averages(optimizer) if settings.supervised else optimizer
