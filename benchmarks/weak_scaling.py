"""Measures tasks per second of one process, and of several processes as one run, with one core each.

    python -m benchmarks.weak_scaling
    python -m benchmarks.weak_scaling --processes=4 --tasks=8 --rounds=5 -- --learner=anil --inner_steps=5

Each process has one core, one CPU device, and --tasks tasks per meta-step, whatever the number of processes:
weak scaling. Processes exchange gradients over this machine's loopback. The driver trains as usual
(second-order MAML of conv4-64, 5-way 1-shot, 15 queries per class, or other flags after --), and the tasks
per second that it logs are read, of every block but the first two. The kinds take turns; medians are shown.

The same number of independent processes is measured too: their loss against one process is due to the
machine, which shares memory and caches, and the further loss of joined processes is due to the exchange.
This does not measure the network of a pod: experiments.pod.check computes that.
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
BLOCK = 4  # meta-steps per row of metrics.csv
DISCARDED = 2  # first rows that are not counted: the program warms up


class RunError(RuntimeError):
    """Processes that gave no number; the message is the reason in one line."""


def tasks_per_second(options: argparse.Namespace, cores: Sequence[int], *, joined: bool) -> float:
    """Trains with a process on each core.

    Args:
      options: Options of the command.
      cores: Numbers of the cores.
      joined: Whether the processes are one run.

    Returns:
      Tasks per second of all processes together.

    Raises:
      RunError: If a process fails or takes too long.
    """
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
            raise RunError(f"a run took more than --timeout={options.timeout:g} seconds") from None
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
    """Reads the tasks per second of all blocks but the first ones."""
    rows = [row for row in read_metrics(folder) if row["split"] == "train"]
    return [row["tasks_per_second"] for row in rows[DISCARDED:]]


def _start(flags: Sequence[str], core: int) -> subprocess.Popen:
    """Starts the driver on one core."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.fewshot", *flags],
        cwd=shared.ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.sched_setaffinity(process.pid, {core})  # JAX counts the cores much later
    return process


def _free_port() -> int:
    """Finds a free port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.weak_scaling", __doc__)
    parser.add_argument(
        "--processes", type=shared.positive(int), default=2, help="number of processes [2]"
    )
    parser.add_argument(
        "--tasks", type=shared.positive(int), default=8, help="tasks per meta-step of a process [8]"
    )
    parser.add_argument(
        "--rounds", type=shared.positive(int), default=3, help="rounds of measurements [3]"
    )
    parser.add_argument(
        "--blocks", type=shared.positive(int), default=5, help="measured blocks of a run [5]"
    )
    parser.add_argument(
        "--timeout", type=shared.positive(float), default=600.0, help="seconds of a run [600]"
    )
    parser.add_argument("flags", nargs="*", help="flags of the driver, after --")
    options = parser.parse_args(args)
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system cannot bind a process to a core; use Linux.")
    cores = sorted(os.sched_getaffinity(0))
    if options.processes > len(cores):
        parser.error(f"--processes={options.processes} is more than the {len(cores)} cores here.")
    options.cores = cores[: options.processes]
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    from experiments.reports import report

    many = len(options.cores)
    kinds = {
        "one process": lambda: tasks_per_second(options, options.cores[:1], joined=True),
        f"{many} processes, one run": lambda: tasks_per_second(options, options.cores, joined=True),
        f"{many} separate runs": lambda: tasks_per_second(options, options.cores, joined=False),
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
