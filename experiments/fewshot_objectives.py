"""What few-shot learners are trained and tested on, where that is not adapting and answering queries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.fewshot_options import ATTACK_STEPS, FewshotSettings
from metajax.adversarial import Attack, adversarial_objective
from metajax.objectives import MetricFn
from metajax.sequences import sequence_objective
from metajax.types import Learner, LossFn, Objective

MakeObjective = Callable[[Learner], Objective]


def objectives_of(
    settings: FewshotSettings, loss: LossFn, metrics: Mapping[str, MetricFn], attack: Attack | None
) -> tuple[MakeObjective | None, MakeObjective | None]:
    """What makes the objectives of test and of training from a learner; None where they are the usual."""
    if settings.protocol == "sequence":
        make = functools.partial(
            sequence_objective, loss=loss, presentations=settings.shots, metrics=metrics
        )
        return make, make
    if attack is None:
        return None, None
    make = functools.partial(adversarial_objective, loss=loss, attack=attack, metrics=metrics)
    if settings.attack_on == "none":
        return make, None
    trained = functools.partial(
        make,
        support=settings.attack_on in ("support", "both"),
        query=settings.attack_on in ("query", "both"),
        penalty=settings.penalty,
    )
    # Which of the losses is the objective matters to training alone.
    return make, trained


def make_attack(settings: FewshotSettings, statistics: tuple[Any, Any]) -> Attack | None:
    """Makes the attack that the flags name, in units of pixels normalised by these statistics."""
    if settings.attack == "none":
        return None
    mean, scale = statistics
    return Attack(
        epsilon=settings.attack_epsilon / scale,
        steps=ATTACK_STEPS if settings.attack == "pgd" else 1,
        low=-mean / scale,
        high=(1 - mean) / scale,
    )
