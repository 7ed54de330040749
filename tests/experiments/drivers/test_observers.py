"""Observers of programs, and trackers, in runs of the drivers."""

import importlib
import json
import re
import types
from pathlib import Path

import pytest

from experiments import conduct
from experiments.flags.settings import UsageError
from experiments.regression.driver import RegressionSettings
from experiments.runtime.metrics import read_metrics
from helpers.driver_runs import unlock
from helpers.events import shown

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "trackers.md"
DRIVERS = "completion fewshot imitation pertask regression rl tables".split()


def test_the_example_of_the_page_ends_a_run_at_its_target(tmp_path, capsys):
    options = {
        **{"hidden": "4", "steps": 30, "eval_every": 10, "log_every": 10, "valid_episodes": 4},
        **{"eval_episodes": 4, "test_queries": 4, "workdir": str(tmp_path), "test_inner_steps": 1},
    }
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    small = block.replace("(eval_every=1000)", "(**options)").replace("< 0.5", "and step >= 20")
    assert small.count("options") == 1 and small.count("step >= 20") == 1
    exec(small, {"options": options})
    unlock()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 20 and [r["step"] for r in read_metrics(tmp_path)] == [10, 10, 20, 20]
    out = capsys.readouterr().out
    assert "an observer asked to end training here" in out
    assert out.splitlines()[-1] == f"test: {result['test_mse']:.3f}"
    found = shown(tmp_path)
    assert found["test/mse", 20].simple_value == pytest.approx(result["test_mse"])
    assert {"curves", "fits", "_hparams_/session_end_info"} <= {tag for tag, _ in found}


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_takes_observers(monkeypatch, driver):
    monkeypatch.setattr(conduct, "conduct", lambda build, settings, *, observers: observers)
    start = importlib.import_module(f"experiments.{driver}.driver").start
    assert start(types.SimpleNamespace(baselines_only=False), observers=["mine"]) == ["mine"]


def test_an_unknown_tracker_is_refused_before_data_is_read():
    def build(settings):
        pytest.fail("The data was read.")

    with pytest.raises(UsageError, match="--track=tensorbord is unknown; did you mean tensorboard"):
        conduct.conduct(build, RegressionSettings(track="tensorbord"))
