"""Every learner and every estimator through the driver, and what they leave behind."""

import json

import pytest

from driver_runs import SMALL, rows, run
from experiments import fewshot, regression
from experiments.estimators import multi_step_loss
from experiments.options import check_together
from experiments.settings import UsageError
from metajax.learners.registry import LEARNERS

QUICK = {
    "dataset": "folder",
    "model": "mlp",
    "ways": 3,
    "queries": 2,
    "test_queries": 2,
    "meta_batch": 4,
    "steps": 4,
    "eval_every": 2,
    "valid_episodes": 4,
    "eval_episodes": 4,
    "inner_steps": 2,
}


def quick(pictures, workdir, **options):
    settings = fewshot.FewshotSettings(
        **{**QUICK, "data_dir": str(pictures), "workdir": str(workdir), **options}
    )
    check_together(settings)
    assert fewshot.start(settings) == 0
    return json.loads((workdir / "result.json").read_text())


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_learner_runs_and_says_how_much_it_adapts(pictures, tmp_path, learner):
    options = {"maml_plus_plus": {"ensemble": 2}, "leo": {"latent": 4}}.get(learner, {})
    result = quick(pictures, tmp_path, learner=learner, **options)
    assert 0 <= result["test_accuracy"] <= 1
    # 256 pixels, two hidden layers of 40, three classes.
    whole = 256 * 40 + 40 + 40 * 40 + 40 + 40 * 3 + 3
    head, factors = 40 * 3 + 3, 4 * (256 + 40) + 4 * (40 + 40) + 3 * (40 + 3)
    expected = {
        "anil": head,
        "boil": whole - head,
        "cavia": 100,
        "lora": factors,
        "leo": 3 * 40,
    }
    assert result["adapted_parameters"] == expected.get(learner, whole)
    if learner == "maml_plus_plus":
        assert result["ensemble"] == 2 and 0 <= result["best_single_test_accuracy"] <= 1


@pytest.mark.parametrize("outer", ["backprop", "reptile", "es", "pes"])
def test_every_estimator_combines_with_a_learner(pictures, tmp_path, outer):
    options = {"es_pairs": 2, "pes_unrolls": 2, "outer_optimizer": "sgd"}
    result = quick(pictures, tmp_path, learner="anil", outer=outer, **options)
    assert result["steps"] == 4
    with (tmp_path / "metrics.csv").open() as file:
        assert ("grad_variance" in file.read()) == (outer in ("es", "pes"))


def test_persistent_evolution_goes_on_where_it_was(pictures, tmp_path):
    # Its memory of tasks, keys and half-lived adaptations is part of the checkpoint.
    flags = [*SMALL, f"--data_dir={pictures}", "--model=mlp", "--outer=pes", "--es_sigma=0.05"]
    flags = [flag for flag in flags if not flag.startswith("--filters")]
    flags += ["--log_every=3", "--checkpoint_every=3", "--eval_every=3", "--pes_unrolls=4"]
    status, _, err = run(
        *flags, "--steps=9", f"--workdir={tmp_path / 'whole'}", "--outer_schedule=constant"
    )
    assert status == 0, err
    whole = rows(tmp_path / "whole" / "metrics.csv")
    for last in range(6, 10):
        folder = tmp_path / "whole" / "checkpoints" / str(last)
        if folder.is_dir():
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            folder.rmdir()
    status, out, err = run(
        *flags, "--steps=9", f"--workdir={tmp_path / 'whole'}", "--outer_schedule=constant"
    )
    assert status == 0, err
    assert "Resuming from step 3 of 9" in out
    assert rows(tmp_path / "whole" / "metrics.csv") == whole


def test_the_loss_after_every_step_is_the_default_of_maml_plus_plus_alone():
    plus = {"learner": "maml_plus_plus", "inner_steps": 5, "steps": 1000}
    assert multi_step_loss(fewshot.FewshotSettings(**plus)) == 100
    assert multi_step_loss(fewshot.FewshotSettings(**plus, multi_step_loss=0)) == 0
    assert multi_step_loss(fewshot.FewshotSettings(inner_steps=5, steps=1000)) == 0
    assert multi_step_loss(fewshot.FewshotSettings(inner_steps=5, multi_step_loss=7)) == 7
    assert multi_step_loss(fewshot.FewshotSettings(inner_steps=1, multi_step_loss=7)) == 0


def test_a_learner_of_classes_is_refused_for_regression(tmp_path):
    settings = regression.RegressionSettings(learner="leo", workdir=str(tmp_path))
    with pytest.raises(
        UsageError, match="--learner=leo does not work here: leo tells classes apart"
    ):
        regression.start(settings)
