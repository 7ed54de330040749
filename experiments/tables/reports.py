"""The comparison of the learner with baselines on real tables, as it is printed and kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.metrics import mean_where_defined

from ..reports.comparison import of_few, verdict, with_width
from ..runtime.files import write_rows
from .data import RealTable, Splits
from .scores import METRICS

_ALL = "all tables"

# By metric, arrays [S] of a table.
_Scores = Mapping[str, np.ndarray]


@dataclasses.dataclass
class Tested:
    """Scores of the latest test, which the comparison reads.

    Attributes:
      learner: Scores of each table by support size; empty before a test.
    """

    learner: dict[int, list[_Scores]] = dataclasses.field(default_factory=dict)


def compare(
    tables: Sequence[RealTable],
    splits: Mapping[int, Sequence[Splits]],
    learner: Mapping[int, Sequence[_Scores]],
    found: Mapping[int, Sequence[Mapping[str, _Scores]]],
    folder: Path,
) -> dict[str, Any]:
    """Prints the comparison, and keeps every split with its rows and scores.

    Args:
      tables: Real tables.
      splits: Their splits by support size.
      learner: Scores of the learner on each of them, by support size.
      found: Scores of the baselines on each of them, by support size.
      folder: Folder of splits.csv.

    Returns:
      Field "comparison" of result.json: by support size and table, learner and baselines with each metric,
      its interval over splits, and `METRIC_difference`, learner less baseline.
    """
    comparison: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for size, own in learner.items():
        each = [{"learner": mine, **found[size][i]} for i, mine in enumerate(own)]
        named = {table.name: scores for table, scores in zip(tables, each, strict=True)}
        named[_ALL] = _over_tables(each)
        comparison[str(size)] = {name: _summary(scores) for name, scores in named.items()}
        print("\n".join(_lines(size, comparison[str(size)])), flush=True)
        for table, scores, split in zip(tables, each, splits[size], strict=True):
            rows += _rows(table, size, scores, split)
    write_rows(folder / "splits.csv", rows)
    return {"comparison": comparison}


def _over_tables(each: Sequence[Mapping[str, _Scores]]) -> dict[str, _Scores]:
    """Averages the scores of each repeat over the tables."""
    return {
        name: {
            metric: np.mean([scores[name][metric] for scores in each], axis=0) for metric in METRICS
        }
        for name in each[0]
    }


def _summary(scores: Mapping[str, _Scores]) -> dict[str, dict[str, float]]:
    """Summarizes the splits of a table by learner and baseline."""
    found: dict[str, dict[str, float]] = {}
    for name, own in scores.items():
        found[name] = {}
        for metric in METRICS:
            found[name] |= _fields(metric, own[metric])
            if name != "learner":
                found[name] |= _fields(
                    f"{metric}_difference", scores["learner"][metric] - own[metric], few=True
                )
    return found


def _fields(name: str, values: np.ndarray, *, few: bool = False) -> dict[str, float]:
    """Makes the fields of a mean over splits; `few` asks for the interval of Student's t."""
    summary = mean_where_defined(values)
    if few:
        summary = of_few(summary, len(values))
    fields = {name: float(summary.value), f"{name}_ci95": float(summary.ci95)}
    return fields | ({f"{name}_left_out": summary.left_out} if summary.left_out else {})


def _lines(size: int, comparison: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Formats the comparison of a support size: a line for each table and method."""
    lines = [
        f"support {size}: area under the ROC curve, +- 95% over splits; then learner less baseline, paired"
    ]
    for table, rows in comparison.items():
        for name, row in rows.items():
            line = f"  {table:<14} {name:<9} {with_width(row['auroc'], row['auroc_ci95'])}"
            if name != "learner":
                found = row["auroc_difference"], row["auroc_difference_ci95"]
                line += f"   {with_width(*found, sign='+')} {verdict(*found)}"
            lines.append(line)
    return lines


def _rows(
    table: RealTable, size: int, scores: Mapping[str, _Scores], splits: Splits
) -> list[dict[str, Any]]:
    """Makes a row for each split: its scores, and the numbers of its rows in the file."""
    rows = []
    for repeat, (support, queries) in enumerate(zip(*splits, strict=True)):
        row: dict[str, Any] = {"table": table.name, "repeat": repeat, "support": size}
        for name, own in scores.items():
            row |= {f"{name}_{metric}": repr(float(own[metric][repeat])) for metric in own}
        row["support_rows"] = " ".join(map(str, np.sort(table.numbers[support])))
        row["query_rows"] = " ".join(map(str, np.sort(table.numbers[queries])))
        rows.append(row)
    return rows
