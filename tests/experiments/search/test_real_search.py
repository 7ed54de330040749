"""One search of a real driver, whose best settings reproduce its number bit for bit."""

import csv
import json

import numpy as np
import pytest
from absl import flags

from experiments.flags.settings import define_flags
from experiments.runtime.flag_sources import read_flags
from experiments.search.driver import run_search
from experiments.search.options import search_settings

pytest.importorskip("optuna")
SMALL = (
    *("--steps=4", "--trial_steps=2", "--eval_every=1", "--hidden=4", "--shots=3", "--queries=3"),
    *("--test_queries=3", "--meta_batch=2", "--valid_episodes=3", "--eval_episodes=4"),
    "--test_inner_steps=1",
)


class Forked:
    """A run in a fork of a process that has imported the drivers."""

    def __init__(self, forked, driver, given, folder, **lock_and_cores):
        self.status, _, self._error = forked(
            *given, f"--workdir={folder}", driver=driver, drawn=False
        )

    def stop(self):
        pass

    def reason(self):
        return self._error


def test_the_best_flags_reproduce_the_best_row(tmp_path, forked):
    folder, values = tmp_path / "search", flags.FlagValues()
    made = search_settings("regression")
    define_flags(made, values)
    given = ["--search=inner_lr=log:0.001..0.1", "--trials=2", "--finalists=1", "--final_seeds=1"]
    settings = read_flags(made, ["search", *SMALL, *given, f"--workdir={folder}"], values)
    assert run_search("regression", settings, start=lambda *a, **k: Forked(forked, *a, **k)) == 0

    # Trials end with validation scores, whose mean is the score that they are compared by, and with no test.
    for trial in (folder / "trials").iterdir():
        facts = json.loads((trial / "validation.json").read_text())
        with (trial / "valid_scores.csv").open(newline="") as file:
            scores = [np.float32(row["mse"]) for row in csv.DictReader(file)]
        assert len(scores) == facts["valid_episodes"] == 3
        assert facts["best_valid_mse"] == float(np.mean(scores))
        assert not {path.name for path in trial.iterdir()} & {"result.json", "test_scores.csv"}
    digests = {
        json.loads(path.read_text())["episodes_sha256"]
        for path in folder.glob("trials/*/validation.json")
    }
    assert len(digests) == 1

    (final,) = (folder / "finals").iterdir()
    status, _, error = forked(
        f"--flagfile={folder / 'best.flags'}",
        f"--workdir={tmp_path / 'again'}",
        driver="regression",
        drawn=False,
    )
    assert status == 0, error
    for name in ("test_scores.csv",):
        assert (tmp_path / "again" / name).read_bytes() == (final / name).read_bytes()
    again, first = (
        json.loads((path / "result.json").read_text()) for path in (tmp_path / "again", final)
    )
    assert again["test_mse"] == first["test_mse"]
    assert f"# Measured: {first['test_mse']:.4g} +- " in (folder / "best.flags").read_text()
