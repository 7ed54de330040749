"""Shares of errors within intervals, as they are and as they are told."""

import numpy as np
import pytest

from experiments.reports.calibration import NOMINAL, coverage, measure_calibration


def test_coverage_is_nominal_for_normal_errors_and_less_where_deviations_are_too_small():
    errors, nominal = np.random.default_rng(0).normal(size=20_000), np.array([0.5, 0.9])
    np.testing.assert_allclose(coverage(errors, nominal), nominal, atol=0.01)
    # Twice the deviation: the interval of 90% then reaches to 0.822 deviations, which hold 58.9%.
    np.testing.assert_allclose(coverage(2 * errors, nominal)[1], 0.589, atol=0.01)


def test_calibration_is_the_distance_of_shares_over_all_tasks(tmp_path):
    covered = np.stack([NOMINAL + 0.03, NOMINAL - 0.01])
    measured = measure_calibration(tmp_path, covered, title="two tasks")
    assert measured["calibration_error"] == pytest.approx(0.01)
    assert measured["covered_by_90_percent"] == pytest.approx(0.91)
    assert (tmp_path / "calibration.png").stat().st_size > 0
