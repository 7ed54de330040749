"""Scores of a learner and of baselines on the splits of real tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import baselines
from metajax.losses import accuracy, cross_entropy
from metajax.metrics import Metric, auroc, mean_where_defined
from metajax.objectives.query import query_objective
from metajax.objectives.scoring import MetricFn, Scoring
from metajax.types import Array, Batch, Episode, Learner

from .data import RealTable, Splits

BASELINES = {
    "logistic": "logistic regression on the support rows",
    "forest": "random forest on the support rows, by scikit-learn",
    "knn": "mean of the four nearest support rows",
}


def auroc_of_classes() -> Metric:
    """Makes the area under the ROC curve of each class against all others, averaged over classes.

    Returns:
      A metric of logits [B, N]. A class without examples, or without others, is left out; of all classes it
      is `metrics.auroc`. It is NaN if no class is left.
    """
    area = auroc()

    def of_task(outputs: Array, batch: Batch) -> Array:
        shares = jax.nn.softmax(outputs)

        def one(label: Array) -> Array:
            own = (batch.targets == label).astype(jnp.int32)
            return area(shares[:, label], Batch(None, own, batch.weights))

        values = jax.vmap(one)(jnp.arange(outputs.shape[1]))
        defined = ~jnp.isnan(values)
        total = jnp.where(defined, values, 0).sum()
        return jnp.where(defined.any(), total / jnp.maximum(defined.sum(), 1), jnp.nan)

    return Metric(of_task, mean_where_defined)


METRICS: Mapping[str, MetricFn] = {"auroc": auroc_of_classes(), "accuracy": accuracy}


def of_learner(
    learner: Learner,
    meta: Any,
    key: Array,
    table: RealTable,
    splits: Splits,
    *,
    chunk: int | None = None,
) -> dict[str, np.ndarray]:
    """Scores a learner on the splits of a table.

    Args:
      learner: Learner of at least as many classes as the table has.
      meta: Meta-parameters of the learner.
      key: Random key; any will do, since the learner draws nothing.
      table: The table.
      splits: Splits of the table.
      chunk: Queries that are answered together; None for all.

    Returns:
      The loss and METRICS by name, arrays [S].
    """
    ways = len(table.classes)
    # Classes that the table does not have are no choice.
    narrow = learner._replace(predict=lambda *given: learner.predict(*given)[:, :ways])
    objective = query_objective(narrow, Scoring(cross_entropy, METRICS, chunk=chunk))

    def score(meta: Any, cells: Array, labels: Array, splits: Splits) -> Any:
        def one(rows: Splits) -> Any:
            return objective(meta, key, Episode(*(Batch(cells[at], labels[at]) for at in rows)))[1]

        return jax.lax.map(one, splits)

    return jax.tree.map(np.asarray, jax.jit(score)(meta, table.cells, table.labels, splits))


def of_baselines(
    names: Sequence[str], table: RealTable, splits: Splits, *, trees: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Scores baselines on the splits of a table.

    Args:
      names: Names in BASELINES.
      table: The table.
      splits: Splits of the table.
      trees: Trees of "forest".
      seed: Seed of "forest".

    Returns:
      The loss and METRICS by name, arrays [S], by baseline.
    """
    ways, found = len(table.classes), {}
    rows = [filled(table, *own) for own in zip(*splits, strict=True)]
    inputs, queries = (np.stack(part) for part in zip(*rows, strict=True))
    labels, asked = table.labels[splits.supports], table.labels[splits.queries]
    measure = jax.jit(jax.vmap(lambda outputs, targets: _measured(outputs, Batch(None, targets))))
    on_device: dict[str, Callable[..., Any]] = {
        "logistic": baselines.logistic_regression(ways=ways),
        "knn": baselines.nearest_neighbors(4, ways=ways),
    }
    for name in names:
        if name == "forest":
            outputs = np.stack(
                [
                    baselines.random_forest(x, y, q, ways=ways, trees=trees, seed=seed + repeat)
                    for repeat, (x, y, q) in enumerate(zip(inputs, labels, queries, strict=True))
                ]
            )
        else:
            predict = on_device[name]
            outputs = jax.jit(jax.vmap(lambda x, y, q, p=predict: p(Batch(x, y), q)))(
                inputs, labels, queries
            )
        found[name] = jax.tree.map(np.asarray, measure(outputs, asked))
    return found


def _measured(outputs: Array, batch: Batch) -> dict[str, Array]:
    named = {name: metric(outputs, batch) for name, metric in METRICS.items()}
    return {"loss": cross_entropy(outputs, batch), **named}


def filled(
    table: RealTable, support: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Makes rows of numbers for baselines: standardized by the support rows, categories as zeros and ones.

    Args:
      table: The table.
      support: Support rows [K].
      queries: Query rows [Q].

    Returns:
      Inputs [K, P] and [Q, P] float32; a missing number is zero, the mean, and a missing category is zeros.
    """
    parts = []
    cells = np.concatenate([table.cells[support], table.cells[queries]]).astype(np.float64)
    for column, size in zip(cells.T, table.categories, strict=True):
        if size:
            parts.append(column[:, None] == np.arange(1, size + 1))
            continue
        own = column[: len(support)]
        known = own[~np.isnan(own)]
        mean, deviation = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
        scaled = (column - mean) / (deviation or 1.0)
        parts.append(np.where(np.isnan(scaled), 0, scaled)[:, None])
    rows = np.concatenate(parts, axis=1).astype(np.float32)
    return rows[: len(support)], rows[len(support) :]
