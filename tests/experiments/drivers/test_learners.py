"""Every learner and every estimator through the driver, and what they leave behind."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments.fewshot import driver as fewshot
from experiments.fewshot.checks import check_fewshot
from experiments.flags.plan import resolve
from experiments.flags.settings import UsageError
from experiments.flags.training import check_together, multi_step_loss
from experiments.regression import driver as regression
from experiments.runtime.files import SettingsMismatch
from experiments.setup.estimators import meta_gradient
from experiments.setup.experiment import Setup
from helpers.driver_runs import PLAIN, drive, rows, settings_of, undrawn, unlock
from helpers.toys import classification_episode, linear_model
from metajax.learners.wrappers.dropout import DropoutFast
from metajax.train import draw_tasks
from metajax.zoo.learners import LEARNERS


@pytest.mark.parametrize(
    "learner", sorted(name for name, entry in LEARNERS.items() if "classes" in entry.predicts)
)
def test_every_learner_fits_the_driver_and_says_how_much_it_adapts(pictures, tmp_path, learner):
    options = {"leo": {"latent": 4}, "relation": {"model": "conv4", "filters": 2}}.get(learner, {})
    settings = settings_of(pictures, tmp_path, learner=learner, **options)
    setup = Setup(fewshot.build(settings), resolve(settings))
    inputs = setup.experiment.inputs
    meta = jax.eval_shape(setup.learner.init, jax.random.key(0), inputs)
    tested = jax.eval_shape(setup.test_learner.init, jax.random.key(0), inputs)
    assert jax.tree.map(jnp.shape, meta) == jax.tree.map(jnp.shape, tested)
    # 256 pixels, two hidden layers of 40, three classes.
    whole = 256 * 40 + 40 + 40 * 40 + 40 + 40 * 3 + 3
    head, factors = 40 * 3 + 3, 4 * (256 + 40 + 40 + 40 + 40 + 3)
    few = {"anil": head, "boil": whole - head, "cavia": 100, "lora": factors, "leo": 3 * (4 + 40)}
    few |= {"baseline": head, "baseline_plus_plus": head}
    everything = "maml fomaml meta_sgd meta_curvature learned_optimizer maml_plus_plus reptile imaml warpgrad"
    few |= dict.fromkeys([*everything.split(), "meta_lstm"], whole)
    found = setup.num_adapted(meta)
    if learner in few:
        assert found == few[learner]
    elif LEARNERS[learner].inner:
        assert 0 < found <= whole
    else:
        assert found is None, "without inner steps a learner remembers, and moves no parameters"


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
@undrawn()
def test_what_only_some_learners_need_reaches_the_result(pictures, tmp_path, options):
    assert fewshot.start(settings_of(pictures, tmp_path, **options)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1 and result["steps"] == 4
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert ("grad_variance" in columns) == ("outer" in options)
    assert ("penalty" in columns) == (options["learner"] == "leo")
    assert result.get("ensemble", 1) == options.get("ensemble", 1)


@pytest.mark.parametrize("annealed", [{"first_order_steps": 2}, {"multi_step_loss": 2}])
def test_a_frozen_encoder_hides_no_switch(pictures, tmp_path, annealed):
    def make_learner(steps, adjoint):
        rule = optax.sgd(0.1)
        return metajax.maml(
            linear_model(5, 3), metajax.cross_entropy, rule=rule, steps=steps, adjoint=adjoint
        )

    settings = settings_of(
        pictures, tmp_path, freeze=True, init_from=str(tmp_path), inner_steps=2, **annealed
    )
    scoring = metajax.Scoring(metajax.cross_entropy)
    plan = resolve(settings)
    meta_grad = meta_gradient(make_learner, scoring, plan.inner, plan.outer, tasks_at_once=None)
    keys = jax.random.split(jax.random.key(0), 2)
    tasks = jax.vmap(classification_episode)(keys)
    meta = make_learner(1, metajax.ADJOINTS["reverse"]).init(keys[0], tasks.support.inputs[0])
    program = jax.make_jaxpr(meta_grad)(meta, keys, tasks, jnp.int32(1))
    (switch,) = [step for step in program.eqns if step.primitive.name == "cond"]
    assert program.jaxpr.outvars == switch.outvars, "gradients are chosen, and not losses"
    grads, _ = jax.jit(meta_grad)(meta, keys, tasks, jnp.int32(1))
    assert not np.any(grads.params["body"]) and np.all(grads.params["head"]["kernel"])


@pytest.mark.parametrize("learner", ["protonet", "simpleshot"])
def test_networks_drop_in_training_and_in_no_test(pictures, tmp_path, learner):
    network = {"model": "conv4_wide", "filters": 3, "norm": "none", "drop_rate": 0.5}
    settings = settings_of(pictures, tmp_path, learner=learner, queries=5, **network)
    experiment = fewshot.build(settings)
    assert "DropBlock of 0.5" in dict(experiment.announcement)["model"]
    setup = Setup(experiment, resolve(settings))
    key, data = jax.random.key(1), experiment.data["train"]
    meta = jax.jit(setup.learner.init)(key, experiment.inputs)
    keys, episodes = draw_tasks(
        experiment.samplers["train"], data, key, 0, np.arange(settings.meta_batch)
    )
    meta_grad = jax.jit(setup.meta_grad)
    dropped, again, others = (
        float(meta_grad(meta, ks, episodes)[1]["loss"]) for ks in (keys, keys, keys[::-1])
    )
    # By the task's key, and by nothing else.
    assert dropped == again and abs(dropped - others) > 1e-5
    support = jax.tree.map(lambda leaf: leaf[0], episodes.support)
    start = jax.eval_shape(setup.test_learner.start, meta, key, support)
    assert not isinstance(start, DropoutFast)


@undrawn()
def test_another_data_set_is_tested_on(pictures, tmp_path):
    options = {"learner": "protonet", "steps": 1}
    # Of another split, the test classes of the default one are among those trained on.
    same = {"test_dataset": f"folder:{pictures}", "split": "random", "split_seed": 1}
    same = settings_of(pictures, tmp_path / "run", **same, **options)
    with pytest.raises(UsageError, match="test classes of the same names as training classes"):
        fewshot.start(same)
    for folder in pictures.iterdir():
        shutil.copytree(folder, tmp_path / "others" / f"other {folder.name}")
    others = f"folder:{tmp_path / 'others'}"
    assert (
        fewshot.start(settings_of(pictures, tmp_path / "run", test_dataset=others, **options)) == 0
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_dataset"] == others and "tested on folder" in result["split"]


@pytest.mark.parametrize(
    "options",
    [{"learner": "recurrent", "units": 4, "cell": "gru"}, {"learner": "matching"}],
    ids=["recurrent", "matching"],
)
def test_examples_come_one_after_another(pictures, tmp_path, options):
    settings = settings_of(
        pictures,
        tmp_path,
        protocol="sequence",
        shots=3,
        queries=5,
        test_queries=15,
        steps=2,
        **options,
    )
    check_fewshot(settings)
    assert fewshot.start(settings) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test_accuracy"] == result["test_accuracy_at_2"]
    assert {f"test_accuracy_at_{k}" for k in (1, 2, 3)} < set(result)
    assert "test_accuracy_at_4" not in result and not result["transductive"]


@pytest.mark.parametrize("learner", ["anp", "in_context"])
def test_learners_without_inner_steps_regress(tmp_path, learner):
    settings = regression.RegressionSettings(
        learner=learner,
        workdir=str(tmp_path),
        hidden="8,8",
        steps=2,
        eval_every=2,
        valid_episodes=4,
        eval_episodes=4,
        **({"width": 8, "layers": 1} if learner == "in_context" else {}),
    )
    check_together(settings)
    assert regression.start(settings) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert np.isfinite(result["test_mse"]) and (tmp_path / "fits.png").exists()
    assert ("test_log_likelihood" in result) == (learner == "anp")
    assert (tmp_path / "calibration.png").exists() == (learner == "anp")
    if learner == "anp":
        assert 0 <= result["covered_by_90_percent"] <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learner": "protonet", "inner_steps": 3}, "--inner_steps=3 does not go with --learner"),
        ({"learner": "protonet", "outer": "pes"}, "--outer=pes does not go with --learner"),
        ({"train_ways": 20}, "--train_ways=20 does not go with --learner=maml"),
        (
            {"learner": "baseline", "train_shots": 2},
            "does not go with --learner=baseline; it is for",
        ),
        ({"learner": "baseline", "label_noise": 0.1}, "--label_noise=0.1 does not go with"),
        ({"images": 8}, "--images=8 does not go with --learner=maml"),
        ({"norm": "running"}, "--norm=running does not go with --learner=maml"),
        ({"attack": "pgd", "outer": "reptile"}, "--attack=pgd is trained on episodes"),
        (
            {"attack": "fgsm", "queries_at_once": 2, "norm": "group"},
            "does not go with --attack=fgsm",
        ),
        (
            {"attack": "fgsm", "one_query_at_a_time": True},
            "--one_query_at_a_time=true does not go with --attack",
        ),
        ({"test_data_dir": "x"}, "needs --test_dataset"),
        ({"protocol": "sequence", "learner": "mann"}, "use 2 or more"),
        ({"protocol": "sequence", "shots": 5, "attack": "fgsm"}, "--attack=fgsm does not go with"),
        (
            {"protocol": "sequence", "shots": 5, "outer": "reptile"},
            "does not go with --outer=reptile",
        ),
        ({"protocol": "sequence", "shots": 5, "learner": "leo"}, "does not go with --learner=leo"),
        ({"protocol": "sequence", "shots": 5, "label_noise": 0.1}, "--label_noise=0.1 does not go"),
        ({"learner": "simpleshot", "outer": "es"}, "--outer=es does not go with"),
        (
            {"learner": "simpleshot", "queries": 9},
            "--queries=9 does not go with --learner=simpleshot",
        ),
        (
            {"learner": "simpleshot", "refine": 2, "one_query_at_a_time": True},
            "--one_query_at_a_time does not",
        ),
        ({"learner": "relation", "norm": "running", "init_from": "x"}, "--learner=relation, whose"),
        ({"norm": "running", "init_from": "x", "outer": "es"}, "would perturb the averages"),
        ({"attack_epsilon": 0.5}, "--attack_epsilon=0.5 needs --attack"),
        (
            {"inner_steps": 3, "multi_step_loss": 9, "attack": "fgsm"},
            "trained on the last loss alone",
        ),
        ({"mix_classes": True, "min_ways": 2}, "--mix_classes does not go with --min_ways"),
        ({"test_dataset": "glyphs", "rotations": "all", "dataset": "omniglot"}, "rotations=train"),
    ],
)
def test_data_and_training_that_do_not_go_together_are_refused(options, says):
    settings = fewshot.FewshotSettings(**options)
    with pytest.raises(UsageError, match=says):
        check_together(settings)
        check_fewshot(settings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"learner": "leo", "multi_step_loss": 3},
            "--multi_step_loss=3 does not go with --learner",
        ),
        ({"learner": "imaml", "multi_step_loss": 3}, "does not go with --learner=imaml"),
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
            "--inner_optimizer=adam does not go with --hessian_free=true",
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


@undrawn()
def test_persistent_evolution_goes_on_where_it_was_within_a_memory_budget(
    pictures, tmp_path, capsys
):
    # Its memory of tasks, keys and half-lived adaptations is part of the checkpoint.
    flags = [*PLAIN, f"--data_dir={pictures}", "--outer=pes", "--es_sigma=0.05", "--steps=9"]
    flags += ["--log_every=3", "--checkpoint_every=3", "--eval_every=3", "--pes_unrolls=4"]
    flags += [f"--workdir={tmp_path / 'whole'}", "--outer_schedule=constant"]
    flags += ["--memory_budget=8GiB"]
    assert drive(*flags) == 0
    assert "8GiB: reverse, 1 at once needs" in " ".join(capsys.readouterr().out.split())
    unlock()
    whole = rows(tmp_path / "whole" / "metrics.csv")
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "9")
    assert drive(*flags) == 0
    assert "Resuming from step 6 of 9" in capsys.readouterr().out
    assert rows(tmp_path / "whole" / "metrics.csv") == whole


OWN_WAYS = {"learner": "protonet", "train_ways": 4, "steps": 2}


@pytest.fixture(scope="module")
@undrawn()
def at_its_own_ways(pictures, tmp_path_factory):
    """A short training at other ways than those of its test."""
    workdir = tmp_path_factory.mktemp("own_ways")
    assert fewshot.start(settings_of(pictures, workdir, **OWN_WAYS)) == 0
    unlock()
    return workdir


@undrawn()
def test_what_was_trained_at_its_own_ways_is_tested_at_any(pictures, at_its_own_ways):
    options = {"mode": "evaluate", **OWN_WAYS}
    assert fewshot.start(settings_of(pictures, at_its_own_ways, ways=2, **options)) == 0
    assert json.loads((at_its_own_ways / "evaluation" / "result.json").read_text())["ways"] == 2
    unlock()
    with pytest.raises(SettingsMismatch, match="--shots: was 1, now 2"):
        fewshot.start(settings_of(pictures, at_its_own_ways, shots=2, **options))
    unlock()


@undrawn()
def test_a_run_of_before_some_options_goes_on(pictures, at_its_own_ways, tmp_path, capsys):
    shutil.copytree(at_its_own_ways, tmp_path, dirs_exist_ok=True)
    settings = settings_of(pictures, tmp_path, **OWN_WAYS)
    known = json.loads((tmp_path / "settings.json").read_text())
    later = ("init_from", "protocol", "attack", "attack_epsilon", "label_noise")
    before = {name: value for name, value in known.items() if name not in later}
    assert len(before) == len(known) - len(later)
    (tmp_path / "settings.json").write_text(json.dumps(before))
    assert fewshot.start(settings) == 0
    assert "Resuming from step 2 of 2" in capsys.readouterr().out
    unlock()
    other = settings_of(pictures, tmp_path, label_noise=0.5, **OWN_WAYS)
    with pytest.raises(SettingsMismatch, match=r"--label_noise: was 0\.0, now 0\.5"):
        fewshot.start(other)


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
        UsageError,
        match="--learner=leo predicts classes, and these tasks ask for values; use one of maml",
    ):
        regression.start(settings)
