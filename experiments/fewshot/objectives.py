"""What few-shot learners are trained and tested on, where that is not adapting and answering queries."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from experiments.fewshot.options import ATTACK_STEPS, FewshotSettings
from metajax.objectives.adversarial import Attack, adversarial_objective
from metajax.objectives.scoring import Scoring
from metajax.objectives.sequence import sequence_objective
from metajax.types import Learner, Objective

MakeObjective = Callable[[Learner], Objective]


def objectives_of(
    settings: FewshotSettings, scoring: Scoring, attack: Attack | None
) -> tuple[MakeObjective | None, MakeObjective | None]:
    """What makes the objectives of test and of training from a learner; None where they are the usual."""
    if settings.protocol == "sequence":
        make = functools.partial(sequence_objective, scoring=scoring, presentations=settings.shots)
        return make, make
    if attack is None:
        return None, None
    make = functools.partial(adversarial_objective, scoring=scoring, attack=attack)
    if settings.attack_on == "none":
        return make, None
    trained = functools.partial(
        make,
        scoring=dataclasses.replace(scoring, penalty=settings.penalty),
        attack_support=settings.attack_on in ("support", "both"),
        attack_query=settings.attack_on in ("query", "both"),
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
