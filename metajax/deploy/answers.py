"""Answers of a classifier, and how good they are."""

from collections.abc import Mapping
from typing import NamedTuple


class Prediction(NamedTuple):
    """An answer.

    Attributes:
      label: Name of the most probable class.
      probability: Probability of that class.
      known: Whether that is at least the bundle's threshold; always True without one.
      probabilities: Probability of every class by name.
    """

    label: str
    probability: float
    known: bool
    probabilities: Mapping[str, float]


class Evaluation(NamedTuple):
    """Answers to examples whose classes are known.

    Attributes:
      accuracy: Share of right answers.
      ci95: Half width of its 95% interval over the examples.
      examples: Number of examples.
      by_class: Share of right answers by class.
    """

    accuracy: float
    ci95: float
    examples: int
    by_class: Mapping[str, float]
