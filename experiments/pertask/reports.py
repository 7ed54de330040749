"""The comparison of a learner with baselines, as it is printed and kept."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.objectives.scoring import MetricFn
from metajax.sharding import task_mesh

from ..flags.row_tests import baseline_names
from ..flags.settings import UsageError
from ..runtime.files import write_rows
from ..setup.row_tests import measurable
from . import baselines, scores, splits
from .data import TaskData
from .options import PertaskPlan


@dataclasses.dataclass
class Tested:
    """Scores of the latest test, which the comparison reads.

    Attributes:
      learner: Scores by support size, arrays [E, ...] by metric; None before a test.
    """

    learner: dict[int, dict[str, Any]] | None = None


def list_tests(plan: PertaskPlan, data: TaskData) -> dict[int, splits.Tests]:
    """Lists the test tasks of every support size."""
    return {size: splits.list_tests(data, size, plan.protocol) for size in plan.supports}


def metrics_of(
    plan: PertaskPlan, data: TaskData, support: int, *, uncertain: bool = False
) -> dict[str, MetricFn]:
    """Makes the metrics of a support size, and checks the one that heads the table.

    Raises:
      UsageError: If these targets have no such metric.
    """
    found = scores.metrics_of(data, support, windows=plan.windows, uncertain=uncertain)
    if plan.metric not in found:
        able = [name for name in found if name != "calibration_error"]
        raise UsageError(
            f"--metric={plan.metric} does not go with {data.kind} targets; use one of {', '.join(able)}."
        )
    return found


def facts(plan: PertaskPlan, data: TaskData, tests: Mapping[int, splits.Tests]) -> dict[str, Any]:
    """Lists the fields of result.json that describe data and tasks."""
    return {
        "dataset": plan.table.dataset,
        "data": data.description,
        "notes": "; ".join(data.notes),
        "kind": data.kind,
        "order": plan.tasks.order,
        "repeats": plan.tasks.repeats,
        "tasks": {str(size): len(own.units) for size, own in tests.items()},
        "tasks_too_small": {str(size): own.left_out for size, own in tests.items()},
    }


def chosen_baselines(plan: PertaskPlan, data: TaskData) -> tuple[str, ...]:
    """Lists the baselines to measure; called before training, too, so that nothing fails behind it.

    Raises:
      UsageError: If one that is named does not fit the table.
      ImportError: If a named one needs scikit-learn, which is missing.
    """
    every = plan.baselines.baselines == "all"
    asked = baseline_names(plan.baselines.baselines, tuple(baselines.BASELINES))
    names = measurable(baselines.names_for(data, asked), named=not every)
    unfit = [name for name in asked if name not in names]
    if unfit and not every:
        hint = " It needs --item." if unfit[0] == "item_bias" and data.items is None else ""
        raise UsageError(
            f"--baselines={unfit[0]} does not fit {data.kind} targets of this table; use "
            f"{', '.join(baselines.names_for(data, tuple(baselines.BASELINES)))}.{hint}"
        )
    return names


def compare(
    plan: PertaskPlan,
    data: TaskData,
    tests: Mapping[int, splits.Tests],
    learner: Mapping[int, Mapping[str, Any]] | None,
    folder: Path,
) -> dict[str, Any]:
    """Measures the baselines, prints the comparison, and keeps every task with its rows and scores.

    Args:
      plan: The run.
      data: The tables.
      tests: Test tasks by support size.
      learner: Scores of the learner by support size; None without a learner.
      folder: Folder of tasks.csv.

    Returns:
      Field "comparison" of result.json: by support size, learner and baselines.
    """
    options = plan.baselines
    names = chosen_baselines(plan, data)
    apart = [scores.of_window(m, *window) for window in plan.windows for m in scores.IN_WINDOWS]
    shown = dict.fromkeys((plan.metric, *apart))
    mesh, found, table = task_mesh(jax.local_devices()[:1]), {}, []
    for size, own in tests.items():
        metrics = metrics_of(plan, data, size)
        measured = baselines.measure(
            mesh,
            plan.common.test.eval_seed,
            data,
            own,
            names,
            metrics,
            neighbors=options.neighbors,
            similarity=options.similarity,
            trees=options.trees,
        )
        mine = None if learner is None else learner[size]
        found[str(size)] = baselines.compared(own, metrics, mine, measured)
        for metric in shown:
            print("\n".join(baselines.lines(own, found[str(size)], metric)), flush=True)
        table += _rows(data, own, mine, measured)
    write_rows(folder / "tasks.csv", table)
    return {"comparison": found}


def _rows(
    data: TaskData,
    tests: splits.Tests,
    learner: Mapping[str, Any] | None,
    found: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Makes a row for each test task: its unit, its rows and all scores that are numbers."""
    rows = []
    everyone = {"learner": learner, **found} if learner is not None else found
    for task, (support, queries) in enumerate(zip(tests.supports, tests.queries, strict=True)):
        unit = int(tests.units[task // tests.repeats])
        row: dict[str, Any] = {
            "task": data.names[unit],
            "repeat": task % tests.repeats,
            "support": tests.support,
            "queries": len(queries),
        }
        for name, values in everyone.items():
            for metric, leaf in values.items():
                if isinstance(leaf, np.ndarray) and leaf.ndim == 1:
                    row[f"{name}_{metric}"] = repr(float(leaf[task]))
        row["support_rows"] = _numbers(data, support)
        row["query_rows"] = _numbers(data, queries)
        rows.append(row)
    return rows


def _numbers(data: TaskData, rows: np.ndarray) -> str:
    """Lists the numbers of rows in their table, ascending."""
    return " ".join(map(str, np.sort(data.row_numbers[rows])))
