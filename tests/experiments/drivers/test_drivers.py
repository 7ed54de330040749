"""The drivers as a user meets them: real processes, files on disk."""

import dataclasses
import json
import re
import time

import absl.flags
import pytest

from experiments.completion import driver as completion
from experiments.fewshot import driver as fewshot
from experiments.flags.settings import check_fields, define_flags, from_flags
from experiments.flags.training import check_together
from experiments.imitation.options import ImitationSettings
from experiments.pertask.options import PertaskSettings
from experiments.regression import driver as regression
from experiments.rl.options import RlSettings
from experiments.tables.options import TablesSettings
from helpers.driver_runs import PLAIN, ROOT, SMALL, drive, rows, run, undrawn, unlock


@undrawn()
def test_patience_stops_early_and_the_best_checkpoint_is_tested(pictures, tmp_path):
    # Without an outer step nothing improves: the first validation stays the best.
    flags = [
        *PLAIN,
        f"--data_dir={pictures}",
        f"--workdir={tmp_path}",
        "--outer_lr=1e-30",
        "--patience=2",
    ]
    for _ in range(2):  # and again from the finished work directory
        assert drive(*flags) == 0
        unlock()
        result = json.loads((tmp_path / "result.json").read_text())
        assert (result["best_step"], result["steps"]) == (50, 150)


@pytest.mark.parametrize(
    "flags",
    [
        "--learner=fomaml --rotations=all --inner_optimizer=adam --inner_lr=0.01 --inner_steps=2 --clip=1 "
        "--norm=layer --model=conv4",
        "--learner=meta_sgd --model=mlp --shots=2 --min_ways=2 --min_shots=1 --adjoint=mixed --inner_steps=2 "
        "--tasks_at_once=2 --precision=bfloat16",
        "--adjoint=recursive --learner=anil --inner_steps=5 --queries_at_once=4 --norm=group --filters=8 "
        "--kernels=matmul",
        "--learner=protonet --model=mlp --train_ways=5 --mix_classes --project --label_noise=0.1 "
        "--attack=fgsm --augment=shift,flip",
    ],
)
@undrawn()
def test_options_compose(pictures, tmp_path, flags, capsys):
    normless = "mlp" in flags
    small = [flag for flag in SMALL if not (normless and "filters" in flag)]
    small += "--steps=4 --eval_every=4 --log_every=2 --valid_episodes=4 --eval_episodes=4".split()
    where = [f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    assert drive(*small, *where, *flags.split()) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1 and result["settings"]["learner"] in out
    assert result["transductive"] is not (normless or "--norm" in flags)
    # Answers to attacked queries are scored by accuracy alone, and steps of training are.
    measured = "attack" not in flags
    assert ("test calibration error" in out) == measured
    assert 0 <= result.get("test_calibration_error", 0) <= 1
    for row in rows(tmp_path / "metrics.csv"):
        assert bool(row.get("calibration_error")) == (measured and row["split"] == "valid")


@undrawn()
def test_a_split_file_is_followed(pictures, forked, tmp_path, capsys):
    names = [folder.name for folder in sorted(pictures.iterdir())]
    split = {"train": names[:10], "valid": names[10:14], "test": names[14:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    flags = [
        *PLAIN,
        f"--data_dir={pictures}",
        "--steps=10",
        f"--split_file={tmp_path / 'split.json'}",
    ]
    assert drive(*flags, f"--workdir={tmp_path / 'run'}") == 0
    assert "split file: 10 train, 4 valid, 6 test" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "split.json").write_text(json.dumps({**split, "test": ["class99"]}))
    status, _, err = forked(*flags, f"--workdir={tmp_path / 'other'}")
    assert status == 1 and "class99" in err


def test_regression_reports_the_error_after_each_step(tmp_path):
    flags = (
        "--steps=100 --eval_every=50 --valid_episodes=20 --eval_episodes=40 --log_every=50".split()
    )
    status, out, err = run(*flags, f"--workdir={tmp_path}", driver="regression", drawn=True)
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    by_step = result["test_mse_by_step"]
    assert [entry["step"] for entry in by_step] == list(range(11))
    assert by_step[10]["mse"] == pytest.approx(result["test_mse"], rel=1e-4)
    assert by_step[1]["mse"] < by_step[0]["mse"]
    assert (tmp_path / "fits.png").stat().st_size > 0
    assert "not transductive" in out


def test_help_is_complete_and_quick():
    started = time.time()
    status, out, _ = run("--helpfull")
    assert (
        status == 0 and time.time() - started < 20
    )  # a bound for busy machines; benchmarks/ measures it
    for field in dataclasses.fields(fewshot.FewshotSettings):
        assert f"--{field.name}\n" in out


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "experiments" / "recipes").rglob("*.flags")), ids=lambda p: p.stem
)
def test_recipes_are_valid_flags_and_say_where_they_come_from(recipe):
    text = recipe.read_text()
    of = {"sinusoid": "regression", "completion": "completion"}
    driver = next((of[word] for word in of if word in recipe.name), "fewshot")
    driver = (
        recipe.parent.name
        if recipe.parent.name in ("rl", "imitation", "pertask", "tables")
        else driver
    )
    assert f"python -m experiments.{driver} --flagfile={recipe.relative_to(ROOT)}" in text
    for word in ("Paper:", "Published:"):
        assert f"# {word}" in text
    measured = re.search(r"# Measured: (-?\d+\.\d+) \+- \d+\.\d+", text)
    assert measured or "# Measured: not yet run." in text
    settings_class = {
        "fewshot": fewshot.FewshotSettings,
        "regression": regression.RegressionSettings,
        "completion": completion.CompletionSettings,
        "rl": RlSettings,
        "imitation": ImitationSettings,
        "pertask": PertaskSettings,
        "tables": TablesSettings,
    }[driver]
    values = absl.flags.FlagValues()
    define_flags(settings_class, values)
    values(["driver", f"--flagfile={recipe}"])
    settings = from_flags(settings_class, values)
    check_fields(settings)
    check_together(settings)
