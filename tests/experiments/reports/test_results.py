"""Metrics with a reach, from the tasks of a run to its files and its table."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import conduct
from experiments.regression import driver as regression
from experiments.runtime.progress import Score
from helpers.driver_runs import rows, unlock
from metajax import metrics
from metajax.losses import squared_error
from metajax.metrics import Metric
from metajax.objectives.scoring import Scoring

EPISODES = 6


def rising(outputs, batch):
    """The slope's sign of the targets, 1 or -1; not defined where the first target is negative."""
    del outputs
    sign = jnp.sign(batch.targets[-1, 0] - batch.targets[0, 0])
    return jnp.where(batch.targets[0, 0] < 0, jnp.nan, sign)


MEASURED = {
    "mse": squared_error,
    "rmse": metrics.rmse(),
    "whole_rmse": metrics.pooled(metrics.rmse()),
    "rising": Metric(rising, metrics.mean_where_defined),
}


def build(settings):
    """The sinusoids, whose best checkpoint is that of the smallest error over all points."""
    return regression.build(settings)._replace(
        scoring=Scoring(squared_error, MEASURED),
        score=Score("whole_rmse", False),
        pictures=lambda *_: {},
    )


def scores_of_episodes(workdir):
    with (workdir / "test_scores.csv").open() as file:
        names = next(file).strip().split(",")
        return dict(zip(names, np.loadtxt(file, delimiter=",").T, strict=True))


def test_a_metric_with_a_reach_is_validated_tested_and_reported(tmp_path, capsys):
    settings = regression.RegressionSettings(
        hidden="4", shots=2, queries=2, test_queries=5, test_inner_steps=1, meta_batch=4, steps=2,
        eval_every=1, log_every=1, valid_episodes=4, eval_episodes=EPISODES, workdir=str(tmp_path),
    )  # fmt: skip
    assert conduct.conduct(build, settings) == 0
    unlock()
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    scores = scores_of_episodes(tmp_path)
    # What is no number of an episode has no column.
    assert list(scores) == ["episode", "loss", "mse", "rising", "rmse"]
    # Episodes are of one size, so that the whole test set's root is that of the mean of their means.
    whole = np.sqrt(np.mean(scores["mse"]))
    assert result["test_whole_rmse"] == pytest.approx(whole, rel=1e-6) and "ci95" not in result
    assert (result["test_mse"], result["mse_ci95"]) == metrics.confidence_interval(scores["mse"])
    np.testing.assert_allclose(scores["rmse"], np.sqrt(scores["mse"]), rtol=1e-6)
    assert (result["test_rmse"], result["rmse_ci95"]) == metrics.confidence_interval(scores["rmse"])
    left_out = int(np.isnan(scores["rising"]).sum())
    assert 0 < left_out < EPISODES - 1 and result["rising_left_out"] == left_out
    assert result["test_rising"] == np.nanmean(scores["rising"])
    assert (
        f"{result['test_rising']:.4g} +- {result['rising_ci95']:.4g}, {left_out} tasks left"
        in table
    )
    assert {"rmse_left_out", "whole_rmse_ci95"}.isdisjoint(result)
    # Steps of training do without what the tasks of a step cannot be averaged by.
    found = rows(tmp_path / "metrics.csv")
    training, valid = (
        [row for row in found if row["split"] == split] for split in ("train", "valid")
    )
    assert all(row["mse"] and not (row["rmse"] or row["whole_rmse"]) for row in training)
    assert all(row["mse"] and row["rmse"] and row["whole_rmse"] for row in valid)
    best = min(float(row["whole_rmse"]) for row in valid)
    assert result["best_valid_whole_rmse"] == best
    np.testing.assert_allclose(
        [float(row["whole_rmse"]) ** 2 for row in valid],
        [float(row["mse"]) for row in valid],
        rtol=1e-5,
    )
