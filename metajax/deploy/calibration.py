"""Calibration of a classifier's probabilities: a temperature, a threshold for "unknown", and their scores."""

import numpy as np

from metajax.errors import DataError
from metajax.metrics import calibration_error
from metajax.types import Batch

COLDEST, HOTTEST = 0.01, 100.0
"""Limits of a fitted temperature."""
_HALVINGS = 60  # of the interval of log T, to the precision of float64


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Finds the divisor of the logits under which the labels are most likely.

    A share 1 / (M + 1) of the labels counts as uniform over the classes, as Platt smooths them, so that
    logits that are always right have a finite temperature. The mean negative log-likelihood is convex in
    1 / T; its derivative is bisected in log T.

    Args:
      logits: Logits [M, N] of held-out examples, computed in float64; rows that are not finite are left out.
      labels: Classes [M], int in [0, N).

    Returns:
      The temperature, in [0.01, 100]; 1 without any finite row.

    Raises:
      DataError: If a label is out of range, or the numbers of logits and labels differ.

    Example:
      >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
      >>> round(fit_temperature(np.tile(logits, (100, 1)), np.tile([0, 0, 0, 1], 100)), 2)  # right for 3 of 4
      2.01

    Reference: Guo et al., 2017 (https://arxiv.org/abs/1706.04599), section 4.2; Platt, 1999, Probabilistic
    outputs for support vector machines.
    """
    logits, labels = _checked(logits, labels)
    if not len(labels):
        return 1.0
    logits = logits - logits.max(1, keepdims=True)
    share = 1 / (len(labels) + 1)
    smoothed = (1 - share) * logits[np.arange(len(labels)), labels] + share * logits.mean(1)

    def slope(temperature: float) -> float:
        """Computes the derivative of the mean negative log-likelihood by 1 / T."""
        weights = np.exp(logits / temperature)
        expected = (weights * logits).sum(1) / weights.sum(1)
        return float(np.mean(expected - smoothed))

    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # A positive slope asks for a smaller 1 / T.
        low, high = (middle, high) if slope(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Computes probabilities in float64.

    Args:
      logits: Logits [M, N].
      temperature: Divisor of the logits.

    Returns:
      Probabilities [M, N].

    Example:
      >>> softmax(np.log([[0.8, 0.2]]), 2.0).round(4).tolist()
      [[0.6667, 0.3333]]
    """
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def calibration_scores(
    logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0
) -> dict[str, float]:
    """Measures how well probabilities fit labels.

    Args:
      logits: Logits [M, N]; rows that are not finite are left out.
      labels: Classes [M], int in [0, N).
      temperature: Divisor of the logits.

    Returns:
      Expected calibration error of 15 bins as `ece`, mean negative log-likelihood in nats as `nll`, and mean
      squared distance of the probabilities from the one-hot label, in [0, 2], as `brier`.

    Raises:
      DataError: If there is no finite row, a label is out of range, or the numbers differ.

    Example:
      >>> found = calibration_scores(np.log([[0.7, 0.3], [0.3, 0.7]]), np.array([0, 0]))
      >>> {name: round(value, 3) for name, value in found.items()}
      {'ece': 0.2, 'nll': 0.78, 'brier': 0.58}
    """
    logs, labels = _log_probabilities(logits, labels, temperature)
    sums = {name: value[None] for name, value in _sums(logs, labels).items()}
    hot = labels[:, None] == np.arange(logs.shape[1])
    return {
        "ece": calibration_error().combine(sums).value,
        "nll": float(-logs[hot].mean()),
        "brier": float(((np.exp(logs) - hot) ** 2).sum(1).mean()),
    }


def reliability(
    logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0
) -> dict[str, list[float]]:
    """Groups examples by their largest probability, as a reliability diagram shows them.

    Args:
      logits: Logits [M, N]; rows that are not finite are left out.
      labels: Classes [M], int in [0, N).
      temperature: Divisor of the logits.

    Returns:
      Lists with a number for each of 15 bins of equal width that has examples: their number as `examples`,
      mean largest probability as `confidence`, and share of right answers as `accuracy`.

    Raises:
      DataError: If there is no finite row, a label is out of range, or the numbers differ.

    Example:
      >>> found = reliability(np.log([[0.7, 0.3], [0.3, 0.7], [0.1, 0.9]]), np.array([0, 0, 1]))
      >>> {name: np.round(values, 3).tolist() for name, values in found.items()}
      {'examples': [2.0, 1.0], 'confidence': [0.7, 0.9], 'accuracy': [0.5, 1.0]}

    Reference: Guo et al., 2017 (https://arxiv.org/abs/1706.04599), section 2.
    """
    sums = _sums(*_log_probabilities(logits, labels, temperature))
    some = sums["weight"] > 0
    examples = sums["weight"][some]
    return {
        "examples": examples.tolist(),
        "confidence": (sums["confidence"][some] / examples).tolist(),
        "accuracy": (sums["hits"][some] / examples).tolist(),
    }


def known_threshold(confidences: np.ndarray, *, share: float = 0.95) -> float:
    """Finds the probability that a share of the queries of known classes reaches.

    Args:
      confidences: Largest probabilities [M] of held-out queries whose classes were learned.
      share: Share of them that has to count as known, in (0, 1).

    Returns:
      The threshold.

    Raises:
      DataError: If there is none.

    Example:
      >>> known_threshold(np.linspace(0, 1, 101)).round(2)
      np.float64(0.05)
    """
    if not len(confidences):
        raise DataError("there is no confidence to find a threshold of")
    return np.quantile(np.asarray(confidences, np.float64), 1 - share)


def separation(known: np.ndarray, unknown: np.ndarray) -> float:
    """Computes the probability that a known query is more confident than an unknown one: the AUROC.

    Args:
      known: Largest probabilities [M] of queries whose classes were learned.
      unknown: Largest probabilities [L] of others.

    Returns:
      The share of pairs in the right order, ties counting a half.

    Example:
      >>> separation(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
      0.875
    """
    ordered = np.sort(unknown)
    below, at_most = (np.searchsorted(ordered, known, side) for side in ("left", "right"))
    return float((below + at_most).mean() / (2 * len(ordered)))


def _log_probabilities(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes log-probabilities of finite rows, in float64, and returns the labels of these rows."""
    logits, labels = _checked(logits, labels)
    if not len(labels):
        raise DataError("no row of the logits is finite; there is nothing to measure")
    scaled = logits / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True)), labels


def _sums(logs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Adds weights, confidences and hits in each bin of confidence."""
    sums = calibration_error()(logs.astype(np.float32), Batch(None, labels))
    return {name: np.asarray(value) for name, value in sums.items()}


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks shapes and ranges, and leaves out rows that are not finite."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"the logits are {list(logits.shape)} and the labels {list(labels.shape)}; use [M, N] and [M]"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise DataError(
            f"the labels are {labels.min()} to {labels.max()}; use 0 to {logits.shape[1] - 1}"
        )
    finite = np.isfinite(logits).all(1)
    return logits[finite], labels[finite]
