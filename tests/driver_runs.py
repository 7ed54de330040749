"""Runs the drivers as a user does, in processes of their own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = (
    "--dataset=folder --ways=3 --shots=1 --queries=2 --test_queries=3 --filters=4 --meta_batch=4 "
    "--log_every=10 --steps=200 --eval_every=50 --valid_episodes=10 --eval_episodes=20 --checkpoint_every=20"
).split()


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
