"""The estimator of the meta-gradient of an outer step, and the outer optimizer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

from metajax.inner.adjoints import ADJOINTS, Adjoint
from metajax.metagrads import backprop, evolution, pes, reptile, scheduled, switch_at
from metajax.objectives import (
    Scoring,
    annealed_weights,
    multi_step_objective,
    query_objective,
)
from metajax.train import running_averages
from metajax.types import Learner, MetaGrad, Objective, StatefulMetaGrad

from ..flags.learner import InnerLoop
from ..flags.plan import Outer
from .init_from import frozen_encoder, still_encoder
from .learners import inner_adjoint

MakeLearner = Callable[[int, Adjoint], Learner]


def meta_gradient(
    make_learner: MakeLearner,
    scoring: Scoring,
    inner: InnerLoop,
    outer: Outer,
    *,
    tasks_at_once: int | None,
    trained: Callable[[Learner], Objective] | None = None,
) -> MetaGrad | StatefulMetaGrad:
    """Makes the estimator of the meta-gradient.

    Args:
      make_learner: Function (inner steps, adjoint) -> the learner, all on the same meta-parameters.
      scoring: Outer loss, metrics and penalty; the number of queries answered together is that of `outer`.
      inner: The learner and its inner loop.
      outer: The estimator.
      tasks_at_once: Tasks vectorized together, as in `backprop`.
      trained: Function learner -> the objective of training; None is the loss of queries after adapting.

    Returns:
      The meta-gradient.
    """
    scoring = dataclasses.replace(scoring, chunk=outer.chunk)
    learner = make_learner(inner.steps, inner_adjoint(inner.adjoint))
    if outer.estimator == "reptile":
        return reptile(learner, scoring, tasks_at_once=tasks_at_once)
    if outer.estimator == "pes":
        return pes(
            learner,
            scoring,
            sigma=outer.sigma,
            unrolls=outer.unrolls,
            tasks_at_once=tasks_at_once,
        )
    estimate = functools.partial(backprop, tasks_at_once=tasks_at_once)
    if outer.estimator == "es":
        estimate = functools.partial(
            evolution, sigma=outer.sigma, pairs=outer.pairs, tasks_at_once=tasks_at_once
        )

    def of_objective(objective: Objective) -> MetaGrad:
        return estimate(_on_still_encoder(objective) if outer.freeze else objective)

    if trained:
        return of_objective(trained(learner))
    return _annealed(make_learner, scoring, inner, outer, of_objective)


def _annealed(
    make_learner: MakeLearner,
    scoring: Scoring,
    inner: InnerLoop,
    outer: Outer,
    of_objective: Callable[[Objective], MetaGrad],
) -> MetaGrad:
    """Makes the meta-gradient of queries after adapting, with what MAML++ changes over training."""

    def of_adjoint(adjoint: Adjoint) -> MetaGrad:
        learner = make_learner(inner.steps, adjoint)
        final = of_objective(query_objective(learner, scoring))
        if not outer.multi_step:
            return final
        weights = annealed_weights(inner.steps, over=outer.multi_step)
        every = functools.partial(
            multi_step_objective,
            make_learner(1, adjoint),
            scoring,
            recompute=adjoint.store != "all",
        )
        # Once the weights have arrived, the losses before the last are not worth their time.
        return switch_at(
            outer.multi_step,
            scheduled(lambda step: of_objective(every(weights=weights(step)))),
            final,
        )

    last = of_adjoint(inner_adjoint(inner.adjoint))
    if not outer.first_order_steps:
        return last
    return switch_at(outer.first_order_steps, of_adjoint(ADJOINTS["first_order"]), last)


def _on_still_encoder(objective: Objective) -> Objective:
    return lambda meta, key, task: objective(still_encoder(meta), key, task)


def outer_optimizer(outer: Outer, *, supervised: bool) -> optax.GradientTransformation:
    """Makes the outer optimizer, clipped and scheduled.

    Args:
      outer: Options of the optimizer.
      supervised: Whether gradients of leaves named `running` are moves of averages; see
        `metajax.train.running_averages`.

    Returns:
      An optax transformation.
    """
    rate: Any = outer.learning_rate
    last = outer.last_learning_rate
    if outer.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, outer.steps, alpha=last / rate)
    elif outer.schedule == "linear":
        rate = optax.linear_schedule(rate, last, outer.steps)
    clip = optax.clip(outer.clip) if outer.clip else optax.identity()
    optimizers = {"adam": optax.adam, "sgd": optax.sgd}
    optimizer = optax.chain(clip, optimizers[outer.optimizer](rate))
    if outer.freeze:
        optimizer = optax.chain(frozen_encoder(), optimizer)
    return running_averages(optimizer) if supervised else optimizer
