"""Compiled programs outlive their process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.driver_runs import ROOT

RUN = (
    "-m experiments.regression --steps=2 --eval_every=2 --valid_episodes=2 --eval_episodes=2 --hidden=4 "
    "--meta_batch=1"
).split()


def run(cache: Path, workdir: Path, *flags: str, **variables: str) -> str:
    """Trains a little in a fresh process, or with --plan only compiles; returns stderr but for progress."""
    ours = ("JAX_COMPILATION", "JAX_PERSISTENT", "JAX_ENABLE_COMPILATION")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {"METAJAX_CACHE_DIR": str(cache), **variables}
    done = subprocess.run(
        [sys.executable, *RUN, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    return "\n".join(line for line in lines if "%|" not in line and line.strip())


def entries(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*-cache") if file.is_file()}


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    everything = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert run(tmp_path / "cache", tmp_path / "first", **everything) == ""
    kept = entries(tmp_path / "cache" / "programs")
    assert any(name.startswith("jit_steps") for name in kept), "the training itself"
    assert run(tmp_path / "cache", tmp_path / "second", **everything) == ""
    assert entries(tmp_path / "cache" / "programs") == kept
    scores = [(tmp_path / d / "test_scores.csv").read_bytes() for d in ("first", "second")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_folder_can_be_chosen(tmp_path, by):
    chosen = tmp_path / "chosen"
    flags = [f"--compilation_cache={chosen}"] if by == "flag" else []
    variables = {"JAX_COMPILATION_CACHE_DIR": str(chosen)} if by == "variable" else {}
    variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    run(tmp_path / "cache", tmp_path / "run", "--plan", *flags, **variables)
    assert entries(chosen) and not (tmp_path / "cache" / "programs").exists()


def test_off_keeps_nothing(tmp_path):
    assert run(tmp_path / "cache", tmp_path / "run", "--plan", "--compilation_cache=off") == ""
    assert not (tmp_path / "cache" / "programs").exists()


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    err = run(tmp_path / "file", tmp_path / "run", "--plan")
    assert len(err.splitlines()) == 1
    assert "warning: compiled programs cannot be kept in" in err and "--compilation_cache" in err
