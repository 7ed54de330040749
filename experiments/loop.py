"""The training loop and every side effect it owns: progress, logs, checkpoints, early stopping."""

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

from experiments import distributed
from experiments.best import Best, none_yet
from experiments.checkpoints import Checkpoints
from experiments.devices import release_memory
from experiments.metrics import MetricsLog
from experiments.settings import TrainingError
from experiments.signals import Interrupts, Stopped, waiting
from metajax.sharding import fetch
from metajax.train import StepFn, TrainState, steps_up_to

# A request to stop is heard between blocks: so long may one take, where a step takes less.
BLOCK_SECONDS = 2.0
# The steps of a block at most, as many as there is room for metrics.
MOST_STEPS = 1024
# How much longer than the one before a block may be, as that may have been short by chance.
_GROWTH = 8


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
class Pending:
    """The steps since the schedule's last stop, whose row is still to be written.

    Attributes:
      seconds: Time they took, in seconds.
      values: metric -> the name of its type, and its value after each step: exact, though JSON holds them.
    """

    seconds: float = 0.0
    values: dict[str, tuple[str, list[float]]] = dataclasses.field(default_factory=dict)

    def add(self, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """Takes in a block's metrics [steps] and its time."""
        self.seconds += seconds
        for name, values in metrics.items():
            _, before = self.values.get(name, ("", []))
            self.values[name] = (str(values.dtype), [*before, *values.tolist()])

    def arrays(self) -> dict[str, np.ndarray]:
        """The metrics of all steps, each [steps]."""
        return {name: np.asarray(values, kind) for name, (kind, values) in self.values.items()}


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
    validation_due: bool = False
    pending: Pending = dataclasses.field(default_factory=Pending)

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> "Progress":
        """Reads what `dataclasses.asdict` wrote, in this version or an earlier one."""
        return cls(**{**notes, "pending": Pending(**notes.get("pending", {}))})

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
    progress = Progress.from_notes(notes["progress"])
    best = Best(arrays["best_metas"], tuple(progress.best_scores), tuple(progress.best_steps))
    return arrays["state"], best, progress


class Pace:
    """How many steps the next block takes: as many as fit into BLOCK_SECONDS, by the last one's time."""

    def __init__(self):
        self._steps = 1

    def next(self, left: int) -> int:
        """The steps of the next block, of `left` that are to be taken."""
        return min(self._steps, left)

    def measured(self, steps: int, seconds: float) -> None:
        """Takes in how long a block of `steps` took."""
        fit = int(BLOCK_SECONDS * steps / max(seconds, 1e-9))
        self._steps = max(1, min(fit, _GROWTH * self._steps, MOST_STEPS))


class Blocks:
    """Blocks of steps, by one program that is compiled ahead of time.

    Attributes:
      seconds: what compiling has taken so far.
    """

    def __init__(self, step: StepFn):
        self._step = step
        self._compiled: jax.stages.Compiled | None = None
        self.seconds = 0.0

    def compile(self, state: TrainState, data: Any) -> Callable:
        """Compiles `(state, data, number) -> (state, metrics)`, as `steps_up_to`, in the state's memory."""
        return self._once(steps_up_to(self._step, MOST_STEPS), state, data, np.int32(0))

    def _once(self, steps: Callable, *arguments: Any) -> jax.stages.Compiled:
        if self._compiled is None:
            start = time.perf_counter()
            lowered = jax.jit(steps, donate_argnums=0).lower(*arguments)
            self._compiled = waiting(lowered.compile)
            self.seconds += time.perf_counter() - start
            release_memory()
        return self._compiled

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
    run = _Training(
        blocks,
        state,
        data,
        validate=validate,
        score=score,
        schedule=schedule,
        tasks_per_step=tasks_per_step,
        skip_nonfinite=skip_nonfinite,
        workdir=workdir,
        keep_best=keep_best,
        place=place,
    )
    with Interrupts() as interrupts, run.bar:
        try:
            stopping = run.go_on(interrupts)
        except Stopped:
            stopping = True
        finally:
            _close(run.log)
        run.save()
    progress = run.progress
    if not stopping:
        _check_learned(progress, score, steps=run.done)
    progress.wall_seconds = run.wall_seconds()
    return Outcome(run.state, run.best, progress, finished=not stopping)


class _Training:
    """A run of `train`, whose arguments these are."""

    def __init__(
        self,
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
        keep_best: int,
        place: Callable[[Any], Any],
    ):
        self.blocks, self.score, self.schedule = blocks, score, schedule
        self.measure, self.workdir = validate, workdir
        self.tasks_per_step, self.skip_nonfinite = tasks_per_step, skip_nonfinite
        restored = restore(workdir, state, keep_best=keep_best)
        state, self.best, self.progress = restored or (
            state,
            none_yet(state.meta, keep_best),
            Progress(),
        )
        self.done = int(state.step)
        self.saved = self.done if restored else -1
        if restored:
            distributed.remember_saved(self.done)
            print(f"Resuming from step {self.done:,} of {schedule.steps:,}.", flush=True)
        self.state, self.data = place(state), place(data)
        self.compiled_before = self.progress.compile_seconds
        # What is compiled already was compiled for this.
        self.wall_start = time.perf_counter() - self.progress.wall_seconds - blocks.seconds
        self.pace = Pace()
        redo = "valid" if self.progress.validation_due else None
        self.log = distributed.on_first(
            lambda: MetricsLog(workdir, resume_step=self.done, redo=redo)
        )
        # A bar that is not watched still shows life, but once a minute instead of ten times a second.
        slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
        look = {"unit": "step", "dynamic_ncols": True, "disable": not distributed.is_first()}
        self.bar = tqdm(total=schedule.steps, initial=self.done, **look, **slow)

    def go_on(self, interrupts: Interrupts) -> bool:
        """Trains to the end; returns True where it stops before because a signal asked for it.

        Raises:
          Stopped: where a signal interrupts what has to be done again.
        """
        while True:
            if self.progress.validation_due:
                self._validate(interrupts)
            if self.done > 0 and _due(
                self.done, self.schedule.checkpoint_every, self.schedule.steps
            ):
                self.save()
            if self.over():
                return distributed.in_any(interrupts.requested)
            stop = self.schedule.next_stop(self.done)
            stopping = self._block(stop, interrupts)
            if self.done == stop:
                self._close_period()
            # The last validation is not put off: its checkpoint would have the number of this one.
            if stopping and not self._may_be_last():
                return True

    def over(self) -> bool:
        """Whether training has come to its end."""
        return self.done >= self.schedule.steps or _out_of_patience(self.schedule, self.progress)

    def _may_be_last(self) -> bool:
        """Whether training may be over once what is due here is done."""
        patience, progress = self.schedule.patience, self.progress
        tired = progress.validation_due and progress.evaluations_since_best + 1 >= patience > 0
        return self.done >= self.schedule.steps or tired

    def wall_seconds(self) -> float:
        """How long the run has taken, with what it took before it was resumed."""
        return time.perf_counter() - self.wall_start

    def save(self) -> None:
        """Saves a checkpoint, unless there is one of this step."""
        if self.saved == self.done:
            return
        self.progress.wall_seconds = self.wall_seconds()
        arrays = {"state": fetch(self.state), "best_metas": self.best.metas}
        notes = {"progress": dataclasses.asdict(self.progress)}

        def write() -> None:
            Checkpoints(self.workdir / "checkpoints").save(self.done, arrays, notes=notes)
            distributed.remember_saved(self.done)  # before another process can turn out to be gone

        distributed.on_first(write)
        distributed.remember_saved(self.done)
        self.saved = self.done

    def _block(self, stop: int, interrupts: Interrupts) -> bool:
        """Takes a block of steps, at most up to `stop`; returns whether any process was asked to stop."""
        with interrupts.leaving():
            run_block = self.blocks.compile(self.state, self.data)
        distributed.in_all(functools.partial(self.blocks.prepare, self.done))
        self.progress.compile_seconds = self.compiled_before + self.blocks.seconds
        steps = self.pace.next(stop - self.done)
        start = time.perf_counter()
        arguments = self.state, self.data, np.int32(steps)
        self.state, metrics = waiting(lambda: jax.block_until_ready(run_block(*arguments)))
        seconds = time.perf_counter() - start
        metrics = {name: np.asarray(values)[:steps] for name, values in metrics.items()}
        broken = metrics["skipped"] > 0
        self.progress.train_seconds += seconds
        self.progress.skipped_steps += int(broken.sum())
        self.progress.pending.add(metrics, seconds)
        if broken.any() and not self.skip_nonfinite:
            where = self.done + int(np.argmax(broken)) + 1
            raise TrainingError(_nonfinite_message(where, self.saved, self.workdir))
        self.done += steps
        self.bar.update(steps)
        means, _, rate = self._row()
        self.bar.set_postfix(_postfix(means, self.score, rate), refresh=False)
        # All take blocks of the same length, that of the slowest.
        told = distributed.exchange([interrupts.requested is not None, round(seconds, 6)])
        self.pace.measured(steps, max(taken for _, taken in told))
        return any(stopping for stopping, _ in told)

    def _row(self) -> tuple[dict[str, float], int, float]:
        """Means of the pending steps' metrics, how many of them were left out, and the tasks a second."""
        pending = self.progress.pending
        metrics = pending.arrays()
        broken = metrics.pop("skipped") > 0
        means = {
            name: float(np.mean(values[~broken]))
            for name, values in metrics.items()
            if not broken.all()
        }
        return means, int(broken.sum()), len(broken) * self.tasks_per_step / pending.seconds

    def _close_period(self) -> None:
        """Writes the row of the steps since the last stop, and notes what is due here."""
        if _due(self.done, self.schedule.log_every, self.schedule.steps):
            means, nonfinite, rate = self._row()
            self._write("train", {**means, "tasks_per_second": rate, "nonfinite": nonfinite})
        self.progress.pending = Pending()
        self.progress.validation_due = _due(
            self.done, self.schedule.eval_every, self.schedule.steps
        )

    def _validate(self, interrupts: Interrupts) -> None:
        with contextlib.nullcontext() if self._may_be_last() else interrupts.leaving():
            measured = self.measure(self.state.meta)
        progress, name = self.progress, self.score.name
        self._write("valid", measured)
        self.best = self.best.offer(
            self.state.meta,
            measured[name],
            self.done,
            higher_is_better=self.score.higher_is_better,
        )
        progress.best_steps, progress.best_scores = self.best.steps, self.best.scores
        is_best = progress.best_step == self.done
        progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        progress.validation_due = False
        if distributed.is_first():
            tqdm.write(_validation_line(self.done, measured, self.score, progress))

    def _write(self, split: str, row: dict[str, Any]) -> None:
        distributed.on_first(lambda: self.log.write(self.done, split, row))


def _check_learned(progress: Progress, score: Score, *, steps: int) -> None:
    """Raises TrainingError where training ended with nothing to test."""
    if progress.skipped_steps >= steps:
        raise TrainingError(
            f"All {steps:,} steps were left out, as the gradient of none was finite: nothing was learned. "
            "Start again elsewhere with a smaller --inner_lr or fewer --inner_steps."
        )
    if progress.best_score is None:
        raise TrainingError(
            f"No validation gave a {score.name} that is a number, so there is no best checkpoint. Try a "
            "smaller --inner_lr or fewer --test_inner_steps."
        )


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
