"""Tasks a second of one process on one core, and of several processes that are one run, a core each.

    python -m benchmarks.weak_scaling
    python -m benchmarks.weak_scaling --processes=4 --tasks=8 --rounds=5 -- --learner=anil --inner_steps=5

Each process has one core to itself, one CPU device there, and --tasks tasks a meta-step, whatever their
number: weak scaling. Processes exchange their gradients over this machine's loopback. The driver trains as
ever (second-order MAML of conv4-64, 5-way 1-shot, 15 queries a class, unless flags after -- say otherwise),
and its own tasks a second are read, of every block but the first two. The kinds take turns; medians are
shown.

As many processes that know nothing of each other are measured too: what they lose against one is the
machine's, memory and caches being shared, and what joined ones lose beyond that is the exchange's. Nothing
here says how a pod's network does: experiments.pod.check computes that.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import options as shared
from experiments.runtime.metrics import read_metrics

FLAGS = (
    "--learner=maml --model=conv4 --filters=64 --ways=5 --shots=1 --queries=15 --test_queries=1 "
    "--eval_every=0 --valid_episodes=2 --eval_episodes=2 --checkpoint_every=0 --seed=0"
).split()
BLOCK = 4  # meta-steps
DISCARDED = 2  # blocks


class RunError(RuntimeError):
    """Processes that gave no figure; the message is one line that says why."""


def tasks_per_second(options: argparse.Namespace, cores: Sequence[int], *, joined: bool) -> float:
    """Trains with a process on each core; returns what all of them do together."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(i) for i in range(len(cores))]
        count = len(cores) if joined else 1
        flags = [*FLAGS, *options.flags, f"--meta_batch={options.tasks * count}"]
        flags += [f"--steps={BLOCK * (options.blocks + DISCARDED)}", f"--log_every={BLOCK}"]
        if joined and count > 1:
            flags += ["--distributed", f"--coordinator=127.0.0.1:{_free_port()}"]
            flags += [f"--num_processes={count}"]
        processes = []
        for i, (core, folder) in enumerate(zip(cores, folders, strict=True)):
            own = [f"--process_id={i}"] if joined and count > 1 else []
            processes.append(_start([*flags, *own, f"--workdir={folder}"], core))
        deadline = time.monotonic() + options.timeout
        try:
            errors = [
                process.communicate(timeout=max(1, deadline - time.monotonic()))[1]
                for process in processes
            ]
        except subprocess.TimeoutExpired:
            raise RunError(f"it took more than --timeout={options.timeout:g} seconds") from None
        finally:
            for process in processes:
                process.kill()
        for process, error in zip(processes, errors, strict=True):
            if process.returncode:
                lines = error.strip().splitlines() or ["no reason given"]
                raise RunError(lines[-1].removeprefix("error: "))
        wrote = folders[:1] if joined else folders
        return sum(statistics.median(_rates(folder)) for folder in wrote)


def _rates(folder: Path) -> list[float]:
    rows = [row for row in read_metrics(folder) if row["split"] == "train"]
    return [row["tasks_per_second"] for row in rows[DISCARDED:]]


def _start(flags: Sequence[str], core: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.fewshot", *flags],
        cwd=shared.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.sched_setaffinity(process.pid, {core})  # long before JAX counts its cores
    return process


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; what is wrong with them is one line, and status 2."""
    parser = shared.Parser("benchmarks.weak_scaling", __doc__)
    parser.add_argument("--processes", type=shared.positive(int), default=2, help="[2]")
    parser.add_argument("--tasks", type=shared.positive(int), default=8, help="of a process [8]")
    parser.add_argument("--rounds", type=shared.positive(int), default=3, help="[3]")
    parser.add_argument("--blocks", type=shared.positive(int), default=5, help="measured [5]")
    parser.add_argument(
        "--timeout", type=shared.positive(float), default=600.0, help="seconds of a run [600]"
    )
    parser.add_argument("flags", nargs="*", help="of the driver, after --")
    options = parser.parse_args(args)
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system has no way to give a process a core of its own.")
    cores = sorted(os.sched_getaffinity(0))
    if options.processes > len(cores):
        parser.error(f"--processes={options.processes} is more than the {len(cores)} cores here.")
    options.cores = cores[: options.processes]
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    options = parse(args)
    from experiments.reports import report

    many = len(options.cores)
    kinds = {
        "one process": lambda: tasks_per_second(options, options.cores[:1], joined=True),
        f"{many} processes, one run": lambda: tasks_per_second(options, options.cores, joined=True),
        f"{many} runs of their own": lambda: tasks_per_second(options, options.cores, joined=False),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    try:
        for _ in range(options.rounds):
            for name, measure in kinds.items():
                found[name].append(measure())
                print(f"{name}: {found[name][-1]:.1f} tasks/s", file=sys.stderr, flush=True)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    base = medians["one process"]
    rows = [
        (name, f"{rate:.1f} tasks/s, {rate / base:.2f} of one") for name, rate in medians.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    print(report.table([*rows, ("rounds", str(options.rounds)), ("versions", versions)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
