"""The training loop with all its side effects: progress bar, logs, checkpoints, early stopping."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from metajax.sharding import fetch
from metajax.train import TrainState

from ..flags.settings import TrainingError
from . import distributed
from .best import Best, none_yet
from .checkpoints import Checkpoints
from .compiled_steps import CompiledSteps, Pace
from .metrics import MetricsLog, read_metrics
from .observers import Observers
from .progress import Pending, Progress, Schedule, Score
from .signals import Interrupts, Stopped, waiting


class Outcome(NamedTuple):
    """The end of a training.

    Attributes:
      state: Training state after the last step.
      best: Best meta-parameters by validation score.
      progress: Counters, scores and times.
      finished: Whether the schedule was completed; False if a signal stopped the run.
    """

    state: TrainState
    best: Best
    progress: Progress
    finished: bool


def restore(
    workdir: Path | None, state: TrainState, *, keep_best: int
) -> tuple[TrainState, Best, Progress] | None:
    """Reads the newest checkpoint, if there is one.

    Of several processes the first one reads, in its work directory, and sends the arrays to the others.

    Args:
      workdir: Work directory; None in all processes but the first.
      state: Training state with the expected structure, shapes and dtypes.
      keep_best: Number of best meta-parameters that the checkpoint holds.

    Returns:
      State, best meta-parameters and progress, all on the host; None if there is no checkpoint.

    Raises:
      CheckpointError: If the checkpoint is damaged or does not fit.
    """
    template = {"state": state, "best_metas": none_yet(state.meta, keep_best).metas}
    found = distributed.on_first(
        lambda: Checkpoints(workdir / "checkpoints").restore_latest(template)
    )
    notes = distributed.exchange(found and found.notes)[0]
    if notes is None:
        return None
    arrays = distributed.from_first(found.state if found else template)
    progress = Progress.from_notes(notes["progress"])
    best = Best(arrays["best_metas"], tuple(progress.best_scores), tuple(progress.best_steps))
    return arrays["state"], best, progress


class Training:
    """A run from the newest checkpoint in `workdir`, or from `state`, to the end of the schedule.

    Args:
      compiled_steps: Compiled meta-steps, guarded by `skip_nonfinite`; their metrics have `loss` and the
        score.
      state: Training state at step 0.
      data: Data that a step reads.
      validate: Function from meta-parameters to validation metrics, floats by name.
      score: Validation metric that ranks checkpoints.
      schedule: Periods of logging, validation and checkpoints.
      tasks_per_step: Number of tasks per meta-step T, for the rate in tasks per second.
      skip_nonfinite: Whether to continue after a step that was skipped because its gradient was not finite.
      workdir: Folder of checkpoints and metrics.csv; None in all processes but the first.
      keep_best: Number of best meta-parameters to keep.
      explain: Function from the metrics of a step that is not finite to a sentence that names where it began.
        Metrics that are no scalars are for it alone.
      place: Function that moves arrays to the devices of the step, such as all devices of a mesh.
      observers: Observers of rows, which the caller ends; None for none.
    """

    def __init__(
        self,
        compiled_steps: CompiledSteps,
        state: TrainState,
        data: Any,
        *,
        validate: Callable[[Any], dict[str, float]],
        score: Score,
        schedule: Schedule,
        tasks_per_step: int,
        skip_nonfinite: bool,
        workdir: Path | None,
        keep_best: int = 1,
        explain: Callable[[Mapping[str, np.ndarray]], str] = lambda metrics: "",
        place: Callable[[Any], Any] = lambda tree: tree,
        observers: Observers | None = None,
    ):
        self._compiled_steps, self._score, self._schedule = compiled_steps, score, schedule
        self._measure, self._workdir, self._explain = validate, workdir, explain
        self._tasks_per_step, self._skip_nonfinite = tasks_per_step, skip_nonfinite
        restored = restore(workdir, state, keep_best=keep_best)
        state, self._best, self._progress = restored or (
            state,
            none_yet(state.meta, keep_best),
            Progress(),
        )
        self._done = int(state.step)
        self._saved = self._done if restored else -1
        if restored:
            distributed.remember_saved(self._done)
            print(f"Resuming from step {self._done:,} of {schedule.steps:,}.", flush=True)
        self._state, self._data = place(state), place(data)
        self._compiled_before = self._progress.compile_seconds
        # A program compiled before, for --plan or --memory_budget, counts as part of this run.
        already = self._progress.wall_seconds + compiled_steps.seconds
        self._wall_start = time.perf_counter() - already
        self._pace = Pace()
        redo = "valid" if self._progress.validation_due else None
        self._log = distributed.on_first(
            lambda: MetricsLog(workdir, resume_step=self._done, redo=redo)
        )
        self._observers = observers
        self._may_stop = distributed.in_any(observers is not None and observers.may_stop)
        if observers is not None:
            distributed.on_first(lambda: observers.begin(self._done, lambda: read_metrics(workdir)))
        # In a log file the progress bar is a line each time: once per minute instead of ten times per second.
        slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
        look = {"unit": "step", "dynamic_ncols": True, "disable": not distributed.is_first()}
        self._bar = tqdm(total=schedule.steps, initial=self._done, **look, **slow)

    def run(self) -> Outcome:
        """Trains to the end of the schedule, or until a signal asks to stop.

        Returns:
          The outcome. Unless it is finished, a checkpoint has just been saved.

        Raises:
          TrainingError: If a loss or gradient is not finite and `skip_nonfinite` is False, or nothing was
            learned.
        """
        with Interrupts() as interrupts, self._bar:
            try:
                stopping = self._go_on(interrupts)
            except Stopped:
                stopping = True
            finally:
                if self._log is not None:  # in the first process
                    self._log.close()
            self._save()
        if not stopping:
            _check_learned(self._progress, self._score, steps=self._done)
        self._progress.wall_seconds = self._wall_seconds()
        return Outcome(self._state, self._best, self._progress, finished=not stopping)

    def _go_on(self, interrupts: Interrupts) -> bool:
        """Trains to the end; returns True if a signal stopped it before.

        Raises:
          Stopped: If a signal interrupts work that can be repeated.
        """
        while True:
            if self._progress.validation_due:
                self._validate(interrupts)
            if self._done > 0 and _due(
                self._done, self._schedule.checkpoint_every, self._schedule.steps
            ):
                self._save()
            if self._over():
                return distributed.in_any(interrupts.requested)
            stop = self._schedule.next_stop(self._done)
            stopping = self._block(stop, interrupts)
            if self._done == stop:
                self._close_period()
            # The last validation is not postponed: its checkpoint would have the same step as this one.
            if stopping and not self._may_be_last():
                return True

    def _over(self) -> bool:
        """Returns whether training has reached its end."""
        progress = self._progress
        return (
            self._done >= self._schedule.steps
            or progress.asked_to_end
            or _out_of_patience(self._schedule, progress)
        )

    def _may_be_last(self) -> bool:
        """Returns whether training may end once the pending validation is done."""
        patience, progress = self._schedule.patience, self._progress
        tired = self._may_stop or progress.evaluations_since_best + 1 >= patience > 0
        return self._done >= self._schedule.steps or (progress.validation_due and tired)

    def _wall_seconds(self) -> float:
        """Returns the duration of the run, including the time before it was resumed."""
        return time.perf_counter() - self._wall_start

    def _save(self) -> None:
        """Saves a checkpoint, unless this step has one."""
        if self._saved == self._done:
            return
        self._progress.wall_seconds = self._wall_seconds()
        arrays = {"state": fetch(self._state), "best_metas": self._best.metas}
        notes = {"progress": dataclasses.asdict(self._progress)}

        def write() -> None:
            Checkpoints(self._workdir / "checkpoints").save(self._done, arrays, notes=notes)
            distributed.remember_saved(
                self._done
            )  # before the loss of another process can be noticed

        distributed.on_first(write)
        distributed.remember_saved(self._done)
        self._saved = self._done

    def _block(self, stop: int, interrupts: Interrupts) -> bool:
        """Takes a block of steps, at most up to `stop`; returns whether any process was asked to stop."""
        with interrupts.leaving():
            run_block = self._compiled_steps.compile(self._state, self._data)
        distributed.in_all(functools.partial(self._compiled_steps.prepare, self._state))
        self._progress.compile_seconds = self._compiled_before + self._compiled_steps.seconds
        steps = self._pace.next(stop - self._done)
        start = time.perf_counter()
        arguments = self._state, self._data, np.int32(steps)
        self._state, metrics = waiting(lambda: jax.block_until_ready(run_block(*arguments)))
        seconds = time.perf_counter() - start
        every = {name: np.asarray(values)[:steps] for name, values in metrics.items()}
        metrics = {name: values for name, values in every.items() if values.ndim == 1}
        broken = metrics["skipped"] > 0
        self._progress.train_seconds += seconds
        self._progress.skipped_steps += int(broken.sum())
        self._progress.pending.add(metrics, seconds)
        if broken.any() and not self._skip_nonfinite:
            first = int(np.argmax(broken))
            names = [name for name, values in metrics.items() if not np.isfinite(values[first])]
            explained = self._explain({name: values[first] for name, values in every.items()})
            raise TrainingError(
                _nonfinite_message(
                    names, explained, self._done + first + 1, self._saved, self._workdir
                )
            )
        self._done += steps
        self._bar.update(steps)
        means, _, rate = self._row()
        self._bar.set_postfix(_postfix(means, self._score, rate), refresh=False)
        # All processes take blocks of the same length, chosen by the slowest of them.
        reports = distributed.exchange([interrupts.requested is not None, round(seconds, 6)])
        self._pace.measured(steps, max(taken for _, taken in reports))
        return any(stopping for stopping, _ in reports)

    def _row(self) -> tuple[dict[str, float], int, float]:
        """Returns means of the pending steps' metrics, number of skipped steps, and tasks per second."""
        pending = self._progress.pending
        metrics = pending.arrays()
        broken = metrics.pop("skipped") > 0
        means = {
            name: float(np.mean(values[~broken]))
            for name, values in metrics.items()
            if not broken.all()
        }
        return means, int(broken.sum()), len(broken) * self._tasks_per_step / pending.seconds

    def _close_period(self) -> None:
        """Writes the row of the steps since the last stop, and marks the validation that is due here."""
        if _due(self._done, self._schedule.log_every, self._schedule.steps):
            means, nonfinite, rate = self._row()
            self._write("train", {**means, "tasks_per_second": rate, "nonfinite": nonfinite})
        self._progress.pending = Pending()
        self._progress.validation_due = _due(
            self._done, self._schedule.eval_every, self._schedule.steps
        )

    def _validate(self, interrupts: Interrupts) -> None:
        """Validates, updates the best meta-parameters and prints a line."""
        with contextlib.nullcontext() if self._may_be_last() else interrupts.leaving():
            measured = self._measure(self._state.meta)
        progress, name = self._progress, self._score.name
        asked = self._write("valid", measured)
        self._best = self._best.offer(
            self._state.meta,
            measured[name],
            self._done,
            higher_is_better=self._score.higher_is_better,
        )
        progress.best_steps, progress.best_scores = self._best.steps, self._best.scores
        is_best = progress.best_step == self._done
        progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        progress.validation_due = False
        if distributed.is_first():
            tqdm.write(_validation_line(self._done, measured, self._score, progress))
        if self._may_stop and distributed.in_any(asked):
            progress.asked_to_end = True
            if distributed.is_first():
                tqdm.write(f"step {self._done:,}: an observer asked to end training here.")

    def _write(self, split: str, row: dict[str, Any]) -> bool:
        """Writes a row of metrics in the first process; returns whether an observer asks to end."""

        def write() -> bool:
            self._log.write(self._done, split, row)
            return bool(self._observers) and self._observers.scalars(self._done, split, row)

        return bool(distributed.on_first(write))


def _check_learned(progress: Progress, score: Score, *, steps: int) -> None:
    """Raises TrainingError if training ended with nothing to test."""
    if progress.skipped_steps >= steps:
        raise TrainingError(
            f"All {steps:,} steps were left out, as none had a finite gradient: nothing was learned. Start "
            "again in another --workdir with a smaller --inner_lr or fewer --inner_steps."
        )
    if progress.best_score is None:
        raise TrainingError(
            f"No validation gave a {score.name} that is a number, so there is no best checkpoint. Use a "
            "smaller --inner_lr or fewer --test_inner_steps."
        )


def _due(step: int, period: int, last: int) -> bool:
    """Returns whether something with this period happens at this step; at the last step everything does."""
    return step == last or bool(period and step % period == 0)


def _out_of_patience(schedule: Schedule, progress: Progress) -> bool:
    """Returns whether the score has not improved for `patience` validations."""
    return bool(schedule.patience and progress.evaluations_since_best >= schedule.patience)


def _postfix(means: dict[str, float], score: Score, rate: float) -> dict[str, str]:
    """Formats the numbers behind the progress bar."""
    shown = {
        name: f"{means[name]:.4f}" for name in dict.fromkeys(("loss", score.name)) if name in means
    }
    return {**shown, "tasks/s": f"{rate:.1f}"}


def _validation_line(
    step: int, measured: dict[str, float], score: Score, progress: Progress
) -> str:
    """Formats the line that a validation prints."""
    best = "none yet" if progress.best_score is None else f"{progress.best_score:.4f}"
    mark = "best so far" if progress.best_step == step else f"best {best}"
    return f"step {step:,}: validation {score.name} {measured[score.name]:.4f} ({mark})"


def _nonfinite_message(
    names: Sequence[str], explained: str, step: int, saved: int, workdir: Path | None
) -> str:
    """Formats the error of a non-finite loss or gradient."""
    where = f" in {workdir}" if workdir else ""
    kept = (
        f"the checkpoint of step {saved:,} is kept{where}"
        if saved >= 0
        else "nothing was saved yet"
    )
    found = f" Not finite: {', '.join(names)}." if names else ""
    found += f" {explained}" if explained else ""
    return (
        f"The loss or its gradient is not finite at step {step:,}; {kept}.{found} Start again in another "
        "--workdir with a smaller --inner_lr or --outer_lr or with --clip=10; or continue here with "
        "--skip_nonfinite, which skips such steps and counts them."
    )
