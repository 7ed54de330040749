"""Metrics survive interruption, as rows and as TensorBoard events."""

import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.metrics import MetricsLog, read_metrics


def write_steps(workdir, first, last, *, resume_step):
    log = MetricsLog(workdir, resume_step=resume_step)
    for step in range(first, last + 1):
        log.write(step, "train", {"loss": np.float32(1 / step), "nonfinite": 0})
        if step % 2 == 0:
            log.write(step, "valid", {"loss": 0.1 + 0.2 * step, "accuracy": np.nan})
    return log


def events(workdir: Path):
    """Reads TensorBoard's records: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((workdir / "tensorboard").iterdir()):  # TensorBoard's own order.
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


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


def test_a_damaged_row_is_named(tmp_path):
    write_steps(tmp_path, 1, 3, resume_step=0).close()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("2,train", "?,train"))
    with pytest.raises(ValueError, match=r"Line 3 of .* is damaged; delete that line"):
        read_metrics(tmp_path)


def test_tensorboard_gets_the_same_numbers_and_hides_what_is_redone(tmp_path):
    write_steps(tmp_path, 1, 6, resume_step=0).close()
    write_steps(tmp_path, 5, 6, resume_step=4).close()
    shown = {}
    for event in events(tmp_path):
        if event.HasField("session_log"):  # TensorBoard's own rule: drop this step and all after.
            shown = {key: value for key, value in shown.items() if key[1] < event.step}
            assert not {step for _, step in shown} - {1, 2, 3, 4}
        for value in event.summary.value:
            assert (value.tag, event.step) not in shown
            shown[value.tag, event.step] = value.simple_value
    assert {step for tag, step in shown if tag == "train/loss"} == {1, 2, 3, 4, 5, 6}
    assert shown["train/loss", 4] == 0.25 and shown["valid/loss", 6] == pytest.approx(1.3)
