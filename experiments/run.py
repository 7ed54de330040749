"""What every driver does around its experiment: plan, train, test, report."""

import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import loop, pictures, report
from experiments.checkpoints import Checkpoints
from experiments.files import check_settings, write_json
from experiments.settings import TrainingError, UsageError, option
from metajax.metagrad import backprop
from metajax.objectives import MetricFn, query_objective
from metajax.sharding import over_episodes, over_tasks, replicated, task_mesh
from metajax.train import (
    confidence_interval,
    draw_task,
    init_state,
    make_evaluate,
    make_step,
)
from metajax.trees import size
from metajax.types import Array, Learner, LossFn

# Where a run happens and what it does there, as against what it computes.
NOT_COMPARED = ("workdir", "mode", "data_dir")
# What may differ when a finished training is tested again.
TEST_ONLY = ("eval_episodes", "eval_seed", "test_inner_steps", "test_queries")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The options that every driver has."""

    inner_steps: int = option(
        1, "Inner steps a task takes in training.", section="Inner loop", least=0
    )
    test_inner_steps: int | None = option(
        None,
        "Inner steps in validation and test; as in training if not given.",
        section="Inner loop",
        least=0,
    )
    inner_lr: float = option(
        0.4,
        "Inner step size, for a loss that is a mean over examples (papers that sum over the N ways quote "
        "one N times smaller). For meta_sgd the size that training starts from.",
        section="Inner loop",
        above=0,
    )
    inner_optimizer: str = option(
        "sgd",
        "Inner rule. momentum is 0.9; adam has eps_root 1e-8, which keeps its derivative finite.",
        section="Inner loop",
        choices=("sgd", "momentum", "adam"),
    )
    meta_batch: int = option(16, "Tasks a meta-step averages over.", section="Training", least=1)
    outer_lr: float = option(2e-3, "Step size of the outer Adam.", section="Training", above=0)
    outer_schedule: str = option(
        "cosine",
        "How the outer step size runs over training: constant, or a cosine down to zero.",
        section="Training",
        choices=("constant", "cosine"),
    )
    clip: float = option(
        0.0,
        "Clips each element of the meta-gradient to +- this; 0 does not.",
        section="Training",
        least=0,
    )
    steps: int = option(3000, "Meta-steps.", section="Training", least=1)
    tasks_at_once: int = option(
        0,
        "Tasks vectorised together on a device; fewer use less memory. 0 chooses: one on a CPU, "
        "all elsewhere.",
        section="Training",
        least=0,
    )
    eval_every: int = option(
        250,
        "Meta-steps between validations; 0 validates at the end only.",
        section="Training",
        least=0,
    )
    valid_episodes: int = option(300, "Episodes of a validation.", section="Training", least=1)
    patience: int = option(
        0,
        "Stops after this many validations in a row without a new best; 0 never does.",
        section="Training",
        least=0,
    )
    skip_nonfinite: bool = option(
        False,
        "Leaves out meta-steps whose gradient is not finite and counts them, instead of stopping.",
        section="Training",
    )
    seed: int = option(
        0, "Seed of the parameters and the training tasks.", section="Training", least=0
    )
    eval_episodes: int = option(600, "Test episodes.", section="Test", least=2)
    eval_seed: int = option(
        0,
        "Seed of the validation and test episodes; the same whatever --seed is.",
        section="Test",
        least=0,
    )
    mode: str = option(
        "train",
        "train trains, resuming if the work directory has a checkpoint, and tests; evaluate tests the best "
        "checkpoint, with other test options if wished, and writes evaluation.json.",
        section="Run",
        choices=("train", "evaluate"),
    )
    workdir: str = option(
        "",
        "Where everything is written. If not given: a folder under runs/ named after the settings, so "
        "that the same command finds its own work again.",
        section="Run",
    )
    log_every: int = option(50, "Meta-steps between rows of metrics.csv.", section="Run", least=1)
    checkpoint_every: int = option(
        250, "Meta-steps between checkpoints; 0 saves at the end only.", section="Run", least=0
    )
    published: float | None = option(
        None, "The published result to show beside ours, as the paper prints it.", section="Run"
    )
    published_by: str = option("", "Where that result was published.", section="Run")


class Experiment(NamedTuple):
    """What makes one experiment differ from another.

    Attributes:
      learner: trained.
      test_learner: validated and tested, on the same meta-parameters.
      inputs: [B, ...] example inputs, to initialise from.
      loss: the outer loss.
      metrics: named metrics of a task, beside `loss`.
      score: which of them counts.
      samplers: `train`, `valid`, `test` -> what draws an episode.
      data: `train`, `valid`, `test` -> what the sampler reads.
      fingerprint: identifies the data.
      transductive: whether a query's answer may depend on the other queries.
      plan: rows of the announcement that only this driver knows.
      facts: fields of result.json that only this driver knows.
      pictures: (meta, workdir) -> further fields of result.json; draws its pictures.
    """

    learner: Learner
    test_learner: Learner
    inputs: Array
    loss: LossFn
    metrics: Mapping[str, MetricFn]
    score: loop.Score
    samplers: Mapping[str, Any]
    data: Mapping[str, Any]
    fingerprint: str
    transductive: bool
    plan: list[tuple[str, str]]
    facts: dict[str, Any]
    pictures: Callable[[Any, Path], dict[str, Any]]


def use_every_core(meta_batch: int) -> None:
    """Gives XLA one CPU device a core, as many as divide the tasks; call it before anything else uses JAX.

    XLA's CPU backend runs many element-wise kernels on one thread, so a device a core beats one device of
    many threads.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    devices = max(n for n in range(1, cores + 1) if meta_batch % n == 0)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def inner_rule(settings: TrainingSettings) -> optax.GradientTransformation:
    """Makes the inner optimizer that the flags name."""
    rules = {
        "sgd": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
        "adam": lambda rate: optax.adam(rate, eps_root=1e-8),
    }
    return rules[settings.inner_optimizer](settings.inner_lr)


def outer_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Makes the outer optimizer: Adam, clipped and scheduled, that leaves out non-finite gradients."""
    rate = settings.outer_lr
    if settings.outer_schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, settings.steps)
    clip = optax.clip(settings.clip) if settings.clip else optax.identity()
    never_give_up = settings.steps + 1
    return optax.apply_if_finite(optax.chain(clip, optax.adam(rate)), never_give_up)


def prepare_workdir(settings: TrainingSettings, name: str) -> Path:
    """Makes the work directory, named after the settings by default; UsageError if it cannot be written."""
    compared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_COMPARED}
    tag = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:8]
    workdir = Path(settings.workdir or f"runs/{name}-{tag}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name a directory that can."
        ) from error
    return workdir


def conduct(experiment: Experiment, settings: TrainingSettings, workdir: Path) -> int:
    """Trains if asked to, tests, and writes and prints the result. Returns the exit status."""
    start = time.perf_counter()
    recorded = {**dataclasses.asdict(settings), "data_sha256": experiment.fingerprint}
    ignored = NOT_COMPARED + (TEST_ONLY if settings.mode == "evaluate" else ())
    check_settings(workdir, recorded, ignore=ignored)
    mesh = _mesh(settings)
    place = lambda tree: jax.device_put(tree, replicated(mesh))  # noqa: E731
    init_key, train_key = jax.random.split(jax.random.key(settings.seed))
    meta = jax.jit(experiment.learner.init)(init_key, experiment.inputs)
    state = init_state(meta, outer_optimizer(settings))
    print(report.table(_plan(experiment, settings, workdir, mesh, size(meta))), flush=True)

    if settings.mode == "train":
        outcome = loop.train(
            _meta_step(experiment, settings, mesh, train_key),
            state,
            experiment.data["train"],
            validate=_validation(experiment, settings, mesh, place),
            score=experiment.score,
            schedule=loop.Schedule(
                steps=settings.steps,
                log_every=settings.log_every,
                eval_every=settings.eval_every,
                checkpoint_every=settings.checkpoint_every,
                patience=settings.patience,
            ),
            tasks_per_step=settings.meta_batch,
            skip_nonfinite=settings.skip_nonfinite,
            workdir=workdir,
            place=place,
        )
        if not outcome.finished:
            step = int(outcome.state.step)
            print(f"Saved at step {step:,} in {workdir}. The same command goes on from there:")
            print(f"  {_command()}", flush=True)
            return 130
        best_meta, progress, final_step = (
            outcome.best_meta,
            outcome.progress,
            int(outcome.state.step),
        )
    else:
        restored = loop.restore(Checkpoints(workdir / "checkpoints"), state)
        if restored is None:
            raise TrainingError(f"{workdir} holds no checkpoint to evaluate; train there first.")
        state, best_meta, progress = restored
        final_step = int(state.step)

    test_start = time.perf_counter()
    scores = _scores(experiment, settings, mesh, place, "test", settings.eval_episodes)(best_meta)
    result = _result(experiment, settings, scores, progress, final_step)
    result["train_tasks_per_second"] = (
        final_step * settings.meta_batch / progress.train_seconds
        if progress.train_seconds
        else None
    )
    result["test_seconds"] = time.perf_counter() - test_start
    training = settings.mode == "train"
    result["wall_seconds"] = progress.wall_seconds if training else time.perf_counter() - start
    result.update(experiment.pictures(best_meta, workdir))
    _write_scores(workdir / "test_scores.csv", scores)
    if training:
        metric = experiment.score.name
        pictures.curves(workdir, metric=metric, title=workdir.name)
    write_json(workdir / ("result.json" if training else "evaluation.json"), result)
    print(report.table(report.result_rows(result)), flush=True)
    return 0


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


def evaluation_key(settings: TrainingSettings, split: str) -> Array:
    """The key of the validation or test episodes."""
    return jax.random.fold_in(jax.random.key(settings.eval_seed), ("valid", "test").index(split))


def _mesh(settings: TrainingSettings) -> jax.sharding.Mesh:
    devices = jax.devices()
    usable = max(n for n in range(1, len(devices) + 1) if settings.meta_batch % n == 0)
    return task_mesh(devices[:usable])


def _tasks_at_once(settings: TrainingSettings, mesh: jax.sharding.Mesh) -> int | None:
    local = settings.meta_batch // mesh.size
    if settings.tasks_at_once:
        if local % min(settings.tasks_at_once, local):
            raise UsageError(
                f"--tasks_at_once={settings.tasks_at_once} does not divide the {local} tasks of a device "
                f"(--meta_batch={settings.meta_batch} over {mesh.size} devices); use a divisor of {local}."
            )
        return settings.tasks_at_once
    # Vectorised tasks fall out of a CPU's cache; a GPU or TPU wants them all.
    return 1 if jax.default_backend() == "cpu" else None


def _meta_step(experiment, settings, mesh, key):
    objective = query_objective(experiment.learner, experiment.loss, metrics=experiment.metrics)
    meta_grad = backprop(objective, tasks_at_once=_tasks_at_once(settings, mesh))
    return make_step(
        over_tasks(mesh, meta_grad),
        outer_optimizer(settings),
        experiment.samplers["train"],
        key=key,
        num_tasks=settings.meta_batch,
    )


def _scores(experiment, settings, mesh, place, split: str, num_episodes: int):
    """Makes `meta -> {metric: [num_episodes]}` on a split's fixed episodes."""
    objective = query_objective(
        experiment.test_learner, experiment.loss, metrics=experiment.metrics
    )
    evaluate = make_evaluate(
        objective,
        experiment.samplers[split],
        tasks_at_once=_tasks_at_once(settings, mesh) or min(num_episodes, 64),
    )
    evaluate = jax.jit(over_episodes(mesh, evaluate))
    data = place(experiment.data[split])
    key, tasks = evaluation_key(settings, split), jnp.arange(num_episodes)

    def scores(meta):
        measured = evaluate(place(meta), data, place(key), tasks)
        return {name: np.asarray(values) for name, values in measured.items()}

    return scores


def _validation(experiment, settings, mesh, place):
    scores = _scores(experiment, settings, mesh, place, "valid", settings.valid_episodes)
    return lambda meta: {name: float(np.mean(values)) for name, values in scores(meta).items()}


def _plan(experiment, settings, workdir, mesh, num_meta) -> list[tuple[str, str]]:
    test_steps = (
        settings.inner_steps if settings.test_inner_steps is None else settings.test_inner_steps
    )
    return [
        *experiment.plan,
        (
            "inner loop",
            f"{settings.inner_steps} x {settings.inner_optimizer} {settings.inner_lr:g} in training, "
            f"{test_steps} x at test",
        ),
        ("meta-parameters", f"{num_meta:,}"),
        (
            "training",
            f"{settings.steps:,} steps of {settings.meta_batch} tasks, Adam {settings.outer_lr:g} "
            f"({settings.outer_schedule}), seed {settings.seed}",
        ),
        (
            "test",
            f"{settings.eval_episodes} episodes, "
            f"{'transductive' if experiment.transductive else 'not transductive'}",
        ),
        ("device", f"{report.versions()['device']}, {mesh.size} in use"),
        ("work directory", str(workdir)),
    ]


def _result(experiment, settings, scores, progress, final_step) -> dict[str, Any]:
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
        "episodes": settings.eval_episodes,
        "episodes_sha256": digest,
        "transductive": experiment.transductive,
        "seed": settings.seed,
        "steps": final_step,
        "best_step": progress.best_step,
        f"best_valid_{name}": progress.best_score,
        "skipped_steps": progress.skipped_steps,
        "compile_seconds": progress.compile_seconds,
        "peak_memory_bytes": report.peak_memory_bytes(),
        "published": settings.published,
        "published_by": settings.published_by,
        "settings": dataclasses.asdict(settings),
        "versions": report.versions(),
    }


def _write_scores(path: Path, scores: Mapping[str, np.ndarray]) -> None:
    names = list(scores)
    rows = zip(*(scores[name] for name in names), strict=True)
    lines = [",".join(["episode", *names])]
    lines += [",".join([str(i), *(repr(float(v)) for v in row)]) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])
