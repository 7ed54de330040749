"""Shares of errors within intervals, as they are and as they are told."""

import numpy as np
import pytest

from experiments.reports import pictures
from experiments.reports.calibration import (
    NOMINAL,
    coverage,
    draw_reliability,
    measure_calibration,
)


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


def test_the_picture_of_reliability_has_a_line_for_each_side_of_the_temperature(
    tmp_path, monkeypatch
):
    before = {"confidence": [0.5, 0.9], "accuracy": [0.4, 0.7], "examples": [10.0, 30.0]}
    after = {"confidence": [0.45, 0.8], "accuracy": [0.4, 0.75], "examples": [12.0, 28.0]}
    bins, drawn, save = {"before": before, "after": after}, [], pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda f, path: drawn.append(f) or save(f, path))
    path = draw_reliability(tmp_path / "reliability.png", bins, title="two bins")
    assert path.stat().st_size > 0
    shares, counts = drawn[0].axes
    for line, points, found in zip(shares.lines[1:], counts.lines, (before, after), strict=True):
        np.testing.assert_array_equal(line.get_xydata().T, [found["confidence"], found["accuracy"]])
        np.testing.assert_array_equal(points.get_ydata(), found["examples"])
