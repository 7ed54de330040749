"""From flags to what is trained: the objective of an outer step, and the estimator of its meta-gradient."""

import functools
from collections.abc import Callable, Mapping

from experiments.init_from import still_encoder
from experiments.learner_options import PAIRS, SIGMA, UNROLLS, inner_adjoint
from experiments.options import TrainingSettings
from metajax.evolution import evolution, pes
from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.metagrad import backprop, reptile
from metajax.objectives import (
    MetricFn,
    annealed_weights,
    at_step,
    multi_step_objective,
    query_objective,
    switch_at,
)
from metajax.types import (
    AnyObjective,
    Array,
    Learner,
    LossFn,
    MetaGrad,
    Objective,
    Scheduled,
    StatefulMetaGrad,
)


def training_objective(
    make_learner: Callable[[int, Adjoint], Learner],
    loss: LossFn,
    metrics: Mapping[str, MetricFn],
    settings: TrainingSettings,
) -> AnyObjective:
    """Makes the objective that the flags name.

    Args:
      make_learner: (inner steps, adjoint) -> the learner, all on the same meta-parameters.
      loss: the outer loss.
      metrics: reported beside it.
      settings: the flags.
    """
    options = {"metrics": metrics, "queries_at_once": settings.queries_at_once or None}
    penalty = settings.penalty

    def of_adjoint(adjoint: Adjoint) -> AnyObjective:
        learner = make_learner(settings.inner_steps, adjoint)
        final = query_objective(learner, loss, penalty=penalty, **options)
        over = multi_step_loss(settings)
        if not over:
            return final
        weights = annealed_weights(settings.inner_steps, over=over)
        every = multi_step_objective(
            make_learner(1, adjoint),
            loss,
            weights=weights,
            recompute=adjoint.store != "all",
            **options,
        )
        # Once the weights have arrived, the losses before the last are not worth their time.
        return switch_at(over, every, final)

    objective = of_adjoint(inner_adjoint(settings))
    if not settings.first_order_steps:
        return objective
    return switch_at(settings.first_order_steps, of_adjoint(ADJOINTS["first_order"]), objective)


def multi_step_loss(settings: TrainingSettings) -> int:
    """Meta-steps over which the loss after every inner step counts; 0 where only the last ever does."""
    if settings.multi_step_loss is not None:
        return settings.multi_step_loss
    fits = settings.inner_steps > 1 and settings.estimator == "backprop"
    return settings.steps // 10 if settings.entry.multi_step and fits else 0


def meta_gradient(
    make_learner: Callable[[int, Adjoint], Learner],
    loss: LossFn,
    metrics: Mapping[str, MetricFn],
    settings: TrainingSettings,
    *,
    tasks_at_once: int | None,
    trained: Callable[[Learner], Objective] | None = None,
) -> MetaGrad | StatefulMetaGrad:
    """Makes the estimator that the flags name.

    The arguments are those of `training_objective`; `trained` makes what is trained on instead of a learner.
    """
    learner = make_learner(settings.inner_steps, inner_adjoint(settings))
    queries_at_once = settings.queries_at_once or None
    options = {"metrics": metrics, "queries_at_once": queries_at_once}
    if settings.estimator == "reptile":
        return reptile(learner, loss, tasks_at_once=tasks_at_once, **options)
    sigma = SIGMA if settings.es_sigma is None else settings.es_sigma
    if settings.estimator == "pes":
        return pes(
            learner,
            loss,
            sigma=sigma,
            unrolls=settings.pes_unrolls or UNROLLS,
            penalty=settings.penalty,
            tasks_at_once=tasks_at_once,
            **options,
        )
    usual = functools.partial(training_objective, make_learner, loss, metrics, settings)
    objective = trained(learner) if trained else usual()
    if settings.estimator == "es":
        return evolution(
            objective,
            sigma=sigma,
            pairs=settings.es_pairs or PAIRS,
            tasks_at_once=tasks_at_once,
        )
    if settings.freeze:
        objective = _on_still_encoder(objective)
    return backprop(objective, tasks_at_once=tasks_at_once)


def _on_still_encoder(objective: AnyObjective) -> AnyObjective:
    def at(step: Array | None) -> Objective:
        now = at_step(objective, step)
        return lambda meta, *of_task: now(still_encoder(meta), *of_task)

    return Scheduled(at)
