"""The course of a run, the same for every driver: plan, train, test, report."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.cost import flops
from metajax.names import shown
from metajax.trees import size

from .flags.plan import RunPlan, resolve
from .flags.settings import LONGEST_LINE, PACKAGE, TrainingError, UsageError, declarations
from .flags.training import TrainingSettings
from .reports import pictures, report, results, validation
from .runtime import data_record, distributed, loop, memory
from .runtime.checkpoints import Checkpoints
from .runtime.compilation import keep_programs
from .runtime.compiled_steps import CompiledSteps
from .runtime.devices import use_every_core
from .runtime.files import data_hashes
from .runtime.observers import Observer, Observers, Run
from .runtime.progress import Schedule
from .runtime.trackers.choose import choose_trackers
from .runtime.workdir import prepare_workdir, tie_settings
from .setup.experiment import Experiment, Setup
from .setup.init_from import start_from
from .setup.learners import inner_loop_in_words


def prepare_process(settings: TrainingSettings) -> None:
    """Configures JAX for a run; call it before anything else uses JAX."""
    # Where the number of processes is not given, this one plans for all tasks.
    use_every_core(max(1, settings.meta_batch // max(1, settings.num_processes)))
    keep_programs(settings.compilation_cache)
    distributed.join(settings)


def conduct(
    build: Callable[[Any], Experiment],
    settings: TrainingSettings,
    *,
    observers: Sequence[Observer] = (),
) -> int:
    """Trains if asked to, tests, and writes and prints the result; or prints the cost of training.

    Args:
      build: Function settings -> experiment; it raises UsageError or DataError.
      settings: Settings of the command.
      observers: Observers of the training, besides the trackers of `--track`.

    Returns:
      Exit status.

    Raises:
      UsageError: If a tracker is unknown.
      ImportError: If the package of a tracker is not installed.
    """
    distributed.check_same(_to_be_the_same(settings))
    trackers = []
    if settings.mode == "train" and not settings.plan:  # before data is read and anything compiled
        trackers = distributed.on_first(
            lambda: choose_trackers(settings.track, project=settings.track_project)
        )
    experiment = distributed.in_all(lambda: build(settings))
    distributed.check_same({"The data": experiment.fingerprint})
    distributed.check_same(
        {"What stays on disk": sorted(experiment.streamed)},
        remedy="their memory differs: give all of them --resident=always, or never",
    )
    settings = dataclasses.replace(settings, **experiment.settled)
    return _conduct(experiment, settings, resolve(settings), trackers or [], observers)


def _conduct(
    experiment: Experiment,
    settings: TrainingSettings,
    plan: RunPlan,
    trackers: Sequence[Observer],
    observers: Sequence[Observer],
) -> int:
    fingerprint, workdir = experiment.fingerprint, None
    if not plan.command.plan:
        workdir = distributed.on_first(
            lambda: prepare_workdir(settings, experiment.name, fingerprint)
        )
    if plan.command.mode == "bundle" and not experiment.bundle:
        raise UsageError(f"--mode=bundle is for {PACKAGE}.fewshot; these runs have no bundle yet.")
    setup = Setup(experiment, plan)
    if not plan.command.plan:
        distributed.on_first(lambda: _tie(experiment, settings, workdir))
    init_key, train_key = jax.random.split(jax.random.key(plan.training.seed))
    try:
        jax.eval_shape(setup.learner.init, init_key, experiment.inputs)
    except ValueError as error:
        raise UsageError(f"--learner={plan.inner.learner} does not work here: {error}") from error
    meta = jax.jit(setup.learner.init)(init_key, experiment.inputs)
    meta, origin = _initial(experiment, plan, workdir, meta)
    state = setup.init_state(meta, train_key)
    # Evaluating has no training program, and the training that it tests has made its choice.
    choice = None
    if plan.command.plan or (plan.memory_budget and plan.command.mode == "train"):
        choice = _choose(setup, state)
        setup = Setup(experiment, choice.program.plan)
    print(report.table(_announcement(setup, choice, workdir, meta, origin)), flush=True)

    if plan.command.plan:
        print(report.table(_needs(setup, choice.program, state)), flush=True)
        return 0
    if plan.command.after_training:
        keep_best = plan.training.ensemble
        state, best, progress = loop.restore(workdir, state, keep_best=keep_best)
        if progress.best_score is None:
            raise TrainingError(
                f"{plan.command.workdir} stopped at step {int(state.step):,}, before its first validation "
                "chose a checkpoint; go on training first."
            )
        if plan.command.mode == "bundle":
            distributed.on_first(lambda: results.bundle(setup, workdir, best.first))
        else:
            results.test(setup, workdir and workdir / "evaluation", best, progress, int(state.step))
        return 0
    if plan.command.skip_test:
        validation.begin(setup, workdir)
    # A program chosen for its memory is compiled already.
    steps = choice.program.compiled_steps if choice else setup.compiled_steps()
    run = Run(workdir, plan.asked, {**experiment.facts, **report.versions()}, experiment.score.name)
    # Trackers come first, so that they have the row at which another observer ends training.
    told = Observers(run, [*trackers, *observers], may_stop=bool(observers))
    try:
        with contextlib.closing(steps):
            outcome = _train(setup, steps, state, workdir, told)
        step = int(outcome.state.step)
        if not outcome.finished:
            _say_saved(step, workdir)
            return 130
        if plan.command.skip_test:
            validated = validation.end(setup, workdir, outcome)
            distributed.on_first(lambda: told.end(validated))
            return 0
        result = results.test(setup, workdir, outcome.best, outcome.progress, step, steps.facts())
        # Again, should the directory have been deleted meanwhile; the result comes first.
        distributed.on_first(lambda: _tie(experiment, settings, workdir))
        if workdir:
            name = experiment.score.name
            results.drawn(lambda: pictures.curves(workdir, metric=name, title=shown(workdir.name)))
        distributed.on_first(lambda: told.end(result))
    finally:
        told.end(None)  # of a run that stopped or failed
    return 0


def _tie(experiment: Experiment, settings: TrainingSettings, workdir: Path) -> None:
    tie_settings(settings, workdir, experiment.fingerprint)
    if experiment.record:
        data_record.write(workdir, experiment.record)


def _to_be_the_same(settings: TrainingSettings) -> dict[str, Any]:
    """Collects the facts that all processes of a run must share: flags, versions, the code's hash."""
    shared = [name for name, declared in declarations(settings).items() if declared.shared]
    flags = {f"--{name}": getattr(settings, name) for name in shared}
    flags["Whether there is an --init_from"] = bool(settings.init_from)
    flags["The code's hash"] = distributed.source_sha256()
    for name in ("jax_enable_x64", "jax_default_matmul_precision"):
        flags[name.upper()] = getattr(jax.config, name)
    return flags | {
        f"The version of {name}": v for name, v in report.versions().items() if name != "device"
    }


def _initial(
    experiment: Experiment, plan: RunPlan, workdir: Path | None, meta: Any
) -> tuple[Any, str]:
    """Returns the first meta-parameters, and a description where they are not random."""
    training = plan.training
    if not training.init_from:
        return meta, ""

    def initial() -> tuple[Any, str]:
        if Checkpoints(workdir / "checkpoints").steps() if workdir else False:
            return meta, ""
        recorded = {**plan.asked, **data_hashes(experiment.fingerprint)}
        return start_from(meta, training.init_from, settings=recorded, head=training.init_head)

    meta, origin = distributed.on_first(initial) or (meta, "")
    return distributed.from_first(meta), origin


def _choose(setup: Setup, state: Any) -> memory.Choice:
    """Compiles what training begins with, once or until it fits the memory budget."""
    arguments = setup.place(state), setup.place(setup.experiment.data["train"])

    def compiled(plan: RunPlan) -> memory.Program:
        steps = Setup(setup.experiment, plan, mesh=setup.mesh).compiled_steps()
        return memory.compile_program(plan, steps, *arguments, mesh=setup.mesh)

    return memory.choose(compiled, setup.plan, tasks=setup.tasks_together)


def _needs(setup: Setup, program: memory.Program, state: Any) -> list[tuple[str, str]]:
    try:
        operations = flops(setup.meta_step(), state, setup.step_data())
    except ValueError:  # The line search of a trust region has no fixed length.
        operations = None
    return memory.rows(program, flops=operations, mesh=setup.mesh)


def _schedule(plan: RunPlan) -> Schedule:
    return Schedule(
        steps=plan.training.steps,
        log_every=plan.command.log_every,
        eval_every=plan.training.eval_every,
        checkpoint_every=plan.command.checkpoint_every,
        patience=plan.training.patience,
    )


def _train(
    setup: Setup, steps: CompiledSteps, state: Any, workdir: Path | None, observers: Observers
) -> loop.Outcome:
    training = setup.plan.training
    scores = setup.scorer("valid", training.valid_episodes)
    return loop.Training(
        steps,
        state,
        setup.experiment.data["train"],
        validate=lambda meta: _validation(setup.experiment, scores(meta)),
        score=setup.experiment.score,
        schedule=_schedule(setup.plan),
        tasks_per_step=training.meta_batch,
        skip_nonfinite=training.skip_nonfinite,
        explain=setup.experiment.explain,
        workdir=workdir,
        keep_best=training.ensemble,
        place=setup.place,
        observers=observers,
    ).run()


def _validation(experiment: Experiment, scores: results.Scores) -> dict[str, float]:
    """Averages each metric; the score is NaN where no episode has a finite loss."""
    means = results.means(experiment.scoring.metrics, scores)
    if not np.isfinite(scores["loss"]).any():
        means[experiment.score.name] = float("nan")  # whatever the arg max of NaN is
    return means


def _announcement(
    setup: Setup, choice: memory.Choice | None, workdir: Path | None, meta: Any, origin: str
) -> list[tuple[str, str]]:
    plan, training, outer = setup.plan, setup.plan.training, setup.plan.outer
    optional = [("starts from", origin)] if origin else []
    if plan.command.published is None and plan.command.published_by:
        optional.append(("published", plan.command.published_by))
    if choice and plan.memory_budget:
        optional.append(("memory budget", f"{training.memory_budget}: {choice.search}"))
    if workdir:
        optional.append(("work directory", str(workdir)))
    estimator, adapted = outer.estimator, setup.num_adapted(meta)
    if outer.multi_step:
        estimator += f", losses after every inner step for {outer.multi_step:,} steps"
    if outer.first_order_steps:
        estimator += f", {outer.first_order_steps:,} steps of it first order"
    follows = f"{outer.optimizer} {outer.learning_rate:g} ({outer.schedule}) on {estimator}"
    follows = setup.experiment.follows or follows
    members = f", mean of up to {training.ensemble} checkpoints" if training.ensemble > 1 else ""
    kind = "transductive" if setup.experiment.transductive else "not transductive"
    return [
        *setup.experiment.announcement,
        ("inner loop", inner_loop_in_words(plan.inner)),
        (
            "meta-parameters",
            f"{size(meta):,}" + ("" if adapted is None else f"; a task adapts {adapted:,}"),
        ),
        (
            "training",
            f"{training.steps:,} steps of {training.meta_batch} tasks, {setup.tasks_together} at once on a "
            f"device, {follows}, {training.precision}, seed {training.seed}",
        ),
        ("test", f"{plan.test.eval_episodes} episodes, {kind}{members}"),
        ("device", _devices_in_words(setup)),
        *optional,
    ]


def _devices_in_words(setup: Setup) -> str:
    words = f"{report.versions()['device']}, {setup.mesh.size} in use"
    if (processes := jax.process_count()) > 1:
        words += f" by {processes} processes"
    if (shards := setup.plan.devices.parameter_shards) > 1:
        words += f"; parameters divided over {shards}"
    return words


def _say_saved(step: int, workdir: Path | None) -> None:
    """Prints how to resume, in every process, since each may have been the one asked to stop."""
    where = f" in {shown(workdir)}" if workdir else ""
    same = "The same command" if jax.process_count() == 1 else "The same command in every process"
    # Those without a work directory have no standard output.
    stream = sys.stdout if distributed.is_first() else sys.stderr
    print(f"Saved at step {step:,}{where}. {same} goes on from there:", file=stream)
    print(f"  {shown(_command(), LONGEST_LINE)}", file=stream, flush=True)


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = (
        ["python", "-m", module.name.removesuffix(".__main__")]
        if module
        else ["python", sys.argv[0]]
    )
    return shlex.join([*program, *sys.argv[1:]])
