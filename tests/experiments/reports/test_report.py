"""Results read well, and say what they were made with."""

import sys

import jax
import numpy as np

from experiments.reports import report

RESULT = {
    "dataset": "glyphs",
    "ways": 5,
    "test_accuracy": 0.97314,
    "ci95": 0.0035,
    "episodes": 1000,
    "episodes_sha256": "0123456789abcdef" * 4,
    "transductive": True,
    "seed": 123456,
    "steps": 60_000,
    "wall_seconds": 372.0,
    "compile_seconds": 2.345,
    "train_tasks_per_second": 1234.56,
    "peak_memory_bytes": 3 * 2**29,
    "published": 98.7,
    "published_by": "MAML",
    "skipped": None,
    "settings": {"inner_lr": 0.4},
    "versions": {"jax": "0.10.2", "device": "cpu x 2"},
}


def test_results_in_words():
    assert report.result_rows(RESULT) == [
        ("dataset", "glyphs"),
        ("ways", "5"),
        ("test accuracy", "97.31% +- 0.35"),
        ("episodes", "1,000"),
        ("episodes' hash", "0123456789ab"),
        ("transductive", "yes"),
        ("seed", "123456"),
        ("steps", "60,000"),
        ("wall time", "6.2 min"),
        ("compile time", "2.3 s"),
        ("training speed", "1,234.6 tasks/s"),
        ("peak memory", "1.50 GiB"),
        ("published", "98.7% (MAML)"),
        ("versions", "jax 0.10.2, device cpu x 2"),
    ]
    steps = [{"step": 0, "mse": 3.21, "ci95": 0.1}, {"step": 1, "mse": 0.5, "ci95": 0.1}]
    regression = {"test_mse": 0.04321, "ci95": 0.0051, "published": 0.05, "test_mse_by_step": steps}
    assert report.result_rows({**regression, "wall_seconds": 7200, "peak_memory_bytes": 2**28}) == [
        ("test MSE", "0.04321 +- 0.0051"),
        ("published", "0.05"),
        ("test MSE by step", "0: 3.21, 1: 0.5"),
        ("wall time", "2.00 h"),
        ("peak memory", "256 MiB"),
    ]
    points = [{"points": 10, "log_likelihood": 0.25, "ci95": 0.1}, {"points": 30, "mse": 1.5}]
    completion = {"test_log_likelihood": 0.4321, "ci95": 0.02, "test_mse": 0.06, "mse_ci95": 0.01}
    completion["test_log_likelihood_by_points"] = points
    assert report.result_rows(completion) == [
        ("test log likelihood", "0.4321 +- 0.02"),
        ("test MSE", "0.06 +- 0.01"),
        ("test log likelihood by points", "10: 0.25, 30: 1.5"),
    ]
    ranked = {"test_auroc": 0.8312, "ci95": 0.0123, "auroc_left_out": 3, "test_mae": 0.5}
    ranked |= {
        "mae_ci95": 0.01,
        "test_rmse": 0.75,
        "rmse_left_out": 0,
        "test_calibration_error": 0.0312,
    }
    assert report.result_rows(ranked) == [
        ("test auroc", "0.8312 +- 0.0123, 3 tasks left out"),
        ("test mae", "0.5 +- 0.01"),
        ("test rmse", "0.75"),
        ("test calibration error", "0.0312"),
    ]


def test_tables_line_up():
    rows = [("a", "1"), ("long name", "word " * 30), ("b", "")]
    lines = report.table(rows).split("\n")
    assert lines[0] == "a          1" and lines[1].startswith("long name  word")
    assert lines[2].startswith(" " * 11 + "word") and lines[-1] == "b"
    assert max(map(len, lines)) <= 11 + 76 and report.table([]) == ""


def test_a_long_path_stays_in_one_piece():
    path = "/".join(["folder"] * 20)
    assert report.table([("bundle", path)]) == f"bundle  {path}"
    assert len(report.table([("names", "word " * 40)]).splitlines()) == 3


def test_versions_name_what_is_installed():
    found = report.versions()
    assert found["jax"] == jax.__version__ and found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert f"{jax.default_backend()}" in found["device"]
    assert f" x {jax.device_count()}" in found["device"]
    assert all(isinstance(value, str) and value for value in found.values())
