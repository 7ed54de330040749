"""Hostile conditions, such as full disks, damaged files and numbers that are none: a line and a status."""

import json
import shutil

import numpy as np
import pytest

from helpers.driver_runs import rows

QUICK = (
    "--hidden=4 --shots=3 --queries=2 --test_queries=2 --meta_batch=2 --steps=6 --eval_every=3 --log_every=2 "
    "--checkpoint_every=2 --valid_episodes=2 --eval_episodes=4 --test_inner_steps=2"
).split()


@pytest.fixture(scope="module")
def run(forked):
    """Runs the quickest driver in a work directory; asserts that no traceback is shown."""

    def command(workdir, *flags, **options):
        flags = (*QUICK, f"--workdir={workdir}", *flags)
        status, out, err = forked(*flags, driver="regression", **options)
        # What carriage returns hide is the progress bar.
        lines = [part.split("\r")[-1] for part in err.split("\n")]
        lines = [line for line in lines if line.strip() and "step/s" not in line]
        assert "Traceback" not in err and "Exception" not in err, err
        return status, out, lines

    return command


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("hostile") / "whole"
    status, _, lines = run(workdir)
    assert status == 0, lines
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def assert_same_result(workdir, finished):
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, finished)]
    for name in ("test_mse", "ci95", "best_step", "best_valid_mse", "episodes_sha256"):
        assert results[0][name] == results[1][name]
    assert rows(workdir / "test_scores.csv") == rows(finished / "test_scores.csv")


FLAGFILES = {
    "binary": np.random.default_rng(0).bytes(3000),
    "zero": b"--data_dir=a\0b\n",
    "itself": b"--flagfile=FOLDER/itself\n",
    "long": b"--data_dir=" + b"a" * 2_000_000 + b"\n--dataset=folder\n",
    "escape": b"--dataset=\x1b[31mred\x1b]0;title\x07\n",
    "comment": b"# nothing\n",
}


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        ("--nodistributed=3", 2, "--nodistributed=3 does not take an argument"),
        ("--distributed=3", 2, "flag --distributed=3: use true or false"),
        ("--steps=", 2, "flag --steps="),
        ("--steps=" + "9" * 5000, 2, "(5,009 characters)"),
        ("--inner_lr=" + "9" * 5000, 2, "--inner_lr=inf is not a finite number"),
        ("--learner=", 2, "--learner= is unknown"),
        ("--=3", 2, "'--=3' is not a flag"),
        ("--flagfile=FOLDER", 2, "Is a directory"),
        ("--flagfile=FOLDER/binary", 2, "a --flagfile is no text"),
        ("--flagfile=FOLDER/itself", 2, "/itself reads itself"),
        ("--flagfile=FOLDER/zero", 2, "holds a zero byte"),
        ("--flagfile=FOLDER/long", 1, "aaa...aaa"),
        ("--flagfile=FOLDER/escape", 1, r"\x1b[31mred\x1b]0;title\x07"),
        ("--flagfile=FOLDER/comment --nowayz", 2, "is not a flag"),
        ("--dataset=glyphs --image_size=100000", 2, "=100000 is too large; use 10000 or less"),
        ("--dataset=glyphs --image_size=9999", 1, "of 9999x9999x1 take 29"),
        ("--dataset=folder --data_dir=~nobody.is.called.so", 2, "a user who is not known here"),
    ],
)
def test_hostile_flags_are_one_line(forked, tmp_path, flags, status, says):
    for name, content in FLAGFILES.items():
        (tmp_path / name).write_bytes(content.replace(b"FOLDER", str(tmp_path).encode()))
    flags = flags.replace("FOLDER", str(tmp_path)).split()
    measured, out, err = forked(*flags, f"--workdir={tmp_path / 'run'}")
    assert measured == status, err
    assert says in err
    assert len(err.strip().splitlines()) == 1 and len(err) < 5000
    assert all(character.isprintable() for character in err.strip())
    assert out == ""


@pytest.mark.parametrize("file_bytes", [1000, 2000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(run, finished, tmp_path, file_bytes):
    status, _, lines = run(tmp_path / "run", file_bytes=file_bytes)
    assert status == 1
    assert "(File too large); make room in " in lines[-1] and str(tmp_path) in lines[-1]
    assert "the same command goes on from what is saved" in lines[-1] and len(lines) <= 3
    status, _, lines = run(tmp_path / "run")
    assert status == 0, lines
    assert_same_result(tmp_path / "run", finished)
    assert rows(tmp_path / "run" / "metrics.csv") == rows(finished / "metrics.csv")


def test_pictures_that_fail_cost_no_result(run, finished, copied):
    for name in ("fits.png", "curves.png", "result.json"):
        (copied / name).unlink()
    for name in ("fits.png", "curves.png"):
        (copied / name).mkdir()
    status, out, lines = run(copied)
    assert status == 0 and "test MSE" in out
    assert len(lines) == 2 and all("not all pictures could be drawn" in line for line in lines)
    assert_same_result(copied, finished)


def test_a_result_that_cannot_be_written_is_printed(run, copied):
    (copied / "result.json").unlink()
    (copied / "result.json").mkdir()
    status, out, lines = run(copied)
    assert status == 1 and "test MSE" in out
    (line,) = lines
    assert "result.json cannot be written (Is a directory); move away what is in its place" in line


def test_damaged_metrics_come_after_nothing(run, finished, copied):
    path = copied / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'4,train,"\xff\n', *lines[3:]]))
    status, _, lines = run(copied)
    assert status == 0
    (line,) = lines
    assert "1 of its rows cannot be read" in line and "kept as metrics.csv.damaged" in line
    assert_same_result(copied, finished)


@pytest.mark.parametrize(
    ("name", "content", "status", "says"),
    [
        ("settings.json", b"[" * 100_000, 2, "settings.json is damaged (ValueError: it is nested"),
        ("settings.json", b'{"shots": ' + b"9" * 5000, 2, "settings.json is damaged (ValueError"),
        ("settings.json", b"\xff", 2, "settings.json is damaged (UnicodeDecodeError"),
        ("settings.json", None, 2, "settings.json is damaged (IsADirectoryError"),
        ("checkpoints", b"", 1, "checkpoints is not a folder"),
        (".lock", None, 2, "cannot be written (Is a directory)"),
        ("tensorboard", b"", 1, "cannot be written (File exists); move away"),
    ],
)
def test_what_is_in_the_place_of_a_file_or_folder_is_one_line(
    run, copied, name, content, status, says
):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    measured, _, lines = run(copied)
    (line,) = lines
    assert (measured, says in line) == (status, True), line


def test_a_cache_that_cannot_be_made_is_a_warning(run, finished, copied):
    status, _, lines = run(copied, f"--compilation_cache={'x' * 300}")
    assert status == 0
    (line,) = lines
    assert line.startswith("warning: compiled programs cannot be kept in ")
    assert_same_result(copied, finished)


def test_damaged_programs_are_compiled_again(run, finished, copied, tmp_path):
    programs = tmp_path / "programs"
    run(copied, f"--compilation_cache={programs}")
    entries = [path for path in programs.iterdir() if path.name.endswith("-cache")]
    assert entries
    for number, path in enumerate(sorted(entries)):
        whole = path.read_bytes()
        damaged = (
            b"",
            whole[: len(whole) // 2],
            bytes(len(whole)),
            whole[:-1] + b"\0",
            b"no program",
        )
        path.write_bytes(damaged[number % len(damaged)])
    status, _, _ = run(copied, f"--compilation_cache={programs}")
    assert status == 0
    assert_same_result(copied, finished)


def test_a_loss_that_is_not_finite_stops_the_run(run, tmp_path):
    status, _, lines = run(tmp_path / "stops", "--inner_lr=1e38")
    assert status == 1
    assert "not finite at step 1;" in lines[-1] and "--skip_nonfinite" in lines[-1]
    for _ in range(2):  # again from the finished work directory
        status, out, lines = run(tmp_path / "skips", "--inner_lr=1e38", "--skip_nonfinite")
        assert status == 1
        assert "error: All 6 steps were left out" in lines[-1] and "test MSE" not in out
    assert not (tmp_path / "skips" / "result.json").exists()


def test_a_test_without_a_finite_loss_has_no_result(run, copied):
    # Fitted well with the step size of its training, the test's is too large.
    flags = ["--mode=evaluate", "--test_inner_steps=4000", "--inner_lr=10"]
    settings = json.loads((copied / "settings.json").read_text())
    (copied / "settings.json").write_text(json.dumps({**settings, "inner_lr": 10.0}))
    status, _, lines = run(copied, *flags)
    assert status == 1
    assert "None of the 4 test episodes has a finite loss" in lines[-1]
    assert not (copied / "evaluation" / "result.json").exists()
