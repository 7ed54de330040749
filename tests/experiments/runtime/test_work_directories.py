"""Work directories: what a run leaves there, going on where one was, and what is refused."""

import functools
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.flags.settings import UsageError
from helpers.driver_runs import (
    PLAIN,
    SMALL,
    drive,
    last_checkpoint,
    rows,
    run,
    start,
    undrawn,
    unlock,
)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    status, out, err = run(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}", drawn=True)
    assert status == 0, err
    return workdir, out


@pytest.fixture
def again(forked):
    """Runs a further command on a work directory, without pictures: (status, stdout, stderr)."""
    return functools.partial(forked, drawn=False)


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


@undrawn()
def test_evaluate_tests_the_best_checkpoint(pictures, finished, again):
    workdir, _ = finished
    kept = (workdir / "result.json").read_bytes()
    status, _, err = again(
        *SMALL, f"--data_dir={pictures}", f"--workdir={workdir}", "--mode=evaluate"
    )
    assert status == 0, err
    evaluation = json.loads((workdir / "evaluation" / "result.json").read_text())
    assert evaluation["test_accuracy"] == json.loads(kept)["test_accuracy"]
    more = ["--mode=evaluate", "--test_inner_steps=0"]
    assert drive(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}", *more) == 0
    unlock()
    unadapted = json.loads((workdir / "evaluation" / "result.json").read_text())["test_accuracy"]
    assert unadapted < evaluation["test_accuracy"] - 0.1, (
        "without inner steps there is nothing to go by"
    )
    assert (workdir / "result.json").read_bytes() == kept


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


def test_kill_dash_nine_and_again_is_bit_identical(pictures, finished, again, tmp_path):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path / 'killed'}"]
    process = start(*flags)
    deadline = time.time() + 200
    while last_checkpoint(tmp_path / "killed") < 40 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.communicate()
    reached = last_checkpoint(tmp_path / "killed")
    status, out, err = again(*flags)
    assert status == 0, err
    assert reached >= 200 or "Resuming from step" in out
    assert_same_result(tmp_path / "killed", finished[0])


def test_signals_save_and_say_how_to_go_on(pictures, finished, again, tmp_path):
    workdir = tmp_path / "stopped"
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}"]
    for number in (signal.SIGINT, signal.SIGTERM):
        next_step = min(last_checkpoint(workdir) + 20, 200)
        process = start(*flags)
        deadline = time.time() + 200
        while last_checkpoint(workdir) < next_step and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        if process.returncode == 0:
            pytest.skip("the run ended before the signal reached it")
        assert process.returncode == 130, err
        assert "Saved at step" in out and "python -m experiments.fewshot --dataset=folder" in out
    status, out, err = again(*flags)
    assert status == 0, err
    assert_same_result(workdir, finished[0])


def test_a_finished_run_answers_again_without_training(pictures, finished, again):
    workdir, _ = finished
    before = rows(workdir / "test_scores.csv")
    status, out, err = again(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}")
    assert status == 0, err
    assert "Resuming from step 200 of 200" in out
    assert rows(workdir / "test_scores.csv") == before


@undrawn()
def test_settings_that_led_to_no_checkpoint_bind_nobody(pictures, tmp_path):
    flags = ["--dataset=folder", f"--data_dir={pictures}", f"--workdir={tmp_path}", "--ways=3"]
    flags += ["--meta_batch=28", "--steps=1", "--eval_every=0", "--model=mlp", "--eval_episodes=2"]
    flags += ["--queries=2", "--test_queries=2", "--valid_episodes=2"]
    with pytest.raises(UsageError, match="--tasks_at_once=5 does not divide"):
        drive(*flags, "--tasks_at_once=5")
    unlock()
    assert drive(*flags, "--tasks_at_once=1") == 0


def test_two_processes_do_not_share_a_workdir(pictures, again, tmp_path):
    flags = [*PLAIN, f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    first = start(*flags)
    deadline = time.time() + 60
    while not (tmp_path / "settings.json").exists() and time.time() < deadline:
        time.sleep(0.01)
    status, _, err = again(*flags)
    first.kill()
    first.communicate()
    assert status == 2 and "Another process is working in" in err


def test_other_settings_are_refused_with_the_differences(pictures, finished, again):
    flags = [*SMALL, f"--data_dir={pictures}", f"--workdir={finished[0]}", "--shots=2", "--seed=3"]
    status, _, err = again(*flags)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert "--shots: was 1, now 2" in err and "--seed: was 0, now 3" in err


def test_other_data_are_refused(finished, pictures, again, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for folder in pictures.iterdir():
        (other / folder.name).mkdir()
        for file in folder.iterdir():
            image = np.asarray(Image.open(file))
            Image.fromarray(255 - image).save(other / folder.name / file.name)
    status, _, err = again(*SMALL, f"--data_dir={other}", f"--workdir={finished[0]}")
    assert status == 2 and "the training images differ; the test images differ" in err
    assert len(err) < 400, "no digests"


def test_evaluating_before_the_first_validation_is_refused(pictures, again, tmp_path):
    flags = [
        *PLAIN,
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
    status, _, err = again(*flags, "--mode=evaluate")
    assert status == 1 and "before its first validation" in err


def test_a_corrupted_checkpoint_is_one_clear_line(pictures, finished, again, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    newest = workdir / "checkpoints" / str(last_checkpoint(workdir))
    for file in newest.rglob("*"):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            file.write_bytes(content)
    status, _, err = again(*SMALL, f"--data_dir={pictures}", f"--workdir={workdir}")
    assert status == 1
    assert str(newest) in err and "delete that folder" in err and "Traceback" not in err
