"""Runs the drivers, in processes of their own as a user does, or in this one."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import absl.flags
import pytest

from experiments.fewshot import driver as fewshot
from experiments.flags.settings import check_fields, define_flags
from experiments.flags.training import check_together
from experiments.runtime import workdir
from experiments.runtime.flag_sources import read_flags
from helpers import undrawn as without_pictures
from metajax.zoo.learners import LEARNERS

ROOT = Path(__file__).parents[2]
SMALL = (
    "--dataset=folder --ways=3 --shots=1 --queries=2 --test_queries=3 --filters=4 --meta_batch=4 "
    "--log_every=10 --steps=200 --eval_every=50 --valid_episodes=10 --eval_episodes=20 --checkpoint_every=20"
).split()
# The same of a network that compiles in half the time, for what does not depend on it.
PLAIN = [flag for flag in SMALL if "filters" not in flag] + ["--model=mlp"]


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
    """The settings of a run of few-shot classification that takes seconds."""
    quick = dict(QUICK)
    if not LEARNERS[options.get("learner", "maml")].inner:
        del quick["inner_steps"]
    if LEARNERS[options.get("learner", "maml")].objective:
        del quick["queries"]
    settings = fewshot.FewshotSettings(
        **{**quick, "data_dir": str(pictures), "workdir": str(workdir), **options}
    )
    check_together(settings)
    return settings


def start(*flags, driver="fewshot", variables=None, drawn=False, **options):
    """Starts a driver as a command, without its pictures unless `drawn`; returns the process."""
    # Runs share compiled programs: the tests are about what happens around them.
    shared = str(Path(os.environ["METAJAX_CACHE_DIR"]) / "xla")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": shared}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment |= variables or {}
    program = ["-m", f"experiments.{driver}"]
    if not drawn and driver in without_pictures.DRIVERS:
        environment["PYTHONPATH"] = str(ROOT)
        program = [without_pictures.__file__, driver]
    command = [sys.executable, *program, *map(str, flags)]
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


def drive(*flags, driver=fewshot, settings_class=fewshot.FewshotSettings) -> int:
    """Runs a driver on flags within this process, for what is not about processes; returns its status."""
    return driver.start(parsed(flags, settings_class))


def parsed(flags, settings_class=fewshot.FewshotSettings):
    """Reads flags into settings."""
    values = absl.flags.FlagValues()
    define_flags(settings_class, values)
    settings = read_flags(settings_class, ["driver", *map(str, flags)], values)
    check_fields(settings)
    return settings


@contextlib.contextmanager
def undrawn():
    """Leaves out the pictures of `fewshot`, a third of a short run, for what does not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        without_pictures.leave_out_pictures(patch.setattr)
        yield


def unlock() -> None:
    """Gives back the work directories of this process, which a process keeps to its end."""
    while workdir._locks:
        workdir._locks.pop().close()


def rows(path: Path, *, without=("tasks_per_second",)) -> list[dict]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def give_format(workdir: Path, number: int | None) -> Path:
    """Gives the newest checkpoint a format number, or takes its own away; returns its folder."""
    folder = workdir / "checkpoints" / str(last_checkpoint(workdir))
    path = folder / "header" / "metadata"
    header = json.loads(path.read_text())
    del header["format"]
    path.write_text(json.dumps(header if number is None else {"format": number, **header}))
    return folder


def last_checkpoint(workdir: Path) -> int:
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    return max(saved, default=0)
