"""Every learner and every estimator through the driver, and what they leave behind."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from driver_runs import SMALL, rows, run
from experiments import fewshot, regression
from experiments.estimators import multi_step_loss
from experiments.experiment import Setup
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


def settings_of(pictures, workdir, **options):
    settings = fewshot.FewshotSettings(
        **{**QUICK, "data_dir": str(pictures), "workdir": str(workdir), **options}
    )
    check_together(settings)
    return settings


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_learner_fits_the_driver_and_says_how_much_it_adapts(pictures, tmp_path, learner):
    options = {"latent": 4} if learner == "leo" else {}
    settings = settings_of(pictures, tmp_path, learner=learner, **options)
    samplers, images = fewshot.make_samplers(settings), fewshot.load_images(settings)
    setup = Setup(fewshot.make_experiment(settings, samplers, images), settings)
    inputs = setup.experiment.inputs
    meta = jax.eval_shape(setup.learner.init, jax.random.key(0), inputs)
    tested = jax.eval_shape(setup.test_learner.init, jax.random.key(0), inputs)
    assert jax.tree.map(jnp.shape, meta) == jax.tree.map(jnp.shape, tested)
    # 256 pixels, two hidden layers of 40, three classes.
    whole = 256 * 40 + 40 + 40 * 40 + 40 + 40 * 3 + 3
    head, factors = 40 * 3 + 3, 4 * (256 + 40 + 40 + 40 + 40 + 3)
    few = {"anil": head, "boil": whole - head, "cavia": 100, "lora": factors, "leo": 3 * (4 + 40)}
    assert setup.num_adapted(meta) == few.get(learner, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"learner": "maml_plus_plus", "ensemble": 2, "first_order_steps": 1, "multi_step_loss": 3},
        {"learner": "leo", "latent": 4},
        {"learner": "reptile", "train_shots": 3, "minibatch": 4, "outer_optimizer": "sgd"},
        {"learner": "anil", "outer": "es", "es_pairs": 2, "meta_batch": 8},
    ],
    ids=lambda options: options["learner"],
)
def test_what_only_some_learners_need_reaches_the_result(pictures, tmp_path, options):
    assert fewshot.start(settings_of(pictures, tmp_path, **options)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1 and result["steps"] == 4
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert ("grad_variance" in columns) == ("outer" in options)
    assert ("penalty" in columns) == (options["learner"] == "leo")
    assert result.get("ensemble", 1) == options.get("ensemble", 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"learner": "leo", "multi_step_loss": 3},
            "--multi_step_loss=3 does not go with --learner",
        ),
        ({"learner": "imaml", "multi_step_loss": 3}, "which has a derivative of its own"),
        ({"minibatch": 2, "multi_step_loss": 3}, "does not go with --minibatch=2"),
        ({"adjoint": "truncated", "multi_step_loss": 3}, "does not go with --adjoint=truncated"),
        ({"outer": "es", "adjoint": "mixed"}, "--adjoint=mixed does not go with --outer=es"),
        (
            {"outer": "backprop", "es_sigma": 0.1},
            "--es_sigma=0.1 does not go with --outer=backprop",
        ),
        ({"outer": "pes", "es_pairs": 2}, "--es_pairs=2 does not go with --outer=pes"),
        (
            {"learner": "imaml", "hessian_free": True, "inner_optimizer": "adam"},
            "--inner_optimizer=adam does not go with --hessian_free",
        ),
        ({"outer_schedule": "constant", "outer_lr_end": 1e-5}, "does not go with --outer_schedule"),
    ],
)
def test_options_without_effect_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        check_together(fewshot.FewshotSettings(**{"inner_steps": 2, **options}))


def test_tests_take_the_steps_of_training_but_at_least_three():
    steps = [fewshot.FewshotSettings(inner_steps=n).steps_at_test for n in (1, 5)]
    assert steps == [3, 5]
    assert fewshot.FewshotSettings(inner_steps=5, test_inner_steps=1).steps_at_test == 1
    assert regression.RegressionSettings(inner_steps=5).steps_at_test == 10


@pytest.mark.parametrize("outer", ["pes", "backprop"])
def test_a_memory_budget_goes_with_every_estimator(pictures, tmp_path, outer):
    settings = settings_of(pictures, tmp_path, outer=outer, memory_budget="8GiB", steps=2)
    assert fewshot.start(settings) == 0


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
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "9")
    status, out, err = run(
        *flags, "--steps=9", f"--workdir={tmp_path / 'whole'}", "--outer_schedule=constant"
    )
    assert status == 0, err
    assert "Resuming from step 6 of 9" in out
    assert rows(tmp_path / "whole" / "metrics.csv") == whole


def test_the_loss_after_every_step_is_the_default_of_maml_plus_plus_alone():
    plus = {"learner": "maml_plus_plus", "inner_steps": 5, "steps": 1000}
    assert multi_step_loss(fewshot.FewshotSettings(**plus)) == 100
    assert multi_step_loss(fewshot.FewshotSettings(**plus, multi_step_loss=0)) == 0
    assert multi_step_loss(fewshot.FewshotSettings(inner_steps=5, steps=1000)) == 0
    assert multi_step_loss(fewshot.FewshotSettings(inner_steps=5, multi_step_loss=7)) == 7
    assert multi_step_loss(fewshot.FewshotSettings(**{**plus, "inner_steps": 1})) == 0


@pytest.mark.parametrize("learner", ["leo", "cavia"])
def test_reptile_is_refused_where_no_start_is_learned(pictures, tmp_path, learner):
    settings = settings_of(pictures, tmp_path, learner=learner, outer="reptile")
    with pytest.raises(UsageError, match=f"--outer=reptile does not go with --learner={learner}"):
        fewshot.start(settings)


def test_a_learner_of_classes_is_refused_for_regression(tmp_path):
    settings = regression.RegressionSettings(learner="leo", workdir=str(tmp_path))
    with pytest.raises(
        UsageError, match="--learner=leo does not work here: leo tells classes apart"
    ):
        regression.start(settings)
