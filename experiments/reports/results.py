"""The test of a run, and the result that it prints and writes."""

import contextlib
import hashlib
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data import strict_json
from metajax.data.bundles import is_bundle
from metajax.errors import DataError
from metajax.evaluate import make_evaluate
from metajax.metrics import Metric, Summary, mean_over_tasks
from metajax.objectives.scoring import MetricFn
from metajax.trees import size
from metajax.types import Array

from ..flags.settings import TrainingError
from ..runtime import distributed
from ..runtime.best import Best
from ..runtime.devices import peak_memory_bytes
from ..runtime.files import WriteError, one_line, write_json, write_text
from ..runtime.progress import Progress
from ..runtime.workdir import keep_evaluation
from ..setup.experiment import Setup, evaluation_key
from . import calibration, report

_MEASURED = ("calibration", "reliability")  # by the bundle's maker, for result.json
Scores = Mapping[str, Any]  # values of all episodes by metric, trees of NumPy arrays [E, ...]


def test(
    setup: Setup,
    folder: Path | None,
    best: Best,
    progress: Progress,
    final_step: int,
    facts: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any] | None:
    """Tests meta-parameters; the first process prints and writes the result.

    Args:
      setup: The experiment on its devices.
      folder: Folder of the result; None in all processes but the first.
      best: Meta-parameters to test.
      progress: Progress of the training that found them.
      final_step: Number of meta-steps of that training.
      facts: Further fields of result.json.

    Returns:
      Fields of result.json; None in all processes but the first.

    Raises:
      TrainingError: If no test episode has a finite loss.
    """
    start, episodes = time.perf_counter(), setup.plan.test.eval_episodes
    scores = setup.scorer("test", episodes)(best.first)
    together, name = {}, setup.experiment.score.name
    if len(best.scores) > 1:
        together = {
            f"best_single_test_{name}": means(setup.experiment.scoring.metrics, scores)[name]
        }
        together |= {"ensemble": len(best.scores)}
        scores = setup.scorer("test", episodes, members=True)(best.found)
    test_seconds = time.perf_counter() - start

    nonfinite = _nonfinite(scores, name)

    def write() -> dict[str, Any]:
        result = _result(setup, scores, progress, final_step, test_seconds) | together
        result |= {"nonfinite_episodes": nonfinite, **facts}
        result["meta_parameters"] = size(best.first)
        result["adapted_parameters"] = setup.num_adapted(best.first)
        try:
            if setup.plan.command.mode == "evaluate":
                keep_evaluation(folder, result, unbound=setup.plan.unbound)
            # Written before the larger files, in case those fail.
            write_json(folder / "result.json", result)
            write_scores(folder / "test_scores.csv", scores)
            if setup.experiment.measured:
                result.update(setup.experiment.measured(best.first, folder))
                write_json(folder / "result.json", result)
            pictured = drawn(lambda: setup.experiment.pictures(best.first, folder)) or {}
            # With several ensemble members, pictures show the best one alone.
            prefix = "best_single_" if len(best.scores) > 1 else ""
            result.update({f"{prefix}{name}": value for name, value in pictured.items()})
            write_json(folder / "result.json", result)
            if setup.experiment.bundle:
                _write_bundle(setup, folder, best.first, result)
        finally:  # printed even if the disk is full
            print(report.table(report.result_rows(result)), flush=True)
        return result

    # The other processes wait: JAX reports an error if one ends minutes after the others.
    return distributed.on_first(write)


def drawn(draw: Callable[[], Any]) -> Any:
    """Draws pictures; if that fails, warns and returns None, as a result without pictures is still a result.

    Args:
      draw: Function without arguments that draws.

    Returns:
      Result of `draw`; None if it raised.
    """
    try:
        return draw()
    except Exception as error:
        reason = str(error) if isinstance(error, WriteError) else one_line(error)
        print(f"warning: not all pictures could be drawn: {reason}", file=sys.stderr)
        return None


def _write_bundle(setup: Setup, folder: Path, meta: Any, result: dict[str, Any]) -> None:
    """Writes the bundle into the work directory, and its calibration into the result.

    If that fails, it warns, as the result is there.
    """
    evaluates = setup.plan.command.mode == "evaluate"
    where = (folder.parent if evaluates else folder) / "model"
    # A later test, perhaps on other data, leaves the bundle as the training's own test made it.
    if evaluates and is_bundle(where):
        return
    try:
        bundle = setup.experiment.bundle(meta, result)
        if measured := {
            name: bundle.training[name] for name in _MEASURED if name in bundle.training
        }:
            result.update(measured)
            write_json(folder / "result.json", result)
        bundle.save(where)
        if "reliability" in measured:
            path, title = folder / "reliability.png", setup.experiment.name
            bins = measured["reliability"]
            drawn(lambda: calibration.draw_reliability(path, bins, title=title))
    except (DataError, ImportError) as error:
        print(f"warning: no bundle was written: {error}", file=sys.stderr)


def bundle(setup: Setup, workdir: Path, meta: Any) -> None:
    """Writes the bundle of a finished training, calibrated anew, and prints its calibration.

    Args:
      setup: The experiment on its devices.
      workdir: Work directory of the training, whose result the bundle names if there is one.
      meta: Meta-parameters.

    Raises:
      DataError: If it cannot be written.
      ImportError: If safetensors is not installed.
    """
    result = {}
    with contextlib.suppress(OSError, ValueError):  # a training that was stopped has no result yet
        result = strict_json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    made = setup.experiment.bundle(meta, result if isinstance(result, dict) else {})
    where = made.save(workdir / "model")
    rows = [("calibration", made.training["calibration"])] if "calibration" in made.training else []
    print(report.table([*report.result_rows(dict(rows)), ("bundle", str(where))]), flush=True)


def means(metrics: Mapping[str, MetricFn], scores: Scores) -> dict[str, float]:
    """Combines each score's values into one number.

    A score whose metric is a plain function is averaged in its own precision.

    Args:
      metrics: Metrics of the experiment by name.
      scores: Scores of all episodes by metric.

    Returns:
      Numbers by metric.
    """

    def mean(name: str, values: Any) -> float:
        combine = _reach(metrics, name)
        return combine(values).value if combine else float(np.mean(values))

    return {name: mean(name, values) for name, values in scores.items()}


def _reach(metrics: Mapping[str, MetricFn], name: str) -> Callable[[Any], Summary] | None:
    """Returns the `combine` function of a score's metric; None if the metric is a plain function."""
    metric = metrics.get(name.removeprefix("robust_"))
    return metric.combine if isinstance(metric, Metric) else None


def summary(metrics: Mapping[str, MetricFn], name: str, values: Any) -> Summary:
    """Combines the values of a score into its mean and interval, as its metric does.

    Args:
      metrics: Metrics of the experiment by name.
      name: Name of the score.
      values: Values of all episodes, a tree of NumPy arrays.

    Returns:
      The summary.
    """
    return (_reach(metrics, name) or mean_over_tasks)(values)


def _nonfinite(scores: Scores, name: str) -> int:
    """Counts the test episodes without a finite loss; raises TrainingError if no others are left."""
    finite = np.isfinite(scores["loss"])
    if not finite.any():
        raise TrainingError(
            f"None of the {len(finite):,} test episodes has a finite loss, so that there is no test "
            f"{name.replace('_', ' ')}. Test, or train and test, with a smaller --inner_lr or fewer "
            "--test_inner_steps."
        )
    return int((~finite).sum())


def _result(
    setup: Setup,
    scores: Scores,
    progress: Progress,
    final_step: int,
    test_seconds: float,
) -> dict[str, Any]:
    """Collects the fields of result.json."""
    experiment, plan = setup.experiment, setup.plan
    seconds = progress.train_seconds
    name = experiment.score.name
    summaries = {
        score: summary(experiment.scoring.metrics, score, values)
        for score, values in scores.items()
    }
    digest = episodes_sha256(
        experiment.samplers["test"],
        experiment.data["test"],
        evaluation_key(plan.test.eval_seed, "test"),
        plan.test.eval_episodes,
        experiment.fingerprint,
    )
    return {
        **experiment.facts,
        **_fields(name, summaries.pop(name), width="ci95"),
        **_others(summaries),
        "episodes": plan.test.eval_episodes,
        "episodes_sha256": digest,
        "transductive": experiment.transductive,
        # An evaluation does not know them: a memory budget may have chosen others during training.
        "adjoint": plan.inner.adjoint if plan.command.mode == "train" else None,
        "tasks_at_once": setup.tasks_together if plan.command.mode == "train" else None,
        "seed": plan.training.seed,
        "steps": final_step,
        "best_step": progress.best_step,
        f"best_valid_{name}": progress.best_score,
        "skipped_steps": progress.skipped_steps,
        "wall_seconds": progress.wall_seconds + test_seconds,
        "compile_seconds": progress.compile_seconds,
        "test_seconds": test_seconds,
        "train_tasks_per_second": final_step * plan.training.meta_batch / seconds
        if seconds
        else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "published": plan.command.published,
        "published_by": plan.command.published_by,
        "settings": plan.asked,
        "versions": report.versions(),
    }


def _others(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Lists the fields of all scores but the losses, with their intervals."""
    found = {}
    for name, summary in summaries.items():
        if not name.endswith("loss"):
            found |= _fields(name, summary, width=f"{name}_ci95")
    return found


def _fields(name: str, summary: Summary, *, width: str) -> dict[str, Any]:
    """Lists a score's value, its interval if it has one, and its number of tasks left out, if known."""
    fields = {f"test_{name}": summary.value, width: summary.ci95}
    fields[f"{name}_left_out"] = summary.left_out
    return {field: value for field, value in fields.items() if value is not None}


def _drawn(meta: Any, key: Array, task: Any) -> tuple[None, Any]:
    """Returns a drawn task in place of an objective's metrics."""
    del meta, key
    return None, task


def write_scores(path: Path, scores: Scores) -> None:
    """Writes the scores of each episode that are plain numbers.

    Args:
      path: File to write.
      scores: Scores of all episodes by metric.

    Raises:
      WriteError: If the disk does not accept it.
    """
    columns = {
        name: values
        for name, values in scores.items()
        if isinstance(values, np.ndarray) and values.ndim == 1
    }
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(["episode", *columns])]
    lines += [",".join([str(i), *(repr(float(v)) for v in row)]) for i, row in enumerate(rows)]
    write_text(path, "\n".join(lines) + "\n")


def episodes_sha256(
    sampler: Any, data: Any, key: Array, num_episodes: int, fingerprint: str
) -> str:
    """Hashes everything that determines the first episodes of a key, and the data that they index.

    Args:
      sampler: Task sampler with a function `identify` (data, key) -> pytree of what it drew.
      data: Data of the sampler.
      key: Random key of the evaluation.
      num_episodes: Number of episodes.
      fingerprint: Digest of the data.

    Returns:
      A SHA-256 digest in hexadecimal digits.
    """
    by_task = getattr(sampler, "by_task", None)
    drawn = jax.jit(make_evaluate(_drawn, sampler.identify, by_task=by_task))(
        (), data, key, jnp.arange(num_episodes)
    )
    digest = hashlib.sha256(fingerprint.encode())
    for leaf in jax.tree.leaves(drawn):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
