"""Metrics of tasks from tables, and the scores of all test tasks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import metrics
from metajax.episodes import ListedSampler
from metajax.episodes.listed import BY_TASK
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.evaluate import make_evaluate
from metajax.learners.sequence.neural_process import mean_and_std
from metajax.losses import accuracy
from metajax.metrics import Metric, Summary, as_metric, mean_over_tasks
from metajax.objectives.scoring import MetricFn
from metajax.sharding import over_episodes, place
from metajax.types import Array, Batch, Key, Model, Objective, Params

from ..setup.experiment import evaluation_key
from .data import TaskData
from .splits import Tests, buckets

# Rows of the tasks that are vectorized together on a device in a test, and their numbers where rows are wide,
# such as a column of zeros and ones for each of 20,000 exercises.
ROWS_AT_ONCE, NUMBERS_AT_ONCE = 8192, 2**25
ENCODED_AT_ONCE = 1024
CLASS_METRICS = ("accuracy", "auroc", "average_precision", "delta_auprc", "calibration_error")
IN_WINDOWS = ("accuracy", "auroc")
VALUE_METRICS = ("mae", "rmse", "ndcg5_linear")
LOWER_IS_BETTER = ("mae", "rmse", "calibration_error")
DEFAULTS = {"binary": "auroc", "classes": "accuracy", "values": "mae"}


def metrics_of(
    data: TaskData,
    support: int,
    *,
    windows: tuple[tuple[int, int], ...] = (),
    uncertain: bool = False,
) -> dict[str, MetricFn]:
    """Makes the metrics of a task by name.

    Args:
      data: The tables, for the kind and the scale of the targets.
      support: Number of support rows, with which windows begin.
      windows: Ranges of the numbers of rows of a task, from 1, in which classes are measured apart.
      uncertain: Whether outputs are means and standard deviations of values.

    Returns:
      Metrics of outputs as they are in the store. Those of values are in the unit of the table.
    """
    if data.ways is None:
        found: dict[str, MetricFn] = {"mae": metrics.mae(), "rmse": metrics.rmse()}
        store = data.stores.get("train", data.stores["test"])
        lowest = float(np.min(np.asarray(store.targets)))
        if lowest * data.spread + data.level >= -1e-6 * data.spread:  # a gain is not negative
            found["ndcg5_linear"] = metrics.ndcg(5, gain="linear")
        return {name: _in_unit(metric, data, uncertain) for name, metric in found.items()}
    found = {"accuracy": accuracy, "auroc": metrics.auroc()}
    if data.ways == 2:
        found |= {
            "average_precision": metrics.average_precision(),
            "delta_auprc": metrics.delta_auprc(),
        }
    apart = {
        of_window(name, first, last): within(found[name], first - 1 - support, last - support)
        for first, last in windows
        for name in IN_WINDOWS
    }
    return {**found, **apart, "calibration_error": metrics.calibration_error()}


def of_window(metric: str, first: int, last: int) -> str:
    """Names a metric that is measured in a range of rows alone."""
    return f"{metric}_{first}_{last}"


def within(metric: MetricFn, first: int, last: int) -> Metric:
    """Measures the queries from `first` up to `last` alone.

    Args:
      metric: Metric of all queries.
      first: First query that counts.
      last: First query that counts no more.

    Returns:
      The metric; NaN for a task without such a query, which is left out and counted.
    """

    def of_task(outputs: Array, batch: Batch) -> Any:
        part = slice(max(first, 0), max(last, 0))
        weights = None if batch.weights is None else batch.weights[part]
        return metric(outputs[part], Batch(None, batch.targets[part], weights))

    return Metric(of_task, metrics.mean_where_defined)


def _in_unit(metric: MetricFn, data: TaskData, uncertain: bool) -> Metric:
    """Measures values in the unit of the table; of distributions their means."""

    def table(values: Array) -> Array:
        return values * data.spread + data.level

    def of_task(outputs: Array, batch: Batch) -> Any:
        outputs = mean_and_std(outputs)[0] if uncertain else outputs
        targets = table(batch.targets)
        # Rounding must not make a relevance of zero negative.
        targets = jnp.where(jnp.abs(targets) < 1e-5 * data.spread, 0.0, targets)
        return metric(table(outputs), batch._replace(targets=targets))

    return Metric(of_task, as_metric(metric).combine)


def scores_of(
    mesh: Mesh,
    seed: int,
    data: TaskData,
    tests: Tests,
    objective: Objective,
    meta: Any,
    *,
    view: View = plain_view,
    with_rows: bool = False,
    width: int = 1,
) -> Any:
    """Scores all test tasks of a support size.

    Args:
      mesh: Devices.
      seed: Seed of the test.
      data: The tables.
      tests: The tasks.
      objective: Objective of one task, whose metrics are returned.
      meta: Meta-parameters.
      view: Function from the features of rows to inputs.
      with_rows: Whether a task is a pair of an episode and its draw, rather than the episode alone.
      width: Numbers that the objective makes of a row.

    Returns:
      The metrics of the tasks, a tree of NumPy arrays [E, ...].
    """
    meta, key = place(mesh, (meta, evaluation_key(seed, "test")))
    found, order = [], []
    together = min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // width)
    for bucket in buckets(tests, data.stores["test"], view):
        sampler = ListedSampler(bucket.sampler)
        sample = _with_draw(sampler) if with_rows else sampler
        rows = bucket.sampler.support + bucket.sampler.queries
        at_once = max(1, min(len(bucket.tasks), together // rows))
        evaluate = make_evaluate(objective, sample, tasks_at_once=at_once, by_task=BY_TASK)
        evaluate = jax.jit(over_episodes(mesh, evaluate, by_task=BY_TASK))
        numbers = place(mesh, bucket.tasks.astype(np.int32))
        measured = evaluate(meta, place(mesh, bucket.listed), key, numbers)
        found.append(jax.tree.map(np.asarray, measured))
        order.append(bucket.tasks)
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *found)


def encoded(store: Rows, encoder: Model, params: Params, view: View) -> Rows:
    """Encodes the features of all rows of a store.

    Args:
      store: Store.
      encoder: Encoder of inputs [B, ...], whose answer to a row does not depend on other rows.
      params: Parameters of the encoder.
      view: Function from the features of rows to inputs.

    Returns:
      The store with features [M, D].
    """

    def of_row(params: Params, row: Any) -> Array:
        one = Examples(jax.tree.map(lambda leaf: leaf[None], row))
        return encoder.apply(params, view(store, jax.random.key(0), one))[0]

    def of_rows(params: Params, features: Any) -> Array:
        each = functools.partial(of_row, params)
        return jax.lax.map(each, features, batch_size=ENCODED_AT_ONCE)

    return store._replace(features=jax.jit(of_rows)(params, store.features))


def _with_draw(sampler: ListedSampler) -> Callable[[Any, Key], Any]:
    """Makes a sampler of pairs of an episode and its draw."""
    return lambda listed, key: (sampler(listed, key), listed.draws)


def over_repeats(
    tests: Tests, scores: Mapping[str, Any], metrics: Mapping[str, MetricFn]
) -> dict[str, Any]:
    """Averages each score over the repeats of a unit.

    Args:
      tests: The tasks.
      scores: Numbers [E], or trees [E, ...], by metric.
      metrics: The metrics by name.

    Returns:
      Numbers [U], or trees [U, ...], by metric. A repeat without a value is left out of a metric that can be
      undefined, such as the area under a curve; elsewhere NaN is an answer that is not finite, and stays.
    """

    def average(leaf: np.ndarray, may_lack: bool) -> np.ndarray:
        if leaf.ndim == 1 and may_lack:
            return tests.by_unit(leaf)
        return leaf.reshape(-1, tests.repeats, *leaf.shape[1:]).mean(1)

    found = {}
    for name, values in scores.items():
        may_lack = name in metrics and as_metric(metrics[name]).combine is not mean_over_tasks
        found[name] = jax.tree.map(lambda leaf, lacks=may_lack: average(leaf, lacks), values)
    return found


def summary_of(metric: MetricFn, values: Any) -> Summary:
    """Combines the scores of units [U, ...]; where a metric may lack a value, those without are left out."""
    return as_metric(metric).combine(values)
