r"""Every learner at an equal, small budget of training: the table of docs/choosing.md.

    python -m benchmarks.choosing --data_dir=~/tensorflow_datasets --records=docs/choosing.json \
        --output=docs/choosing.md
    python -m benchmarks.choosing --minutes=0.5 --learners=maml,anil --datasets=omniglot

Each learner first runs a few steps, to find the number of steps that fill the minutes; compiling,
validation and test are not counted. What starts from an encoder has half of the minutes; that encoder
trains first, in the other half. What was found is kept in calibration.json, so that neither accuracies nor
the speeds shown depend on what else the machine does later, and a stopped table goes on with the same
steps. Then each trains in its own process and work directory. What is finished is not run again; what is
not goes on where it was saved; a run that fails is a row with the reason, and is tried again by the next
command. Ctrl-C saves at the next of ten validations, a second one stops at once; the same command goes on.

The table is printed and written after every run, as are the records it is made of. With --records those are
kept outside of the work directory, such as docs/choosing.json: what they hold is neither calibrated nor
trained again, on whatever machine, unless its flags in benchmarks/budgets.py have changed.
"""

import argparse
import functools
import hashlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.budgets import DATASETS, ENCODER, TABLED, TITLES, Run
from benchmarks.harness import options as shared
from benchmarks.harness.outcomes import shown
from benchmarks.harness.processes import say
from experiments.runtime.files import write_json, write_text
from experiments.runtime.metrics import read_metrics
from metajax.zoo.learners import LEARNERS

VALIDATIONS = 10  # over a training; steps are a multiple, lest blocks of two lengths be compiled
# Enough of blocks after the first, which is slower. Validation and test are there because the driver ends so.
CALIBRATION_FLAGS = (
    "--steps=40 --log_every=5 --eval_every=0 --checkpoint_every=0 --valid_episodes=2 --eval_episodes=2"
).split()
DRIVER = (sys.executable, "-m", "experiments.fewshot")


def _steps(run: Run, name: str) -> str:
    return str(run.result["settings"][name]) if LEARNERS[run.learner].inner else "-"


COLUMNS = {  # of a run that is finished
    "tasks seen": lambda run: f"{run.result['steps'] * run.result['settings']['meta_batch']:,}",
    "inner steps": lambda run: _steps(run, "inner_steps"),
    "at test": lambda run: _steps(run, "test_inner_steps"),
    "adapted": lambda run: shown(run.result["adapted_parameters"], ",.0f"),
    "meta-parameters": lambda run: shown(run.result["meta_parameters"], ",.0f"),
    "peak MB": lambda run: shown(run.result["peak_memory_bytes"], ",.0f", scale=1e-6),
    "transductive": lambda run: "yes" if run.result["transductive"] else "no",
}
# What is recorded of a result: what the table and its caption show.
RECORDED = (
    *("test_accuracy", "ci95", "steps", "adapted_parameters", "meta_parameters"),
    *("peak_memory_bytes", "transductive", "split", "versions"),
)
RECORDED_SETTINGS = ("meta_batch", "inner_steps", "test_inner_steps")
MARKERS = ("<!-- table -->", "<!-- end of table -->")


class RunError(RuntimeError):
    """A run that gave no result; the message is one line with the reason."""


def steps_for(tasks_per_second: float, minutes: float, meta_batch: int) -> int:
    """Returns the meta-steps that fill the minutes: a multiple of VALIDATIONS, at least that many."""
    steps = tasks_per_second * 60 * minutes / meta_batch
    return max(1, round(steps / VALIDATIONS)) * VALIDATIONS


def calibrated(run: Run, options: argparse.Namespace) -> Run:
    """Fills in a run's steps from its speed in calibration.json, or measures and writes it there."""
    path = options.workdir / "calibration.json"
    known = _read(path)
    if known.get(run.name, {}).get("flags") != run.all_flags:
        say(f"{run.name}: calibrating")
        try:
            speed = _speed(run, options)
        except RunError as error:
            say(f"{run.name}: {error}")
            return run._replace(error=str(error))
        # Read again: an encoder may have been calibrated meanwhile.
        known = _read(path) | {run.name: {"flags": run.all_flags, **speed}}
        write_json(path, known)
    rate = known[run.name]["tasks_per_second"]
    minutes = run.minutes(options.minutes)
    steps = steps_for(rate, minutes, known[run.name]["meta_batch"])
    say(f"{run.name}: {rate:,.1f} tasks/s, {steps:,} steps in {minutes:g} minutes")
    return run._replace(steps=steps, tasks_per_second=rate)


def work_directory(run: Run, options: argparse.Namespace) -> Path:
    """Returns the work directory of a run; other flags, steps or another seed give another one."""
    text = json.dumps([run.all_flags, run.steps, options.seed])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return options.workdir / run.dataset / f"{run.learner}-{digest}"


def finished(run: Run, options: argparse.Namespace) -> Run:
    """Fills in the result of a run that has one."""
    folder = work_directory(run, options)
    if not run.steps or not (folder / "result.json").exists():
        return run
    found = json.loads((folder / "result.json").read_text("utf-8"))
    result = {name: found[name] for name in RECORDED}
    result["settings"] = {name: found["settings"][name] for name in RECORDED_SETTINGS}
    return run._replace(result=result, error=None)


def recorded(options: argparse.Namespace) -> dict[str, Run]:
    """Returns the finished runs of the records by name, without runs whose flags have changed."""
    found = {}
    for entry in _entries(options):
        run = Run(**{name: value for name, value in entry.items() if name != "flags"})
        known = run.dataset in DATASETS and run.learner in TABLED
        if run.result and known and entry["flags"] == run.all_flags:
            found[run.name] = run
    return found


def _entries(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Reads the records of this budget.

    Raises:
      ValueError: If they are of another one, where the file was asked for.
    """
    if not options.records.exists():
        return []
    records = json.loads(options.records.read_text("utf-8"))
    if records["settings"] == _budget(options):
        return records["runs"]
    if options.records == _own_records(options):
        return []
    held = ", ".join(f"--{name}={value:g}" for name, value in records["settings"].items())
    raise ValueError(f"is of {held}; name another file")


def trained(run: Run, options: argparse.Namespace) -> Run:
    """Trains and tests, or goes on with that; fills in the result or the error."""
    period = run.steps // VALIDATIONS
    periods = [f"--{name}_every={period}" for name in ("log", "eval", "checkpoint")]
    try:
        flags = [*_flags(run, options), f"--steps={run.steps}", *periods, f"--seed={options.seed}"]
        drive(flags, work_directory(run, options))
    except RunError as error:
        return run._replace(error=str(error))
    return finished(run, options)


def drive(flags: Sequence[str], folder: Path) -> None:
    """Runs the driver in a work directory; its output goes to output.txt and errors.txt there.

    Raises:
      RunError: If it wrote no result.
      KeyboardInterrupt: At Ctrl-C, which is passed on, once the driver has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "errors.txt"
    command = [*DRIVER, *flags, f"--workdir={folder}"]
    with (folder / "output.txt").open("wb") as out, errors.open("wb") as err:
        # In a session of its own Ctrl-C does not reach it twice, which would stop it without saving.
        process = subprocess.Popen(
            command, cwd=shared.ROOT, stdout=out, stderr=err, start_new_session=True
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # not SIGINT, which shells let processes in the background ignore
            process.wait()
            raise
        finally:
            process.terminate()  # after a second Ctrl-C it still runs
    if not (folder / "result.json").exists():
        raise RunError(_reason(status, errors.read_text("utf-8", errors="replace")))


def table(runs: Sequence[Run]) -> str:
    """Lays out runs in Markdown, one row per learner; a failed run has its reason, a dash was not run."""
    learners = dict.fromkeys(run.learner for run in runs)
    datasets = [name for name in DATASETS if any(run.dataset == name for run in runs)]
    header = ["learner", *(f"{TITLES[name]}, %" for name in datasets), "tasks/s", *COLUMNS]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    found = {(run.learner, run.dataset): run for run in runs}
    for learner in learners:
        cells = [found.get((learner, name), Run(name, learner)) for name in datasets]
        rows.append(_row(cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def caption(runs: Sequence[Run], *, minutes: float, seed: int) -> str:
    """Describes what the table was measured on and what its columns mean."""
    results = [run.result for run in runs if run.result]
    several = len({run.dataset for run in runs}) > 1
    parts = "Numbers between slashes are those of the columns in turn. " if several else ""
    if readers := list(dict.fromkeys(run.learner for run in runs if run.encoder)):
        parts += (
            f"{', '.join(readers)}: half of the minutes trained a frozen encoder, as that of {ENCODER}, and "
            "tasks are those of the other half. "
        )
    text = (
        f"5-way; 1-shot and {minutes:g} minutes of training if not said otherwise, seed {seed}; accuracy "
        f"on 600 test episodes and its 95% interval. {parts}Adapted are the parameters that a task changes; "
        "memory is that of the process, or of a GPU, compiling included. "
    )
    data = dict.fromkeys(result["split"] for result in results)
    machines = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        for result in results
    )
    return textwrap.fill(text + "; ".join([*data, *machines]) + ".", 110, break_on_hyphens=False)


def replaced(text: str, content: str) -> str:
    """Puts content between the markers of a text; ValueError where they are not there in order."""
    before, first, rest = text.partition(MARKERS[0])
    _, last, after = rest.partition(MARKERS[1])
    if not last:
        raise ValueError(
            f"has no {MARKERS[0]} before {MARKERS[1]}; write them where the table goes"
        )
    return f"{before}{first}\n\n{content}\n\n{last}{after}"


def keep(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Prints the table, and writes it and the records."""
    settings = _budget(options)
    records = [{**run._asdict(), "flags": run.all_flags} for run in runs]
    # What is of other flags now, and was not asked for, is still what was measured.
    names = {run.name for run in runs}
    records += [
        old for old in _entries(options) if f"{old['dataset']}/{old['learner']}" not in names
    ]
    write_json(options.records, {"settings": settings, "runs": records})
    content = f"{table(runs)}\n\n{caption(runs, **settings)}"
    print(content, flush=True)
    if options.output:
        write_text(options.output, replaced(options.output.read_text("utf-8"), content))


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; what is wrong with them is one line, and status 2."""
    parser = shared.Parser("benchmarks.choosing", __doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, help="where TFDS data sets lie [TFDS's own default]")
    add("--workdir", type=Path, default=Path("runs/choosing"), help="[runs/choosing]")
    add("--minutes", type=shared.positive(float), default=5.0, help="of training each [5]")
    for name, known in (("learners", TABLED), ("datasets", DATASETS)):
        read = functools.partial(shared.names, known=known)
        add(f"--{name}", type=read, default=tuple(known), help="between commas [all]")
    add("--seed", type=int, default=0, help="of parameters and training tasks [0]")
    add("--records", type=Path, help="what was found, to read and to write [choosing.json there]")
    add("--output", type=Path, help=f"file whose part between {' and '.join(MARKERS)} is replaced")
    add("--calibrate_only", action="store_true", help="ends before training, of encoders after it")
    options = parser.parse_args(args)
    options.workdir = options.workdir.expanduser().resolve()
    options.records = (options.records or _own_records(options)).expanduser()
    folder = options.data_dir and options.data_dir.expanduser().resolve()
    options.data = [f"--data_dir={folder}"] if folder else []
    if options.seed < 0:
        parser.error(f"--seed={options.seed} is too small; use 0 or more.")
    try:
        name = "output"
        if options.output:
            replaced(options.output.read_text("utf-8"), "")
        name = "workdir"
        options.workdir.mkdir(parents=True, exist_ok=True)
        name = "records"
        recorded(options)
    except OSError as error:
        parser.error(f"--{name}={error.filename} cannot be used ({error.strerror}).")
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
        parser.error(f"--records={options.records} holds no records; name another file.")
    except ValueError as error:
        parser.error(f"--{name}={getattr(options, name)} {error}.")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Calibrates, trains and writes the table; returns the exit status."""
    options = parse(args)
    known = recorded(options)
    cells = [Run(dataset, name) for name in TABLED for dataset in DATASETS]

    def asked(run: Run) -> bool:
        return run.learner in options.learners and run.dataset in options.datasets

    # What others have found stays in the table.
    runs = [known.get(run.name, run) for run in cells if run.name in known or asked(run)]
    try:
        # All of them first: what cannot run at all is known soon.
        runs = [run if run.result else calibrated(run, options) for run in runs]
        if options.calibrate_only:
            return int(not any(run.steps for run in runs if asked(run)))
        runs = [run if run.result else finished(run, options) for run in runs]
        left = [i for i, run in enumerate(runs) if run.steps and not run.result]
        for i in left:
            say(f"{runs[i].name}: training, {i + 1} of {len(runs)}")
            runs[i] = trained(runs[i], options)
            keep(runs, options)
        if not left:
            keep(runs, options)
    except KeyboardInterrupt:
        say("error: interrupted; the same command goes on.")
        return 130
    return int(not any(run.result for run in runs if asked(run)))


def _own_records(options: argparse.Namespace) -> Path:
    return options.workdir / "choosing.json"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _budget(options: argparse.Namespace) -> dict[str, Any]:
    return {"minutes": options.minutes, "seed": options.seed}


def _speed(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Measures the tasks per second of a run's training; RunError where it cannot run."""
    with tempfile.TemporaryDirectory(dir=options.workdir, prefix=".calibration-") as name:
        folder = Path(name)
        drive([*_flags(run, options), *CALIBRATION_FLAGS], folder)
        blocks = [row for row in read_metrics(folder) if row["split"] == "train"]
        rate = statistics.median(row["tasks_per_second"] for row in blocks[1:])
        settings = json.loads((folder / "result.json").read_text("utf-8"))["settings"]
    return {"tasks_per_second": rate, "meta_batch": settings["meta_batch"]}


def _flags(run: Run, options: argparse.Namespace) -> list[str]:
    """Returns the driver's flags on this machine; first trains the encoder that they name, if needed."""
    flags = [*run.flags, *options.data]
    if not run.encoder:
        return flags
    encoder = finished(calibrated(run.encoder, options), options)
    if encoder.steps and not encoder.result:
        say(f"{run.name}: training its encoder")
        encoder = trained(encoder, options)
    if encoder.error:
        raise RunError(f"its encoder, {encoder.name}, {encoder.error}")
    return [flag.format(encoder=work_directory(encoder, options)) for flag in flags]


def _reason(status: int, errors: str) -> str:
    if status == -signal.SIGKILL:
        return "was killed, which systems do where memory runs out"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ")[:200] if lines else "it did not say why"
    return f"ended with status {status}: {last}"


def _row(runs: Sequence[Run]) -> list[str]:
    """Makes the row of one learner; values that all data sets share appear once."""
    # As calibrated, with the machine to itself, which trainings may share.
    columns = [[shown(run.tasks_per_second, ",.0f") for run in runs]]
    for show in COLUMNS.values():
        columns.append([show(run) if run.result else "-" for run in runs])
    cells = [" / ".join(values if len(set(values)) > 1 else values[:1]) for values in columns]
    return [runs[0].learner, *map(_accuracy, runs), *cells]


def _accuracy(run: Run) -> str:
    if run.error:
        return f"failed: {run.error}".replace("|", "\\|")
    if not run.result:
        return "-"
    return f"{100 * run.result['test_accuracy']:.2f} ± {100 * run.result['ci95']:.2f}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
