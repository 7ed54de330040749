"""The numbers of a search against closed forms."""

import json
import math

import numpy as np
import pytest

from experiments.search.finals import Final
from experiments.search.rows import finished, paired


def test_paired_differences_are_means_with_their_interval():
    best, scores = np.array([1.0, 2.0, 4.0, np.nan]), np.array([2.0, 2.0, 6.0, 1.0])
    mean, width = paired(scores, best)  # differences 1, 0, 2
    assert mean == pytest.approx(1.0)
    assert width == pytest.approx(1.96 * 1 / math.sqrt(3))
    assert paired(best, best)[0] == 0.0
    assert paired(scores, None) == paired(scores, best[:2]) == (None, None)


def test_last_runs_are_averaged_over_seeds_and_ranked_by_validation(tmp_path):
    # Trial 5 is the best by validation and the worse in the test: the test chooses nothing.
    numbers = {(5, 0): (0.8, [0.5, 0.7]), (5, 1): (0.9, [0.7, 0.9]), (2, 0): (0.6, [1.0, 0.8])}
    finals = []
    for (trial, seed), (valid, scores) in numbers.items():
        folder = tmp_path / f"{trial}-{seed}"
        folder.mkdir()
        lines = ["episode,accuracy", *(f"{i},{score}" for i, score in enumerate(scores))]
        (folder / "test_scores.csv").write_text("\n".join(lines))
        result = {"best_valid_accuracy": valid, "test_accuracy": float(np.mean(scores))}
        (folder / "result.json").write_text(json.dumps(result))
        finals.append(Final(trial, seed, [], folder))
    finals.append(Final(7, 0, [], tmp_path / "has_no_result"))
    first, second = finished(finals, "accuracy", higher_is_better=True)
    assert (first.number, first.seeds, second.number, second.seeds) == (5, 2, 2, 1)
    assert (first.valid, first.test) == pytest.approx((0.85, 0.7))
    # Student's t of one degree of freedom, and seeds 0.6 and 0.8: s = 0.1 sqrt(2).
    assert first.width == pytest.approx(12.706 * 0.1, rel=1e-3)
    # Episodes of the first: 0.6, 0.8 on average over seeds; of the second: 1.0, 0.8.
    assert second.difference == pytest.approx(0.2)
    assert second.difference_width == pytest.approx(1.96 * 0.4 / math.sqrt(2) / math.sqrt(2))
    assert second.width is None
