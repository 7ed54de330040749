"""Comparisons of a learner with baselines on the same tasks, in words."""

import math

from scipy.special import stdtrit

from metajax.metrics import Summary


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


def of_few(difference: Summary, count: int) -> Summary:
    """Widens the interval of a mean of few differences to that of Student's t, for a verdict on it.

    Args:
      difference: Summary whose interval is 1.96 s / sqrt(T).
      count: Number of differences, with those that are left out.

    Returns:
      The summary with t s / sqrt(T), where t is 12.7 of two differences, 3.2 of four and 2.0 of many.
    """
    freedom = count - (difference.left_out or 0) - 1
    if difference.ci95 is None or freedom < 1:
        return difference
    return difference._replace(ci95=difference.ci95 * float(stdtrit(freedom, 0.975)) / 1.96)


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
