"""The training loop on a toy: the run is the same whatever its blocks are, and wherever it is stopped."""

import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.flags.settings import TrainingError
from experiments.runtime import compiled_steps, distributed, loop
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.metrics import read_metrics
from experiments.runtime.observers import Observer, Observers, Run
from experiments.runtime.progress import Schedule, Score
from experiments.runtime.signals import waiting
from helpers.driver_runs import rows
from helpers.toys import as_numbers
from metajax.train import init_state, many_steps, steps_up_to

SCHEDULE = Schedule(steps=60, log_every=10, eval_every=15, checkpoint_every=25, patience=0)


def step(state, data):
    """Moves the parameters by noise; every seventh step counts as left out."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (3,))
    loss = jnp.where(state.step % 7 == 3, jnp.nan, jnp.sum(noise**2) + jnp.sum(state.meta))
    metrics = {"loss": loss, "accuracy": noise[0], "skipped": jnp.isnan(loss).astype(jnp.int32)}
    return state._replace(step=state.step + 1, meta=state.meta + data * noise), metrics


class Signalled(compiled_steps.CompiledSteps):
    """Blocks during whose runs this process is sent a signal, once at each of these steps."""

    def __init__(self, at=()):
        super().__init__(step)
        self.at, self.lengths = set(at), []

    def compile(self, state, data):
        run = super().compile(state, data)

        def run_block(state, data, number):
            first = int(state.step)
            self.lengths.append(int(number))
            ended = run(state, data, number)
            if now := {at for at in self.at if first < at <= first + number}:
                self.at -= now
                _signal()
            return ended

        return run_block


def _signal():
    # From another thread, in which blocks run.
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.05)


def train(
    workdir,
    *,
    at=(),
    validate=None,
    skip_nonfinite=True,
    schedule=SCHEDULE,
    keep=1,
    observers=(),
    may_stop=False,
):
    signalled = Signalled(at)
    run = Run(workdir, {}, {}, "accuracy")
    outcome = loop.Training(
        signalled,
        init_state(jnp.zeros(3), optax.sgd(1.0), jax.random.key(0)),
        jnp.float32(0.1),
        validate=validate or (lambda meta: {"accuracy": float(np.sum(np.asarray(meta)))}),
        score=Score("accuracy", higher_is_better=True),
        schedule=schedule,
        tasks_per_step=1,
        skip_nonfinite=skip_nonfinite,
        workdir=workdir,
        keep_best=keep,
        observers=Observers(run, observers, may_stop=may_stop) if observers else None,
    ).run()
    return outcome, signalled.lengths


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    outcome, lengths = train(workdir)
    assert outcome.finished and sum(lengths) == 60
    return workdir, outcome


def assert_same(workdir, outcome, whole):
    folder, expected = whole
    assert rows(workdir / "metrics.csv") == rows(folder / "metrics.csv")
    states = [jax.tree.leaves(as_numbers(each.state)) for each in (outcome, expected)]
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(outcome.best.first, expected.best.first)
    for name in ("best_steps", "best_scores", "evaluations_since_best", "skipped_steps"):
        ours, theirs = (getattr(each.progress, name) for each in (outcome, expected))
        assert list(np.ravel(ours)) == list(np.ravel(theirs))


def test_steps_of_a_number_known_late_are_those_of_a_scan():
    state = init_state(jnp.zeros(3), optax.sgd(1.0), jax.random.key(0))
    ended, metrics = jax.jit(many_steps(step, 20))(state, jnp.float32(0.1))
    several = jax.jit(steps_up_to(step, 16))
    first, some = several(state, jnp.float32(0.1), 9)
    last, others = several(first, jnp.float32(0.1), 11)
    for name, values in metrics.items():
        np.testing.assert_array_equal(np.concatenate([some[name][:9], others[name][:11]]), values)
    np.testing.assert_array_equal(last.meta, ended.meta)
    assert int(last.step) == 20


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_blocks_of_any_length_log_the_same_rows(whole, tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(compiled_steps, "BLOCK_SECONDS", seconds)
    outcome, lengths = train(tmp_path)
    assert set(lengths) == {1} if seconds == 0 else max(lengths) == 10
    assert_same(tmp_path, outcome, whole)


@pytest.mark.parametrize("at", [(3, 8, 31), (10, 15, 45), (59,), (60,)])
def test_a_run_stopped_within_its_blocks_and_gone_on_with_is_the_same(
    whole, tmp_path, monkeypatch, at
):
    monkeypatch.setattr(compiled_steps, "BLOCK_SECONDS", 0.0)
    for stop in at:
        outcome, _ = train(tmp_path, at=[stop])
        assert not outcome.finished
        assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == stop
    outcome, _ = train(tmp_path)
    assert outcome.finished
    assert_same(tmp_path, outcome, whole)


def test_a_validation_is_left_and_made_again(whole, tmp_path):
    def slow(meta):
        waiting(lambda: (_signal(), time.sleep(20)))

    begun = time.time()
    outcome, _ = train(tmp_path, validate=slow)
    assert time.time() - begun < 10
    assert not outcome.finished and int(outcome.state.step) == 15
    for _ in range(2):  # again, as if the process had been killed after the validation
        outcome, _ = train(tmp_path, at=[18])
    outcome, _ = train(tmp_path)
    assert_same(tmp_path, outcome, whole)


def test_a_validation_that_ends_training_is_not_put_off(tmp_path):
    options = {
        "validate": lambda meta: {"accuracy": 0.5},
        "schedule": SCHEDULE._replace(patience=1),
        "keep": 2,
    }
    stopped, _ = train(tmp_path, at=[30], **options)
    outcome, _ = train(tmp_path, **options)
    assert not stopped.finished and outcome.finished and int(outcome.state.step) == 30
    # A test of the checkpoint finds the members that the run itself was tested with.
    _, best, progress = loop.restore(tmp_path, outcome.state, keep_best=2)
    assert list(best.steps) == list(outcome.best.steps) == [15, 30]
    assert not progress.validation_due


def test_compiling_is_left_at_once(tmp_path, monkeypatch):
    def slow(self, *arguments):
        waiting(lambda: (_signal(), time.sleep(20)))

    monkeypatch.setattr(compiled_steps.CompiledSteps, "_once", slow)
    begun = time.time()
    outcome, _ = train(tmp_path)
    assert time.time() - begun < 10
    assert not outcome.finished and int(outcome.state.step) == 0


def test_the_length_of_blocks_follows_their_time():
    pace = compiled_steps.Pace()
    assert pace.next(50) == 1
    pace.measured(1, 0.1)
    assert pace.next(50) == 8
    pace.measured(8, 0.8)
    assert pace.next(50) == int(compiled_steps.BLOCK_SECONDS / 0.1) and pace.next(5) == 5
    pace.measured(20, 100.0)
    assert pace.next(50) == 1


def test_a_run_of_which_every_step_was_left_out_ends_in_an_error(tmp_path, monkeypatch):
    class Broken(Signalled):
        def compile(self, state, data):
            run = super().compile(state, data)

            def run_block(*arguments):
                state, metrics = run(*arguments)
                return state, {**metrics, "skipped": jnp.ones_like(metrics["skipped"])}

            return run_block

    monkeypatch.setitem(globals(), "Signalled", Broken)
    with pytest.raises(TrainingError, match="All 60 steps were left out"):
        train(tmp_path)
    with pytest.raises(TrainingError, match="not finite at step 1;"):
        train(tmp_path / "stops", skip_nonfinite=False)


def test_a_deleted_directory_is_made_again(whole, tmp_path, capsys):
    workdir = tmp_path / "run"

    def validate(meta):
        if not deleted:
            deleted.append(shutil.rmtree(workdir))
        return {"accuracy": float(np.sum(np.asarray(meta)))}

    deleted = []
    outcome, _ = train(workdir, validate=validate)
    assert "metrics.csv was deleted" in capsys.readouterr().err
    assert_same(workdir, outcome, whole)
    assert Checkpoints(workdir / "checkpoints").steps() == [50, 60]


class Watching(Observer):
    """Keeps what it is given, and stops or raises when a function of a row does."""

    def __init__(self, answer=lambda step, split: None):
        self.answer, self.runs, self.rows = answer, [], []

    def begin(self, run):
        self.runs.append(run)

    def scalars(self, step, split, values):
        self.rows.append({"step": step, "split": split, **{k: float(v) for k, v in values.items()}})
        return self.answer(step, split)


def test_observers_get_the_rows_and_at_a_resume_the_history(whole, tmp_path):
    def kill(step, split):
        if step == 40:
            raise KeyboardInterrupt

    killed, resumed = Watching(kill), Watching()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, observers=[killed])
    outcome, _ = train(tmp_path, observers=[resumed])
    assert_same(tmp_path, outcome, whole)
    (run,) = resumed.runs
    assert run.step == 25 and killed.runs[0].step == 0 and killed.runs[0].history == ()
    rows = read_metrics(tmp_path)
    np.testing.assert_equal([*run.history, *resumed.rows], rows)
    np.testing.assert_equal([row["step"] for row in killed.rows], [10, 15, 20, 30, 30, 40])


@pytest.mark.parametrize("at", [(), (30,)])  # A signal does not put that validation off.
def test_an_observer_ends_training_after_a_validation(tmp_path, capsys, at):
    watching = Watching(lambda step, split: step >= 20)  # Rows of training ask in vain.
    outcome, _ = train(tmp_path, at=at, observers=[watching], may_stop=True)
    assert outcome.finished == (not at) and int(outcome.state.step) == 30
    assert [(row["step"], row["split"]) for row in watching.rows][-1] == (30, "valid")
    assert "step 30: an observer asked to end training here." in capsys.readouterr().out
    again, lengths = train(tmp_path)  # The same command has nothing left to train.
    assert again.finished and lengths == [] and list(again.best.steps) == list(outcome.best.steps)
    assert not again.progress.validation_due


def test_a_run_survives_its_observers(whole, tmp_path, capsys):
    def fail(step, split):
        raise ConnectionError("no network")

    outcome, _ = train(tmp_path, observers=[Watching(fail)])
    assert_same(tmp_path, outcome, whole)
    assert capsys.readouterr().err.count("warning: Watching failed") == 1


def test_only_the_first_process_is_observed(monkeypatch):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    watching = Watching(lambda step, split: True)
    outcome, _ = train(None, observers=[watching], may_stop=True)
    assert outcome.finished and int(outcome.state.step) == 60
    assert watching.runs == [] and watching.rows == []
