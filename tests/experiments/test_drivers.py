"""The drivers as a user meets them: real processes, real signals, files on disk."""

import csv
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import absl.flags
import numpy as np
import pytest
from PIL import Image

from experiments.options import check_together
from experiments.settings import check_fields, define_flags, from_flags

ROOT = Path(__file__).parents[2]
SMALL = (
    "--dataset=folder --ways=3 --shots=1 --queries=2 --test_queries=3 --filters=4 --meta_batch=4 "
    "--log_every=10 --steps=200 --eval_every=50 --valid_episodes=10 --eval_episodes=20 --checkpoint_every=20"
).split()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty classes of eight 16 x 16 pictures: a class is a pattern, a picture that pattern and noise."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in range(20):
        pattern = rng.integers(0, 256, (4, 4)).repeat(4, 0).repeat(4, 1)
        (root / f"class{name:02}").mkdir()
        for number in range(8):
            noisy = np.clip(pattern + rng.normal(0, 60, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class{name:02}" / f"{number}.png")
    return root


def start(*flags, driver="fewshot", **options):
    # Runs share compiled programs: the tests are about what happens around them.
    shared = str(Path(os.environ["METAJAX_CACHE_DIR"]) / "xla")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": shared}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", f"experiments.{driver}", *map(str, flags)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*flags, **options):
    process = start(*flags, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def rows(path: Path, *, without=("tasks_per_second",)) -> list[dict]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def last_checkpoint(workdir: Path) -> int:
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    return max(saved, default=0)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    status, out, err = run(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}")
    assert status == 0, err
    return workdir, out


def assert_same_result(workdir: Path, finished: Path) -> None:
    assert rows(workdir / "metrics.csv") == rows(finished / "metrics.csv")
    assert rows(workdir / "test_scores.csv") == rows(finished / "test_scores.csv")
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, finished)]
    for key in (
        "test_accuracy",
        "ci95",
        "episodes_sha256",
        "best_step",
        "best_valid_accuracy",
        "steps",
    ):
        assert results[0][key] == results[1][key]


def test_a_run_leaves_what_it_promises(finished):
    workdir, out = finished
    result = json.loads((workdir / "result.json").read_text())
    promised = (
        "dataset learner ways shots queries test_accuracy ci95 episodes episodes_sha256 transductive seed "
        "steps wall_seconds train_tasks_per_second peak_memory_bytes published settings versions"
    )
    assert set(promised.split()) <= set(result)
    scores = [float(row["accuracy"]) for row in rows(workdir / "test_scores.csv")]
    assert len(scores) == 20
    assert result["test_accuracy"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert result["ci95"] == pytest.approx(1.96 * np.std(scores, ddof=1) / np.sqrt(20), rel=1e-5)
    assert result["transductive"] is True
    assert result["test_accuracy"] > 0.5, "it has learned: chance is a third"
    for name in ("metrics.csv", "curves.png", "episodes.png", "settings.json"):
        assert (workdir / name).stat().st_size > 0
    assert list((workdir / "tensorboard").iterdir())
    assert f"{100 * result['test_accuracy']:.2f}%" in out
    assert "folder" in out and "transductive" in out


def test_kill_dash_nine_and_again_is_bit_identical(pictures, finished, tmp_path):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path / 'killed'}"]
    process = start(*flags)
    deadline = time.time() + 200
    while last_checkpoint(tmp_path / "killed") < 40 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.communicate()
    reached = last_checkpoint(tmp_path / "killed")
    status, out, err = run(*flags)
    assert status == 0, err
    assert reached >= 200 or "Resuming from step" in out
    assert_same_result(tmp_path / "killed", finished[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(pictures, finished, tmp_path, number):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path / 'stopped'}"]
    process = start(*flags)
    deadline = time.time() + 200
    while last_checkpoint(tmp_path / "stopped") < 20 and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal reached it")
    assert process.returncode == 130, err
    assert "Saved at step" in out and "python -m experiments.fewshot --dataset=folder" in out
    status, out, err = run(*flags)
    assert status == 0, err
    assert_same_result(tmp_path / "stopped", finished[0])


def test_a_finished_run_answers_again_without_training(pictures, finished):
    workdir, _ = finished
    before = rows(workdir / "test_scores.csv")
    status, out, err = run(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}")
    assert status == 0, err
    assert "Resuming from step 200 of 200" in out
    assert rows(workdir / "test_scores.csv") == before


def test_evaluate_tests_the_best_checkpoint(pictures, finished):
    workdir, _ = finished
    kept = (workdir / "result.json").read_bytes()
    status, _, err = run(
        *SMALL, f"--data_dir={pictures}", f"--workdir={workdir}", "--mode=evaluate"
    )
    assert status == 0, err
    evaluation = json.loads((workdir / "evaluation" / "result.json").read_text())
    assert evaluation["test_accuracy"] == json.loads(kept)["test_accuracy"]
    more = [
        f"--data_dir={pictures}",
        f"--workdir={workdir}",
        "--mode=evaluate",
        "--test_inner_steps=0",
    ]
    status, _, err = run(*SMALL, *more)
    assert status == 0, err
    unadapted = json.loads((workdir / "evaluation" / "result.json").read_text())["test_accuracy"]
    assert unadapted < evaluation["test_accuracy"] - 0.1, (
        "without inner steps there is nothing to go by"
    )
    assert (workdir / "result.json").read_bytes() == kept


def test_settings_that_led_to_no_checkpoint_bind_nobody(pictures, tmp_path):
    flags = ["--dataset=folder", f"--data_dir={pictures}", f"--workdir={tmp_path}", "--ways=3"]
    flags += ["--meta_batch=8", "--steps=1", "--eval_every=0", "--filters=4", "--eval_episodes=2"]
    flags += ["--queries=2", "--test_queries=2", "--valid_episodes=2"]
    status, _, err = run(*flags, "--tasks_at_once=3")
    assert status == 2 and "--tasks_at_once=3 does not divide" in err
    status, _, err = run(*flags, "--tasks_at_once=1")
    assert status == 0, err


def test_two_processes_do_not_share_a_workdir(pictures, tmp_path):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    first = start(*flags)
    deadline = time.time() + 60
    while not (tmp_path / "settings.json").exists() and time.time() < deadline:
        time.sleep(0.01)
    status, _, err = run(*flags)
    first.kill()
    first.communicate()
    assert status == 2 and "Another process is working in" in err


def test_other_settings_are_refused_with_the_differences(pictures, finished):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={finished[0]}", "--shots=2", "--seed=3"]
    status, _, err = run(*flags)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert "--shots: was 1, now 2" in err and "--seed: was 0, now 3" in err


def test_evaluating_before_the_first_validation_is_refused(pictures, tmp_path):
    flags = [
        *SMALL,
        f"--data_dir={pictures}",
        f"--workdir={tmp_path}",
        "--eval_every=0",
        "--steps=100000",
    ]
    process = start(*flags)
    deadline = time.time() + 200
    while last_checkpoint(tmp_path) < 20 and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    status, _, err = run(*flags, "--mode=evaluate")
    assert status == 1 and "before its first validation" in err


def test_patience_stops_early_and_the_best_checkpoint_is_tested(pictures, tmp_path):
    # Without an outer step nothing improves: the first validation stays the best.
    flags = [
        *SMALL,
        f"--data_dir={pictures}",
        f"--workdir={tmp_path}",
        "--outer_lr=1e-30",
        "--patience=2",
    ]
    for _ in range(2):  # and again from the finished work directory
        status, _, err = run(*flags)
        assert status == 0, err
        result = json.loads((tmp_path / "result.json").read_text())
        assert (result["best_step"], result["steps"]) == (50, 150)


@pytest.mark.parametrize(
    "flags",
    [
        "--learner=fomaml --rotations=all",
        "--learner=anil --model=mlp --augment=shift,flip",
        "--learner=meta_sgd --shots=2 --min_ways=2 --min_shots=1 --norm=group --filters=8",
        "--inner_optimizer=adam --inner_lr=0.01 --inner_steps=2 --clip=1 --norm=layer --model=conv4",
    ],
)
def test_options_compose(pictures, tmp_path, flags):
    normless = "mlp" in flags
    small = [flag for flag in SMALL if not (normless and "filters" in flag)]
    short = ["--steps=20", "--eval_every=20", f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    status, out, err = run(*small, *short, *flags.split())
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 1 and result["settings"]["learner"] in out
    assert result["transductive"] is not (normless or "--norm" in flags)


def test_a_split_file_is_followed(pictures, tmp_path):
    names = [folder.name for folder in sorted(pictures.iterdir())]
    split = {"train": names[:10], "valid": names[10:14], "test": names[14:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    flags = [
        *SMALL,
        f"--data_dir={pictures}",
        "--steps=10",
        f"--split_file={tmp_path / 'split.json'}",
    ]
    status, out, err = run(*flags, f"--workdir={tmp_path / 'run'}")
    assert status == 0, err
    assert "split file: 10 train, 4 valid, 6 test" in " ".join(out.split())
    (tmp_path / "split.json").write_text(json.dumps({**split, "test": ["class99"]}))
    status, _, err = run(*flags, f"--workdir={tmp_path / 'other'}")
    assert status == 1 and "class99" in err


def test_other_data_are_refused(finished, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for folder in pictures.iterdir():
        (other / folder.name).mkdir()
        for file in folder.iterdir():
            image = np.asarray(Image.open(file))
            Image.fromarray(255 - image).save(other / folder.name / file.name)
    status, _, err = run(*SMALL, f"--data_dir={other}", f"--workdir={finished[0]}")
    assert status == 2 and "the images: was" in err


def test_a_corrupted_checkpoint_is_one_clear_line(pictures, finished, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    newest = workdir / "checkpoints" / str(last_checkpoint(workdir))
    for file in newest.rglob("*"):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            file.write_bytes(content)
    status, _, err = run(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}")
    assert status == 1
    assert str(newest) in err and "delete that folder" in err and "Traceback" not in err


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path):
    flags = [*SMALL, f"--data_dir={pictures}", "--inner_lr=1e38", "--norm=none", "--steps=20"]
    status, _, err = run(*flags, f"--workdir={tmp_path / 'stops'}")
    assert status == 1
    assert "not finite at step 1;" in err and "--skip_nonfinite" in err and "Traceback" not in err
    status, _, err = run(*flags, f"--workdir={tmp_path / 'skips'}", "--skip_nonfinite")
    assert status == 0, err
    assert json.loads((tmp_path / "skips" / "result.json").read_text())["skipped_steps"] == 20


def test_regression_reports_the_error_after_each_step(tmp_path):
    flags = (
        "--steps=100 --eval_every=50 --valid_episodes=20 --eval_episodes=40 --log_every=50".split()
    )
    status, out, err = run(*flags, f"--workdir={tmp_path}", driver="regression")
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    by_step = result["test_mse_by_step"]
    assert [entry["step"] for entry in by_step] == list(range(11))
    assert by_step[10]["mse"] == pytest.approx(result["test_mse"], rel=1e-4)
    assert by_step[1]["mse"] < by_step[0]["mse"]
    assert (tmp_path / "fits.png").stat().st_size > 0
    assert "not transductive" in out


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        ("--learner=mamml", 2, "--learner=mamml is unknown; did you mean maml"),
        ("--model=conv5", 2, "--model=conv5 is unknown; did you mean conv4"),
        ("--wayz=5", 2, "--wayz is not a flag; did you mean ways"),
        ("--ways=0", 2, "--ways=0 is too small; use 2 or more"),
        ("--shots=-1", 2, "--shots=-1 is too small"),
        ("--inner_lr=nan", 2, "--inner_lr=nan is not a finite number"),
        ("--steps=many", 2, "--steps=many"),
        ("--min_shots=3", 2, "--min_shots=3 is more than --shots=1"),
        ("--augment=blur", 2, "--augment=blur is unknown"),
        ("--model=mlp --norm=group", 2, "no option 'norm'"),
        ("--seed=4294967296", 2, "--seed=4294967296 is too large; use 4294967295 or less"),
        ("--patience=3 --eval_every=0", 2, "--patience=3 counts validations"),
        ("--learner=meta_sgd --inner_optimizer=adam", 2, "does not go with --learner=meta_sgd"),
        ("--split=file", 2, "--split=file needs --split_file"),
        ("--split=random --split_file=x.json", 2, "takes no --split_file"),
        ("--dataset=glyphs --rotations=all", 2, "does not go with --dataset=glyphs"),
        ("--dataset=glyphs --image_size=3", 1, "image_size is 3 pixels, too small"),
        (
            "--dataset=cifar100 --data_dir=/nowhere",
            1,
            "tensorflow-datasets importlib_resources && python -c",
        ),
        ("--steps=100000000000", 2, "--steps=100000000000 is too large"),
        ("ways=5", 2, "'ways=5' is not a flag"),
        ("--flagfile=nowhere.flags", 2, "nowhere.flags"),
        ("--dataset=omniglott", 1, "omniglot"),
        ("--ways=13", 1, "13 ways are more than the"),
        ("--shots=5 --queries=4", 1, "5 shots and 4 queries need 9 images a class, but 'class"),
        ("--mode=evaluate", 1, "no checkpoint to evaluate"),
    ],
)
def test_bad_input_is_one_line_and_a_status(pictures, tmp_path, flags, status, says):
    defaults = ["--dataset=folder", f"--data_dir={pictures}", f"--workdir={tmp_path}", "--ways=3"]
    defaults += ["--test_queries=3"]
    measured, out, err = run(*defaults, *flags.split())
    assert measured == status, err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert "step/s" not in out


def test_an_unwritable_workdir_is_refused(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run(*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path / 'file' / 'x'}")
    assert status == 2 and "cannot be written" in err and len(err.strip().splitlines()) == 1


def test_a_broken_image_is_named(pictures, tmp_path):
    root = tmp_path / "pictures"
    subprocess.run(["cp", "-r", pictures, root], check=True)
    (root / "class03" / "2.png").write_bytes(b"no image")
    status, _, err = run("--dataset=folder", f"--data_dir={root}", f"--workdir={tmp_path / 'run'}")
    assert status == 1 and str(root / "class03" / "2.png") in err


def test_help_is_complete_and_quick():
    started = time.time()
    status, out, _ = run("--help")
    assert (
        status == 0 and time.time() - started < 20
    )  # a bound for busy machines; benchmarks/ measures it
    for flag in (
        "dataset data_dir split split_file learner model norm ways shots queries meta_batch inner_steps "
        "test_inner_steps inner_lr outer_lr steps eval_every eval_episodes patience seed workdir mode"
    ).split():
        assert f"--{flag}\n" in out


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "experiments" / "recipes").glob("*.flags")), ids=lambda p: p.stem
)
def test_recipes_are_valid_flags_and_say_where_they_come_from(recipe):
    text = recipe.read_text()
    driver = "regression" if "sinusoid" in recipe.name else "fewshot"
    assert f"python -m experiments.{driver} --flagfile=experiments/recipes/{recipe.name}" in text
    for word in ("Paper:", "Published:"):
        assert f"# {word}" in text
    measured = re.search(r"# Measured: (\d+\.\d+) \+- \d+\.\d+", text)
    assert measured or "# Measured: not yet run." in text
    driver = importlib.import_module(f"experiments.{driver}")
    (settings_class,) = {
        kind
        for kind in vars(driver).values()
        if isinstance(kind, type) and kind.__module__ == driver.__name__
    }
    values = absl.flags.FlagValues()
    define_flags(settings_class, values)
    values(["driver", f"--flagfile={recipe}"])
    settings = from_flags(settings_class, values)
    check_fields(settings)
    check_together(settings)
