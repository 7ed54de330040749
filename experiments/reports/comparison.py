"""Comparisons of a learner with baselines on the same tasks, in words."""

import math


def with_width(value: float, width: float | None, *, sign: str = "") -> str:
    """Formats a number with half the width of its interval.

    Args:
      value: Number.
      width: Half the width; None or NaN for an unknown one.
      sign: "+" writes the sign of positive numbers too.

    Returns:
      Such as "0.8123 +- 0.0120".
    """
    words = f"{value:{sign}.4f}"
    return words if width is None or math.isnan(width) else f"{words} +- {width:.4f}"


def verdict(difference: float, width: float, *, lower: bool = False) -> str:
    """Names the better of two, where the interval of their difference excludes zero.

    Args:
      difference: Score of the learner less that of the baseline.
      width: Half the width of its interval.
      lower: Whether lower scores are better.

    Returns:
      "better", "worse" or "undecided", of the learner.
    """
    if not abs(difference) > width:
        return "undecided"
    return "better" if (difference < 0) == lower else "worse"
