"""Temperature, threshold and scores against closed forms, a grid and scikit-learn."""

import numpy as np
import pytest

from metajax.deploy.calibration import (
    COLDEST,
    calibration_scores,
    fit_temperature,
    known_threshold,
    reliability,
    separation,
    softmax,
)
from metajax.errors import DataError


def drawn(temperature, count=20_000, ways=5, seed=0):
    """Draws logits and labels whose probabilities are right at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, ways)) * 3
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.5])
def test_the_temperature_of_the_labels_is_found(temperature):
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    np.testing.assert_allclose(found, temperature, rtol=0.03)
    grid = temperature * np.exp(np.linspace(-0.1, 0.1, 81))
    losses = [calibration_scores(logits, labels, temperature=t)["nll"] for t in grid]
    np.testing.assert_allclose(found, grid[np.argmin(losses)], rtol=0.004)


def test_two_classes_have_a_closed_form():
    # Logits +-1: right with the probability 1 / (1 + exp(-2 / T)), which the smoothed share of hits sets.
    logits = np.tile([[1.0, -1.0]], (10, 1))
    labels = np.array([0] * 8 + [1] * 2)
    share = 0.8 * (10 / 11) + 0.5 / 11
    np.testing.assert_allclose(fit_temperature(logits, labels), 2 / np.log(share / (1 - share)))
    assert COLDEST < fit_temperature(logits, np.zeros(10, int)) < 1  # always right, and finite


def test_the_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = drawn(1.5, count=300)
    found = calibration_scores(logits, labels, temperature=2.0)
    probabilities = softmax(logits, 2.0)
    np.testing.assert_allclose(found["nll"], metrics.log_loss(labels, probabilities))
    distance = ((probabilities - np.eye(5)[labels]) ** 2).sum(1).mean()
    np.testing.assert_allclose(found["brier"], distance)
    known, unknown = probabilities[:200].max(1).round(2), probabilities[200:].max(1).round(2)
    expected = metrics.roc_auc_score([1] * 200 + [0] * 100, np.concatenate([known, unknown]))
    np.testing.assert_allclose(separation(known, unknown), expected)


def test_a_right_temperature_calibrates():
    logits, labels = drawn(3.0)
    before, after = (calibration_scores(logits, labels, temperature=t) for t in (1.0, 3.0))
    assert before["ece"] > 0.2 and after["ece"] < 0.015
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]


def test_the_threshold_lets_its_share_pass():
    confidences = np.random.default_rng(0).uniform(size=10_000)
    threshold = known_threshold(confidences, share=0.9)
    assert abs(np.mean(confidences >= threshold) - 0.9) < 1e-3


def test_rows_that_are_not_finite_are_left_out_and_wrong_shapes_refused():
    logits, labels = drawn(2.0, count=500)
    dirty = np.concatenate([logits, np.full((3, 5), np.nan)])
    assert fit_temperature(dirty, np.append(labels, [0, 1, 2])) == fit_temperature(logits, labels)
    assert fit_temperature(np.full((2, 3), np.inf), np.zeros(2, int)) == 1.0
    with pytest.raises(DataError, match="no row of the logits is finite"):
        calibration_scores(np.full((2, 3), np.nan), np.zeros(2, int))
    with pytest.raises(DataError, match=r"the logits are \[2, 3\] and the labels \[3\]"):
        fit_temperature(np.zeros((2, 3)), np.zeros(3, int))
    with pytest.raises(DataError, match="the labels are 0 to 3; use 0 to 2"):
        fit_temperature(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(DataError, match="no confidence"):
        known_threshold(np.zeros(0))


def test_bins_are_the_shares_of_their_examples():
    logits, labels = drawn(1.5, count=400)
    found = reliability(logits, labels, temperature=2.0)
    sure, right = softmax(logits, 2.0).max(1), logits.argmax(1) == labels
    places = np.ceil(sure * 15)
    expected = [(places == bin) for bin in np.unique(places)]
    np.testing.assert_allclose(found["examples"], [inside.sum() for inside in expected])
    np.testing.assert_allclose(found["accuracy"], [right[inside].mean() for inside in expected])
    means = [sure[inside].mean() for inside in expected]
    np.testing.assert_allclose(found["confidence"], means, rtol=1e-5)
    gaps = np.abs(np.subtract(found["accuracy"], found["confidence"]))
    ece = calibration_scores(logits, labels, temperature=2.0)["ece"]
    np.testing.assert_allclose(np.average(gaps, weights=found["examples"]), ece, rtol=1e-5)
