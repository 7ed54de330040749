"""Baselines on the test tasks of a run, and the learner's paired differences to them."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from metajax import baselines
from metajax.episodes.rows import Rows
from metajax.objectives.scoring import MetricFn
from metajax.types import Array, Batch, Episode, Key

from ..reports.comparison import of_few, verdict, with_width
from . import scores
from .data import TaskData
from .splits import Tests, buckets

# By name: what a baseline predicts.
BASELINES = {
    "training_constant": "share or mean of the training rows",
    "support_constant": "share or mean of the support rows",
    "item_bias": "mean of the item in training, plus the shrunken offset of the task",
    "knn": "mean of the nearest support rows",
    "logistic": "logistic regression on the support rows",
    "ridge": "ridge regression on the support rows",
    "forest": "random forest on the support rows, by scikit-learn",
}
_OF_KIND = {
    "item_bias": ("binary", "values"),
    "logistic": ("binary", "classes"),
    "ridge": ("values",),
}
_ON_FEATURES = ("knn", "logistic", "ridge", "forest")


def names_for(data: TaskData, asked: Sequence[str]) -> tuple[str, ...]:
    """Lists the baselines that fit the targets, among those asked for.

    Args:
      data: The tables.
      asked: Names of baselines.

    Returns:
      Names, in the order of BASELINES.
    """
    able = [
        name
        for name in BASELINES
        if data.kind in _OF_KIND.get(name, (data.kind,))
        and (name != "item_bias" or data.items is not None)
        and (name not in ("item_bias", "training_constant") or "train" in data.stores)
        and (name not in _ON_FEATURES or data.is_flat)
    ]
    return tuple(name for name in able if name in asked)


def measure(
    mesh: Mesh,
    seed: int,
    data: TaskData,
    tests: Tests,
    names: Sequence[str],
    metrics: Mapping[str, MetricFn],
    *,
    neighbors: int,
    similarity: str,
    trees: int,
) -> dict[str, dict[str, Any]]:
    """Measures baselines on test tasks.

    Args:
      mesh: Devices.
      seed: Seed of the test.
      data: The tables.
      tests: The tasks.
      names: Names of baselines.
      metrics: Metrics by name, of outputs as a learner without standard deviations has them.
      neighbors: Neighbors of "knn".
      similarity: Order of the neighbors.
      trees: Trees of "forest".

    Returns:
      Scores of the tasks, arrays [E, ...] by metric, by baseline.
    """
    facts, predictors = _predictors(data, names, neighbors=neighbors, similarity=similarity)

    def objective(meta: Any, key: Key, task: Any) -> tuple[None, dict]:
        del key
        episode, draw = task
        rows = draw.rows[: tests.support], draw.rows[tests.support :]
        outputs = {name: predict(meta, episode, *rows) for name, predict in predictors.items()}
        return None, {name: _measured(metrics, out, episode.query) for name, out in outputs.items()}

    found = {}
    if predictors:
        width = data.width("test") if data.is_flat else 1
        found = scores.scores_of(
            mesh, seed, data, tests, objective, facts, with_rows=True, width=width
        )
    if "forest" in names:
        found["forest"] = _forests(data, tests, metrics, trees=trees, seed=seed)
    return {name: found[name] for name in names}


def _measured(metrics: Mapping[str, MetricFn], outputs: Array, batch: Batch) -> dict[str, Any]:
    return {name: metric(outputs, batch) for name, metric in metrics.items()}


# (facts of the training rows, episode, support rows [K], query rows [Q]) -> outputs.
_Predictor = Callable[[Any, Episode, Array, Array], Array]


def _predictors(
    data: TaskData, names: Sequence[str], *, neighbors: int, similarity: str
) -> tuple[dict[str, Any], dict[str, _Predictor]]:
    """Makes what the baselines know of the training rows, and the baselines that JAX computes."""
    facts: dict[str, Any] = {}
    if "training_constant" in names:
        facts["constant"] = _training_constant(data)
    if "item_bias" in names:
        targets = np.asarray(data.stores["train"].targets).reshape(-1)
        facts["means"] = baselines.item_means(
            data.items["train"], targets, num_items=data.num_items
        )
        facts["items"] = jnp.asarray(data.items["test"], jnp.int32)

    def on_support(baseline: baselines.Baseline, scaled: bool) -> _Predictor:
        def predict(facts: Any, episode: Episode, support: Array, queries: Array) -> Array:
            del facts, support, queries
            inputs = data.flat(episode.support.inputs, scaled)
            batch = episode.support._replace(inputs=inputs)
            return baseline(batch, data.flat(episode.query.inputs, scaled))

        def constant(facts: Any, episode: Episode, support: Array, queries: Array) -> Array:
            del facts, support
            return baseline(episode.support, queries)  # which are read for their number alone

        return predict if data.is_flat else constant

    def training_constant(facts: Any, episode: Episode, support: Array, queries: Array) -> Array:
        del episode, support
        return jnp.broadcast_to(facts["constant"], (len(queries), *facts["constant"].shape))

    def item_bias(facts: Any, episode: Episode, support: Array, queries: Array) -> Array:
        predicted = baselines.item_offset(
            facts["means"],
            facts["items"][support],
            episode.support.targets.reshape(-1).astype(jnp.float32),
            episode.support.weights,
            facts["items"][queries],
        )
        if data.ways is None:
            return predicted[:, None]
        share = jnp.clip(predicted, 1e-3, 1 - 1e-3)
        return jnp.stack([jnp.log1p(-share), jnp.log(share)], axis=1)

    ways = data.ways
    made: dict[str, _Predictor] = {
        "training_constant": training_constant,
        "item_bias": item_bias,
    }
    if "support_constant" in names:
        made["support_constant"] = on_support(baselines.constant(ways=ways), False)
    if "knn" in names:
        nearest = baselines.nearest_neighbors(neighbors, similarity=similarity, ways=ways)
        made["knn"] = on_support(nearest, False)
    if "logistic" in names:
        made["logistic"] = on_support(baselines.logistic_regression(ways=ways), True)
    if "ridge" in names:
        made["ridge"] = on_support(baselines.ridge_regression(), True)
    return facts, {name: made[name] for name in names if name in made}


def _training_constant(data: TaskData) -> Array:
    """Returns the logits of the shares of the training rows [N], or their mean [1]."""
    targets = np.asarray(data.stores["train"].targets)
    if data.ways is None:
        return jnp.asarray(targets.mean(0), jnp.float32)
    counts = np.bincount(targets, minlength=data.ways)
    return jnp.log(jnp.asarray(np.maximum(counts, 0.5) / len(targets), jnp.float32))


def _forests(
    data: TaskData, tests: Tests, metrics: Mapping[str, MetricFn], *, trees: int, seed: int
) -> dict[str, Any]:
    """Fits a random forest to every task, and measures it."""
    store, found, order = jax.tree.map(np.asarray, data.stores["test"]), [], []
    measure = jax.jit(jax.vmap(lambda outputs, batch: _measured(metrics, outputs, batch)))
    # In a log file the bar is a line each time: once per minute instead of ten times per second.
    slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
    bar = tqdm(total=len(tests.supports), unit="forest", desc=f"support {tests.support}", **slow)
    with bar:
        for bucket in buckets(tests, store):
            rows, weights = (np.asarray(leaf) for leaf in bucket.listed.draws)
            queries = slice(tests.support, None)
            outputs = np.zeros((*rows[:, queries].shape, data.ways or 1), np.float32)
            for place, task in enumerate(bucket.tasks):
                asked = len(tests.queries[task])
                outputs[place, :asked] = baselines.random_forest(
                    _inputs(data, store, tests.supports[task]),
                    store.targets[tests.supports[task]],
                    _inputs(data, store, tests.queries[task]),
                    ways=data.ways,
                    trees=trees,
                    seed=seed + int(task),
                )
                bar.update()
            batch = Batch(None, store.targets[rows[:, queries]], weights[:, queries])
            found.append(jax.tree.map(np.asarray, measure(outputs, batch)))
            order.append(bucket.tasks)
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *found)


def _inputs(data: TaskData, store: Rows, rows: np.ndarray) -> np.ndarray:
    """Returns the features of rows as numbers; the store is on the host."""
    places = rows if store.rows is None else store.rows[rows]
    return np.asarray(data.flat(jax.tree.map(lambda leaf: leaf[places], store.features), False))


def compared(
    tests: Tests,
    metrics: Mapping[str, MetricFn],
    learner: Mapping[str, Any] | None,
    found: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Summarizes the learner and the baselines over units, with paired differences.

    Args:
      tests: The tasks.
      metrics: Metrics by name.
      learner: Scores of the learner by metric, arrays [E, ...]; None without a learner.
      found: Scores of the baselines.

    Returns:
      Rows by "learner" and baseline: each metric with its interval and the number of units left out,
      and `METRIC_difference`, the mean of learner less baseline over the units where both are defined, with
      its interval by Student's t.
    """
    rows = {"learner": learner, **found} if learner is not None else dict(found)
    summary: dict[str, dict[str, Any]] = {}
    for name, values in rows.items():
        means = scores.over_repeats(tests, values, metrics)
        summary[name] = {}
        for metric in metrics:
            measured = scores.summary_of(metrics[metric], means[metric])
            summary[name] |= _fields(metric, measured)
            if learner is None or name == "learner" or np.ndim(means[metric]) != 1:
                continue
            own = scores.over_repeats(tests, {metric: learner[metric]}, metrics)[metric]
            difference = scores.summary_of(metrics[metric], own - means[metric])
            summary[name] |= _fields(f"{metric}_difference", of_few(difference, len(own)))
    return summary


def _fields(name: str, summary: Any) -> dict[str, Any]:
    fields = {
        name: summary.value,
        f"{name}_ci95": summary.ci95,
        f"{name}_left_out": summary.left_out,
    }
    return {
        field: value for field, value in fields.items() if value not in (None, 0) or field == name
    }


def lines(tests: Tests, summary: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """Formats the comparison of a support size.

    Args:
      tests: The tasks.
      summary: Result of `compared`.
      metric: Metric to show.

    Returns:
      Lines of text: the learner, then each baseline with the learner's difference to it.
    """
    sense = "lower" if metric in scores.LOWER_IS_BETTER else "higher"
    words = re.sub(r"_(\d+)_(\d+)$", r" of rows \1-\2", metric).replace("_", " ")
    left = f", {tests.left_out:,} tasks with too few rows" if tests.left_out else ""
    head = (
        f"support {tests.support}: {words} ({sense} is better) over "
        f"{len(tests.units):,} tasks x {tests.repeats}{left}"
    )
    found = [head]
    for name, row in summary.items():
        value = with_width(row[metric], row.get(f"{metric}_ci95"))
        undefined = row.get(f"{metric}_left_out")
        line = f"  {name.replace('_', ' '):<18} {value:<20}"
        if (difference := row.get(f"{metric}_difference")) is not None:
            width = row.get(f"{metric}_difference_ci95", math.nan)
            better = verdict(difference, width, lower=sense == "lower")
            line += f" learner less it {with_width(difference, width, sign='+'):<20} {better}"
        found.append(line.rstrip() + (f" ({undefined:,} tasks undefined)" if undefined else ""))
    return found
