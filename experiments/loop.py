"""The training loop and every side effect it owns: progress, logs, checkpoints, signals, early stopping."""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import distributed
from experiments.best import Best, none_yet
from experiments.checkpoints import Checkpoints
from experiments.devices import release_memory
from experiments.metrics import MetricsLog
from experiments.settings import TrainingError
from metajax.sharding import fetch
from metajax.train import StepFn, TrainState, many_steps


class Score(NamedTuple):
    """The metric that picks the checkpoint."""

    name: str
    higher_is_better: bool


class Schedule(NamedTuple):
    """When things happen, in meta-steps; 0 means never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int

    def next_stop(self, step: int) -> int:
        """The next step at which the host has something to do; a function of `step` alone, so that a resumed
        run logs the very rows of an uninterrupted one."""
        periods = [p for p in (self.log_every, self.eval_every, self.checkpoint_every) if p]
        return min([self.steps, *((step // period + 1) * period for period in periods)])


@dataclasses.dataclass
class Progress:
    """What a run must remember beside its arrays, kept in each checkpoint as JSON."""

    best_steps: Sequence[int] = ()
    best_scores: Sequence[float] = ()
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    wall_seconds: float = 0.0
    skipped_steps: int = 0

    @property
    def best_step(self) -> int:
        """The step of the best checkpoint, 0 while there is none."""
        return self.best_steps[0] if self.best_steps else 0

    @property
    def best_score(self) -> float | None:
        """The score of the best checkpoint."""
        return self.best_scores[0] if self.best_scores else None


class Outcome(NamedTuple):
    """How training ended: the state, the best meta-parameters, and what is known of the way there."""

    state: TrainState
    best: Best
    progress: Progress
    finished: bool


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once."""

    def __init__(self):
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (a notebook's worker) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._request)
        return self

    def __exit__(self, *error):
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _request(self, number, frame):
        del frame
        if self.requested is not None:
            sys.exit(128 + number)
        self.requested = signal.Signals(number)
        # Not print: a handler may run amid another print, whose buffer cannot be entered twice.
        os.write(2, b"\nStopping at the end of this block of steps; once more to stop at once.\n")


def restore(
    workdir: Path | None, state: TrainState, *, keep_best: int
) -> tuple[TrainState, Best, Progress] | None:
    """Reads the newest checkpoint, if any: the state, the best meta-parameters, the progress.

    Of several processes the first one reads, in its work directory, and tells the others.
    """
    template = {"state": state, "best_metas": none_yet(state.meta, keep_best).metas}
    found = distributed.on_first(
        lambda: Checkpoints(workdir / "checkpoints").restore_latest(template)
    )
    notes = distributed.exchange(found and found.notes)[0]
    if notes is None:
        return None
    arrays = distributed.from_first(found.state if found else template)
    progress = Progress(**notes["progress"])
    best = Best(arrays["best_metas"], tuple(progress.best_scores), tuple(progress.best_steps))
    return arrays["state"], best, progress


class Blocks:
    """Blocks of steps compiled ahead of time, one program a length.

    Attributes:
      seconds: what compiling has taken so far.
    """

    def __init__(self, step: StepFn):
        self._step = step
        self._compiled: dict[int, jax.stages.Compiled] = {}
        self.seconds = 0.0

    def compile(self, length: int, state: TrainState, data: Any) -> jax.stages.Compiled:
        """Compiles `length` steps, `(state, data) -> (state, metrics)`, in the memory of the state."""
        if length not in self._compiled:
            start = time.perf_counter()
            jitted = jax.jit(many_steps(self._step, length), donate_argnums=0)
            self._compiled[length] = jitted.lower(state, data).compile()
            self.seconds += time.perf_counter() - start
            release_memory()
        return self._compiled[length]

    def prepare(self, step: int) -> None:
        """Gets what the first steps after `step` need before all processes start together; nothing here."""

    def close(self) -> None:
        """Gives back what running them took; nothing here."""

    def facts(self) -> dict[str, Any]:
        """Fields of result.json that only these blocks know."""
        return {}


def train(
    blocks: Blocks,
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
    place: Callable[[Any], Any] = lambda tree: tree,
) -> Outcome:
    """Trains from the newest checkpoint in `workdir`, or from `state`, to the end of the schedule.

    Args:
      blocks: of a meta-step guarded by `skip_nonfinite`; its metrics hold `loss` and the score's name.
      state: the state of step 0.
      data: what the step reads.
      validate: meta-parameters -> the validation metrics.
      score: which of them picks the best checkpoint.
      schedule: when to log, validate, save and stop.
      tasks_per_step: T, for the tasks a second.
      skip_nonfinite: go on where a step was left out because its gradient was not finite.
      workdir: where checkpoints, metrics.csv and TensorBoard events go; None in processes beside the first.
      keep_best: how many of the best meta-parameters to keep.
      place: puts arrays where the step wants them, such as on every device of a mesh.

    Returns:
      The outcome; `finished` is False if a signal asked to stop, and then a checkpoint has just been saved.

    Raises:
      TrainingError: at a non-finite loss or gradient, unless they are skipped.
    """
    restored = restore(workdir, state, keep_best=keep_best)
    state, best, progress = restored or (state, none_yet(state.meta, keep_best), Progress())
    done, saved = int(state.step), int(state.step) if restored else -1
    if restored:
        distributed.remember_saved(done)
        print(f"Resuming from step {done:,} of {schedule.steps:,}.", flush=True)
    state, data = place(state), place(data)
    compiled_before = progress.compile_seconds
    # What is compiled already was compiled for this.
    wall_start = time.perf_counter() - progress.wall_seconds - blocks.seconds

    def save() -> None:
        nonlocal saved
        progress.wall_seconds = time.perf_counter() - wall_start
        arrays = {"state": fetch(state), "best_metas": best.metas}
        notes = {"progress": dataclasses.asdict(progress)}

        def write_checkpoint() -> None:
            Checkpoints(workdir / "checkpoints").save(done, arrays, notes=notes)
            distributed.remember_saved(done)  # before another process can turn out to be gone

        distributed.on_first(write_checkpoint)
        distributed.remember_saved(done)
        saved = done

    first = distributed.is_first()
    log = distributed.on_first(lambda: MetricsLog(workdir, resume_step=done))

    def write(split: str, row: dict[str, Any]) -> None:
        distributed.on_first(lambda: log.write(done, split, row))

    # A bar that is not watched still shows life, but once a minute instead of ten times a second.
    slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
    shown = {"unit": "step", "dynamic_ncols": True, "disable": not first, **slow}
    bar = tqdm(total=schedule.steps, initial=done, **shown)
    stopping = False
    with Interrupts() as interrupts, bar:
        while done < schedule.steps and not _out_of_patience(schedule, progress):
            stop = schedule.next_stop(done)
            run_block = blocks.compile(stop - done, state, data)
            distributed.in_all(functools.partial(blocks.prepare, done))
            progress.compile_seconds = compiled_before + blocks.seconds
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(run_block(state, data))
            seconds = time.perf_counter() - start
            progress.train_seconds += seconds

            metrics = {name: np.asarray(values) for name, values in metrics.items()}
            broken = metrics.pop("skipped") > 0
            progress.skipped_steps += int(broken.sum())
            if broken.any() and not skip_nonfinite:
                _close(log)
                where = done + int(np.argmax(broken)) + 1
                raise TrainingError(_nonfinite_message(where, saved, workdir))
            rate = (stop - done) * tasks_per_step / seconds
            means = {
                name: float(np.mean(values[~broken]))
                for name, values in metrics.items()
                if not broken.all()
            }
            bar.update(stop - done)
            done = stop
            bar.set_postfix(_postfix(means, score, rate), refresh=False)
            if _due(done, schedule.log_every, schedule.steps):
                counts = {"tasks_per_second": rate, "nonfinite": int(broken.sum())}
                write("train", {**means, **counts})

            if _due(done, schedule.eval_every, schedule.steps):
                measured = validate(state.meta)
                write("valid", measured)
                best = best.offer(
                    state.meta,
                    measured[score.name],
                    done,
                    higher_is_better=score.higher_is_better,
                )
                progress.best_steps, progress.best_scores = best.steps, best.scores
                is_best = progress.best_step == done
                progress.evaluations_since_best = (
                    0 if is_best else progress.evaluations_since_best + 1
                )
                if first:
                    tqdm.write(_validation_line(done, measured, score, progress))

            stopping = distributed.in_any(interrupts.requested)
            if stopping or _due(done, schedule.checkpoint_every, schedule.steps):
                save()
            if stopping:
                break
        if saved != done:
            save()
    _close(log)
    if progress.best_score is None and not stopping:
        raise TrainingError(
            f"No validation gave a {score.name} that is a number, so there is no best checkpoint. Try a "
            "smaller --inner_lr or fewer --test_inner_steps."
        )
    finished = done >= schedule.steps or _out_of_patience(schedule, progress)
    progress.wall_seconds = time.perf_counter() - wall_start
    return Outcome(state, best, progress, finished)


def _close(log: MetricsLog | None) -> None:
    if log is not None:  # in the first process
        log.close()


def _due(step: int, period: int, last: int) -> bool:
    return step == last or bool(period and step % period == 0)


def _out_of_patience(schedule: Schedule, progress: Progress) -> bool:
    return bool(schedule.patience and progress.evaluations_since_best >= schedule.patience)


def _postfix(means: dict[str, float], score: Score, rate: float) -> dict[str, str]:
    shown = {
        name: f"{means[name]:.4f}" for name in dict.fromkeys(("loss", score.name)) if name in means
    }
    return {**shown, "tasks/s": f"{rate:.1f}"}


def _validation_line(
    step: int, measured: dict[str, float], score: Score, progress: Progress
) -> str:
    best = "none yet" if progress.best_score is None else f"{progress.best_score:.4f}"
    mark = "best so far" if progress.best_step == step else f"best {best}"
    return f"step {step:,}: validation {score.name} {measured[score.name]:.4f} ({mark})"


def _nonfinite_message(step: int, saved: int, workdir: Path | None) -> str:
    where = f" in {workdir}" if workdir else ""
    kept = (
        f"the checkpoint of step {saved:,} is kept{where}"
        if saved >= 0
        else "nothing was saved yet"
    )
    return (
        f"The loss or its gradient is not finite at step {step:,}; {kept}. Start again "
        "elsewhere with a smaller --inner_lr or --outer_lr or with --clip=10; or go on here with "
        "--skip_nonfinite, which leaves such steps out and counts them."
    )
