"""Files are whole or as they were, and a working directory belongs to one run's settings."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime.files import (
    Appended,
    SettingsMismatch,
    WriteError,
    check_settings,
    write_json,
    write_text,
)


def test_settings_belong_to_the_first_run(tmp_path):
    workdir = tmp_path / "run"
    first = {"dataset": "glyphs", "inner_lr": 0.4, "steps": 10, "norm": "", "sizes": (1, 2)}
    check_settings(workdir, first, ignore=["steps"])
    check_settings(workdir, {**first, "steps": 99}, ignore=["steps"])
    check_settings(workdir, {**first, "of_a_later_version": None}, ignore=["steps"])
    with pytest.raises(SettingsMismatch) as caught:
        changed = {**first, "dataset": "omniglot", "inner_lr": 0.1, "norm": "batch", "new": True}
        check_settings(workdir, changed, ignore=["steps"])
    text = str(caught.value)
    assert "--dataset: was glyphs, now omniglot" in text
    assert "--inner_lr: was 0.4, now 0.1" in text
    assert "--norm: was '', now batch" in text
    assert "--new: was not set, now True" in text
    assert "steps" not in text and "sizes" not in text
    assert str(workdir) in text and "another --workdir" in text
    (workdir / "settings.json").write_text('{"dataset": ')
    with pytest.raises(SettingsMismatch, match=r"settings\.json is damaged"):
        check_settings(workdir, first, ignore=[])


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "made" / "result.json"
    write_json(path, {"a": [np.nan, float("inf"), 1.5], "b": np.float32(0.5), "c": jnp.arange(2)})
    assert json.loads(path.read_text()) == {"a": [None, None, 1.5], "b": 0.5, "c": [0, 1]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == 0.5
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="this system has no full disk to write to"
)
def test_a_full_disk_is_named_with_what_to_do():
    file = Appended("/dev/full")
    with pytest.raises(WriteError) as caught:
        file.write(b"row")
    file.close()
    assert str(caught.value) == (
        "/dev/full cannot be written (No space left on device); make room in /dev, and the same command goes "
        "on from what is saved."
    )
