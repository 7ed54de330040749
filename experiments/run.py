"""What every driver does around its experiment: plan, train, test, report."""

import contextlib
import dataclasses
import hashlib
import shlex
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data_record, distributed, loop, pictures, plan, report
from experiments.best import Best
from experiments.blocks import Blocks
from experiments.checkpoints import Checkpoints
from experiments.compilation import keep_programs
from experiments.devices import peak_memory_bytes, use_every_core
from experiments.estimators import multi_step_loss
from experiments.experiment import Experiment, Setup, evaluation_key
from experiments.files import WriteError, data_hashes, one_line, write_json, write_text
from experiments.init_from import start_from
from experiments.learner_options import inner_loop_in_words
from experiments.options import TrainingSettings, memory_budget
from experiments.progress import Progress, Schedule
from experiments.settings import LONGEST_LINE, TrainingError, UsageError
from experiments.workdir import keep_evaluation, prepare_workdir, tie_settings
from metajax.cost import flops
from metajax.names import shown
from metajax.train import confidence_interval, draw_task
from metajax.trees import size
from metajax.types import Array


def prepare_process(settings: TrainingSettings) -> None:
    """Configures JAX for a run of its own; call it before anything else uses JAX."""
    # Of processes that are found out, one has all tasks as far as is known here.
    use_every_core(max(1, settings.meta_batch // max(1, settings.num_processes)))
    keep_programs(settings.compilation_cache)
    distributed.join(settings)


def conduct(build: Callable[[Any], Experiment], settings: TrainingSettings) -> int:
    """Trains if asked to, tests, and writes and prints the result; or prints what training takes.

    Args:
      build: settings -> what to run; raises what is wrong with them or with the data.
      settings: how.

    Returns:
      The exit status.
    """
    distributed.check_same(_to_be_the_same(settings))
    experiment = distributed.in_all(lambda: build(settings))
    distributed.check_same({"The data": experiment.fingerprint})
    distributed.check_same(
        {"What stays on disk": sorted(experiment.streamed)},
        remedy="their memory differs: give all of them --resident=always, or never",
    )
    return _conduct(experiment, settings)


def _conduct(experiment: Experiment, settings: TrainingSettings) -> int:
    fingerprint, workdir = experiment.fingerprint, None
    if not settings.plan:
        workdir = distributed.on_first(
            lambda: prepare_workdir(settings, experiment.name, fingerprint)
        )
    setup = Setup(experiment, settings)
    if not settings.plan:
        distributed.on_first(lambda: _tie(experiment, settings, workdir))
    init_key, train_key = jax.random.split(jax.random.key(settings.seed))
    try:
        jax.eval_shape(setup.learner.init, init_key, experiment.inputs)
    except ValueError as error:
        raise UsageError(f"--learner={settings.learner} does not work here: {error}") from error
    meta = jax.jit(setup.learner.init)(init_key, experiment.inputs)
    meta, origin = _initial(experiment, settings, workdir, meta)
    state = setup.init_state(meta, train_key)
    # Evaluating has no training program, and the training that it tests has made its choice.
    choice = None
    if settings.plan or (memory_budget(settings) and settings.mode == "train"):
        choice = _choose(setup, state, train_key)
        setup = Setup(experiment, choice.program.settings, asked=settings)
    print(report.table(_announcement(setup, choice, workdir, meta, origin)), flush=True)

    if settings.plan:
        print(report.table(_needs(setup, choice.program, state, train_key)), flush=True)
        return 0
    if settings.mode == "evaluate":
        state, best, progress = loop.restore(workdir, state, keep_best=settings.ensemble)
        if progress.best_score is None:
            raise TrainingError(
                f"{settings.workdir} stopped at step {int(state.step):,}, before its first validation chose "
                "a checkpoint; go on training first."
            )
        _report(setup, workdir and workdir / "evaluation", best, progress, int(state.step))
        return 0
    # A program chosen for its memory is compiled already.
    blocks = choice.program.blocks if choice else setup.blocks(train_key)
    with contextlib.closing(blocks):
        outcome = _train(setup, blocks, state, workdir)
    step = int(outcome.state.step)
    if not outcome.finished:
        _say_saved(step, workdir)
        return 130
    _report(setup, workdir, outcome.best, outcome.progress, step, blocks.facts())
    # Again, should the directory have been deleted meanwhile; the result comes first.
    distributed.on_first(lambda: _tie(experiment, settings, workdir))
    if workdir:
        name = experiment.score.name
        _drawn(lambda: pictures.curves(workdir, metric=name, title=shown(workdir.name)))
    return 0


def _tie(experiment: Experiment, settings: TrainingSettings, workdir: Path) -> None:
    tie_settings(settings, workdir, experiment.fingerprint)
    if experiment.record:
        data_record.write(workdir, experiment.record)


def _to_be_the_same(settings: TrainingSettings) -> dict[str, Any]:
    """What all processes of a run have in common: flags, and the versions of what computes."""
    fields = dataclasses.asdict(settings)
    flags = {f"--{name}": fields[name] for name in fields if name not in distributed.OF_A_HOST}
    flags["Whether there is an --init_from"] = bool(settings.init_from)
    flags["The code's hash"] = distributed.source_sha256()
    for name in ("jax_enable_x64", "jax_default_matmul_precision"):
        flags[name.upper()] = getattr(jax.config, name)
    return flags | {
        f"The version of {name}": v for name, v in report.versions().items() if name != "device"
    }


def episodes_sha256(
    sampler: Any, data: Any, key: Array, num_episodes: int, fingerprint: str
) -> str:
    """Hashes what determines each of the first `num_episodes` episodes of a key, and the data they index."""

    def identify(task):
        return draw_task(sampler.identify, data, jax.random.fold_in(key, 0), task)[1]

    drawn = jax.jit(lambda tasks: jax.lax.map(identify, tasks))(jnp.arange(num_episodes))
    digest = hashlib.sha256(fingerprint.encode())
    for leaf in jax.tree.leaves(drawn):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _initial(
    experiment: Experiment, settings: TrainingSettings, workdir: Path | None, meta: Any
) -> tuple[Any, str]:
    """What training starts from, and in words where that is not at random."""
    if not settings.init_from:
        return meta, ""

    def initial() -> tuple[Any, str]:
        if Checkpoints(workdir / "checkpoints").steps() if workdir else False:
            return meta, ""
        recorded = {**dataclasses.asdict(settings), **data_hashes(experiment.fingerprint)}
        return start_from(meta, settings.init_from, settings=recorded, head=settings.init_head)

    meta, origin = distributed.on_first(initial) or (meta, "")
    return distributed.from_first(meta), origin


def _choose(setup: Setup, state: Any, key: Array) -> plan.Choice:
    """Compiles what training begins with, once or until it fits the memory budget."""
    arguments = setup.place(state), setup.place(setup.experiment.data["train"])

    def compiled(settings: TrainingSettings) -> plan.Program:
        blocks = Setup(setup.experiment, settings, mesh=setup.mesh).blocks(key)
        return plan.compile_program(settings, blocks, *arguments, mesh=setup.mesh)

    return plan.choose(compiled, setup.settings, tasks=setup.tasks_together)


def _needs(setup: Setup, program: plan.Program, state: Any, key: Array) -> list[tuple[str, str]]:
    return plan.rows(
        program,
        flops=flops(setup.meta_step(key), state, setup.step_data()),
        mesh=setup.mesh,
    )


def _schedule(settings: TrainingSettings) -> Schedule:
    return Schedule(
        steps=settings.steps,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint_every,
        patience=settings.patience,
    )


def _train(setup: Setup, blocks: Blocks, state: Any, workdir: Path | None) -> loop.Outcome:
    settings = setup.settings
    scores = setup.scorer("valid", settings.valid_episodes)
    return loop.Training(
        blocks,
        state,
        setup.experiment.data["train"],
        validate=lambda meta: _validation(scores(meta), setup.experiment.score.name),
        score=setup.experiment.score,
        schedule=_schedule(settings),
        tasks_per_step=settings.meta_batch,
        skip_nonfinite=settings.skip_nonfinite,
        workdir=workdir,
        keep_best=settings.ensemble,
        place=setup.place,
    ).run()


def _validation(scores: Mapping[str, np.ndarray], name: str) -> dict[str, float]:
    """Means over episodes; the score that counts is NaN where no episode has a finite loss."""
    means = {key: float(np.mean(values)) for key, values in scores.items()}
    if not np.isfinite(scores["loss"]).any():
        means[name] = float("nan")  # whatever the arg max of NaN is
    return means


def _nonfinite(scores: Mapping[str, np.ndarray], name: str) -> int:
    """Counts the test episodes without a finite loss; TrainingError where no other is left."""
    finite = np.isfinite(scores["loss"])
    if not finite.any():
        raise TrainingError(
            f"None of the {len(finite):,} test episodes has a finite loss, so that there is no test "
            f"{name.replace('_', ' ')}. Test with a smaller --inner_lr or fewer --test_inner_steps, or train "
            "again so."
        )
    return int((~finite).sum())


def _drawn(draw: Callable[[], Any]) -> Any:
    """Draws pictures; where they fail, None and a line: a result without pictures is a result."""
    try:
        return draw()
    except Exception as error:
        reason = str(error) if isinstance(error, WriteError) else one_line(error)
        print(f"warning: not all pictures could be drawn: {reason}", file=sys.stderr)
        return None


def _report(
    setup: Setup,
    folder: Path | None,
    best: Best,
    progress: Progress,
    final_step: int,
    facts: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Tests; the first process writes and prints what came of it, in its work directory."""
    start, episodes = time.perf_counter(), setup.settings.eval_episodes
    scores = setup.scorer("test", episodes)(best.first)
    together, name = {}, setup.experiment.score.name
    if len(best.scores) > 1:
        together = {f"best_single_test_{name}": float(np.mean(scores[name]))}
        together |= {"ensemble": len(best.scores)}
        scores = setup.scorer("test", episodes, members=True)(best.found)
    test_seconds = time.perf_counter() - start

    nonfinite = _nonfinite(scores, name)

    def write() -> None:
        result = _result(setup, scores, progress, final_step, test_seconds) | together
        result |= {"nonfinite_episodes": nonfinite, **facts}
        result["meta_parameters"] = size(best.first)
        result["adapted_parameters"] = setup.num_adapted(best.first)
        try:
            if setup.settings.mode == "evaluate":
                keep_evaluation(folder, result)
            # Before what is larger, should that fail.
            write_json(folder / "result.json", result)
            _write_scores(folder / "test_scores.csv", scores)
            pictured = _drawn(lambda: setup.experiment.pictures(best.first, folder)) or {}
            # Of several members, pictures are those of the best alone.
            prefix = "best_single_" if len(best.scores) > 1 else ""
            result.update({f"{prefix}{name}": value for name, value in pictured.items()})
            write_json(folder / "result.json", result)
        finally:  # should the disk take none of it
            print(report.table(report.result_rows(result)), flush=True)

    # The others wait: JAX gives up on an end that is minutes after theirs.
    distributed.on_first(write)


def _announcement(
    setup: Setup, choice: plan.Choice | None, workdir: Path | None, meta: Any, origin: str
) -> list[tuple[str, str]]:
    settings = setup.settings
    optional = [("starts from", origin)] if origin else []
    if settings.published is None and settings.published_by:
        optional.append(("published", settings.published_by))
    if choice and settings.memory_budget.strip():
        optional.append(("memory budget", f"{settings.memory_budget}: {choice.search}"))
    if workdir:
        optional.append(("work directory", str(workdir)))
    estimator, adapted = settings.estimator, setup.num_adapted(meta)
    if over := multi_step_loss(settings):
        estimator += f", losses after every inner step for {over:,} steps"
    if settings.first_order_steps:
        estimator += f", {settings.first_order_steps:,} steps of it first order"
    members = f", mean of up to {settings.ensemble} checkpoints" if settings.ensemble > 1 else ""
    kind = "transductive" if setup.experiment.transductive else "not transductive"
    return [
        *setup.experiment.plan,
        ("inner loop", inner_loop_in_words(settings)),
        (
            "meta-parameters",
            f"{size(meta):,}" + ("" if adapted is None else f"; a task adapts {adapted:,}"),
        ),
        (
            "training",
            f"{settings.steps:,} steps of {settings.meta_batch} tasks, {setup.tasks_together} at once on a "
            f"device, {settings.outer_optimizer} {settings.outer_lr:g} ({settings.outer_schedule}) on "
            f"{estimator}, {settings.precision}, seed {settings.seed}",
        ),
        ("test", f"{settings.eval_episodes} episodes, {kind}{members}"),
        ("device", _devices_in_words(setup)),
        *optional,
    ]


def _devices_in_words(setup: Setup) -> str:
    words = f"{report.versions()['device']}, {setup.mesh.size} in use"
    if (processes := jax.process_count()) > 1:
        words += f" by {processes} processes"
    if (shards := setup.settings.parameter_shards) > 1:
        words += f"; parameters divided over {shards}"
    return words


def _result(
    setup: Setup,
    scores: Mapping[str, np.ndarray],
    progress: Progress,
    final_step: int,
    test_seconds: float,
) -> dict[str, Any]:
    experiment, settings = setup.experiment, setup.settings
    seconds = progress.train_seconds
    name = experiment.score.name
    mean, ci95 = confidence_interval(scores[name])
    digest = episodes_sha256(
        experiment.samplers["test"],
        experiment.data["test"],
        evaluation_key(settings, "test"),
        settings.eval_episodes,
        experiment.fingerprint,
    )
    return {
        **experiment.facts,
        f"test_{name}": mean,
        "ci95": ci95,
        **_others(scores, name),
        "episodes": settings.eval_episodes,
        "episodes_sha256": digest,
        "transductive": experiment.transductive,
        # What is tested again was trained before, and a memory budget may have chosen otherwise.
        "adjoint": settings.adjoint if settings.mode == "train" else None,
        "tasks_at_once": setup.tasks_together if settings.mode == "train" else None,
        "seed": settings.seed,
        "steps": final_step,
        "best_step": progress.best_step,
        f"best_valid_{name}": progress.best_score,
        "skipped_steps": progress.skipped_steps,
        "wall_seconds": progress.wall_seconds + test_seconds,
        "compile_seconds": progress.compile_seconds,
        "test_seconds": test_seconds,
        "train_tasks_per_second": final_step * settings.meta_batch / seconds if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "published": settings.published,
        "published_by": settings.published_by,
        "settings": dataclasses.asdict(setup.asked),
        "versions": report.versions(),
    }


def _others(scores: Mapping[str, np.ndarray], name: str) -> dict[str, float]:
    """The means of all scores but the loss and the one that counts, with their intervals."""
    found = {}
    for other in scores:
        if other.endswith("loss") or other == name:
            continue
        mean, ci95 = confidence_interval(scores[other])
        found |= {f"test_{other}": mean, f"{other}_ci95": ci95}
    return found


def _write_scores(path: Path, scores: Mapping[str, np.ndarray]) -> None:
    names = list(scores)
    rows = zip(*(scores[name] for name in names), strict=True)
    lines = [",".join(["episode", *names])]
    lines += [",".join([str(i), *(repr(float(v)) for v in row)]) for i, row in enumerate(rows)]
    write_text(path, "\n".join(lines) + "\n")


def _say_saved(step: int, workdir: Path | None) -> None:
    """Says how to go on: in every process, since each may have been the one to be asked to stop."""
    where = f" in {shown(workdir)}" if workdir else ""
    same = "The same command" if jax.process_count() == 1 else "The same command in every process"
    # Those without a work directory have no standard output.
    stream = sys.stdout if distributed.is_first() else sys.stderr
    print(f"Saved at step {step:,}{where}. {same} goes on from there:", file=stream)
    print(f"  {shown(_command(), LONGEST_LINE)}", file=stream, flush=True)


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])
