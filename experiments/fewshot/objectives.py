"""What few-shot learners are trained and tested on, where that is not adapting and answering queries."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from metajax.objectives.adversarial import Attack, adversarial_objective
from metajax.objectives.scoring import Scoring
from metajax.objectives.sequence import sequence_objective
from metajax.types import Learner, Objective

from .options import ATTACK_STEPS, AdversaryOptions, FewshotPlan

MakeObjective = Callable[[Learner], Objective]


def objectives_of(
    plan: FewshotPlan, scoring: Scoring, attack: Attack | None
) -> tuple[MakeObjective | None, MakeObjective | None]:
    """Makes the functions from a learner to its objective in test and in training.

    Args:
      plan: The run.
      scoring: Outer loss and metrics.
      attack: Attack on images; None for none.

    Returns:
      Both functions; None for the usual objective, which scores queries after adapting.
    """
    episodes, adversary = plan.episodes, plan.adversary
    if episodes.protocol == "sequence":
        make = functools.partial(sequence_objective, scoring=scoring, presentations=episodes.shots)
        return make, make
    if attack is None:
        return None, None
    make = functools.partial(adversarial_objective, scoring=scoring, attack=attack)
    if adversary.attack_on == "none":
        return make, None
    trained = functools.partial(
        make,
        scoring=dataclasses.replace(scoring, penalty=plan.penalty),
        attack_support=adversary.attack_on in ("support", "both"),
        attack_query=adversary.attack_on in ("query", "both"),
    )
    # Which of the losses is the objective matters to training alone.
    return make, trained


def make_attack(adversary: AdversaryOptions, statistics: tuple[Any, Any]) -> Attack | None:
    """Makes an attack on normalized pixels.

    Args:
      adversary: Options of adversarial images.
      statistics: Mean and scale that pixels are normalized by.

    Returns:
      The attack; None for none.
    """
    if adversary.attack == "none":
        return None
    mean, scale = statistics
    return Attack(
        epsilon=adversary.attack_epsilon / scale,
        steps=ATTACK_STEPS if adversary.attack == "pgd" else 1,
        low=-mean / scale,
        high=(1 - mean) / scale,
    )
