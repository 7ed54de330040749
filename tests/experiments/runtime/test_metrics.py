"""Rows of metrics survive interruption."""

import shutil

import numpy as np
import pytest

from experiments.runtime.metrics import MetricsLog, read_metrics


def write_steps(workdir, first, last, *, resume_step):
    log = MetricsLog(workdir, resume_step=resume_step)
    for step in range(first, last + 1):
        log.write(step, "train", {"loss": np.float32(1 / step), "nonfinite": 0})
        if step % 2 == 0:
            log.write(step, "valid", {"loss": 0.1 + 0.2 * step, "accuracy": np.nan})
    return log


def test_rows_read_back(tmp_path):
    write_steps(tmp_path, 1, 2, resume_step=0).close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,split,loss,nonfinite,accuracy"
    assert lines[1:3] == ["1,train,1.0,0,", "2,train,0.5,0,"]
    first, _, last = read_metrics(tmp_path)
    assert first == {"step": 1, "split": "train", "loss": 1.0, "nonfinite": 0.0}
    assert last["split"] == "valid" and last["loss"] == 0.1 + 0.2 * 2
    assert np.isnan(last["accuracy"])
    assert read_metrics(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("torn", ["", "7,tra", "7,train,0.14", '7,train,"'])
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path, torn):
    write_steps(tmp_path / "whole", 1, 9, resume_step=0).close()
    killed = write_steps(tmp_path / "cut", 1, 6, resume_step=0)  # Rows are on disk unasked.
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write(torn)
    assert len(read_metrics(tmp_path / "cut")) == 9
    killed.close()
    write_steps(tmp_path / "cut", 5, 9, resume_step=4).close()
    whole, cut = ((tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "cut"))
    assert cut == whole
    write_steps(tmp_path / "cut", 1, 9, resume_step=0).close()  # Begun anew: nothing old stays.
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        ((b"2,train", b"?,train"), 3),
        ((b"2,train", b"2,tr\xffain"), 3),
        ((b"2,train,0.5", b'2,train,"0.5'), 3),
        ((b"2,train,0.5", b"2,train,half"), 3),
        ((b"2,train,0.5", b"2,train,0." + b"5" * 5000), 3),
        ((b"2,train", b"2" * 5000 + b",train"), 3),
        ((b"2,train,0.5,0,", b"2,train,0.5,0"), 3),
        ((b"2,train", b"\x00,train"), 3),
        ((b"step,split", b"split"), 0),
        ((b"step,split,loss", b"step,split,accuracy"), 0),
        ((b"step", b"\xff"), 0),
    ],
)
def test_a_damaged_file_is_set_aside_and_the_rows_that_can_be_read_go_on(
    tmp_path, capsys, damage, kept
):
    write_steps(tmp_path, 1, 3, resume_step=0).close()
    path = tmp_path / "metrics.csv"
    whole = read_metrics(tmp_path)
    damaged = path.read_bytes().replace(*damage, 1)
    path.write_bytes(damaged)
    expected = [row for row in whole if (row["step"], row["split"]) != (2, "train")][:kept]
    np.testing.assert_equal(read_metrics(tmp_path), expected)
    write_steps(tmp_path, 4, 4, resume_step=3).close()
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == damaged
    np.testing.assert_equal(read_metrics(tmp_path)[:-2], expected)
    assert len(read_metrics(tmp_path)) == kept + 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} is damaged") and "metrics.csv.damaged" in line


def test_what_is_in_the_place_of_the_file_is_set_aside(tmp_path):
    path = tmp_path / "metrics.csv"
    for make in (lambda: path.mkdir(), lambda: path.symlink_to("nowhere")):
        make()
        write_steps(tmp_path, 1, 2, resume_step=0).close()
        assert len(read_metrics(tmp_path)) == 3
        path.unlink()
    assert (tmp_path / "metrics.csv.damaged").is_dir()
    assert (tmp_path / "metrics.csv.damaged2").is_symlink()


def test_a_deleted_file_is_made_again(tmp_path):
    write_steps(tmp_path / "whole", 1, 9, resume_step=0).close()
    log = write_steps(tmp_path / "run", 1, 5, resume_step=0)
    shutil.rmtree(tmp_path / "run")
    for step in range(6, 10):
        log.write(step, "train", {"loss": np.float32(1 / step), "nonfinite": 0})
        if step % 2 == 0:
            log.write(step, "valid", {"loss": 0.1 + 0.2 * step, "accuracy": np.nan})
    log.close()
    whole, run = ((tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "run"))
    assert run == whole


def test_a_row_that_is_to_be_made_again_is_dropped(tmp_path):
    write_steps(tmp_path, 1, 4, resume_step=0).close()
    MetricsLog(tmp_path, resume_step=4, redo="valid").close()
    found = [(row["step"], row["split"]) for row in read_metrics(tmp_path)]
    assert found == [(1, "train"), (2, "train"), (2, "valid"), (3, "train"), (4, "train")]
