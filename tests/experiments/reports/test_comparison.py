"""Comparisons of a learner with baselines, in words."""

import math

import numpy as np
import pytest

from experiments.reports.comparison import of_few, verdict
from metajax.metrics import Summary, mean_where_defined


def test_few_differences_have_the_interval_of_student():
    two = of_few(mean_where_defined(np.array([0.1, 0.3])), 2)
    assert two.ci95 == pytest.approx(math.tan(0.475 * math.pi) * 0.1, rel=1e-6)  # s / sqrt(2) = 0.1
    three = of_few(mean_where_defined(np.array([0.1, np.nan, 0.2, 0.3])), 4)
    assert three.ci95 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    many = of_few(Summary(0.1, ci95=0.196), 10_000)
    assert many.ci95 == pytest.approx(0.196, rel=1e-3)
    assert of_few(Summary(0.1, ci95=None), 5).ci95 is None


def test_a_verdict_needs_an_interval_without_zero():
    assert verdict(0.1, 0.05) == "better" and verdict(0.1, 0.05, lower=True) == "worse"
    assert verdict(0.1, 0.2) == verdict(0.1, math.nan) == "undecided"
