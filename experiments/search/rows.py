"""The numbers of a search: its trials with paired differences to the best, and the last runs."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.metrics import mean_over_tasks

from ..reports.comparison import of_few
from ..reports.validation import SCORES
from .finals import Final


class Row(NamedTuple):
    """A trial in a table.

    Attributes:
      number: Number of the trial.
      state: "complete", "pruned", "failed" or "stopped".
      chosen: Values by option.
      steps: Meta-steps that it took; None if unknown.
      score: Validation score of its best checkpoint, or the last one of a pruned trial; None without any.
      width: Half-width of its 95% interval over episodes; None if unknown.
      difference: Mean difference to the best trial on the same episodes; None if unknown.
      difference_width: Half-width of the 95% interval of that difference.
      tasks_per_second: Training tasks per second.
      seconds: Duration.
      reason: Cause of a failure.
    """

    number: int
    state: str
    chosen: Mapping[str, Any]
    steps: int | None
    score: float | None
    width: float | None
    difference: float | None
    difference_width: float | None
    tasks_per_second: float | None
    seconds: float | None
    reason: str


class Finished(NamedTuple):
    """One of the best trials, run again with several seeds.

    Attributes:
      number: Number of the trial.
      seeds: Number of runs with a result.
      valid: Mean validation score over seeds.
      test: Mean test score over seeds.
      width: Half-width of its 95% interval over seeds, Student's t; None of a single seed.
      difference: Mean difference of the test to the first one's on the same episodes; None if unknown.
      difference_width: Half-width of the 95% interval of that difference, over episodes.
    """

    number: int
    seeds: int
    valid: float
    test: float
    width: float | None
    difference: float | None
    difference_width: float | None


_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped"}


def best_first(trials: Sequence[Any]) -> list[Any]:
    """Sorts complete trials by their validation score, and leaves out the others.

    Args:
      trials: Optuna's frozen trials, whose values are losses or scores with a minus.

    Returns:
      Trials, the best first; of equal ones the earlier first.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def rows_of(trials: Sequence[Any], folder: Path) -> list[Row]:
    """Makes a row of each trial.

    Args:
      trials: Optuna's frozen trials.
      folder: Work directory of the search.

    Returns:
      Rows: complete trials, the best first, then the others by number.
    """
    complete = best_first(trials)
    rest = [t for t in trials if t.state.name in _STATES and t.state.name != "COMPLETE"]
    best = _episodes(complete[0], folder) if complete else None
    rows = []
    for trial in [*complete, *rest]:
        facts = trial.user_attrs
        difference = width = None
        if trial.state.name == "COMPLETE":
            difference, width = paired(_episodes(trial, folder), best)
        last = max(trial.intermediate_values, default=None)
        rows.append(
            Row(
                trial.number,
                _STATES[trial.state.name],
                facts.get("chosen", {}),
                facts.get("steps", last),
                facts.get("best", facts.get("last")),
                facts.get("ci95"),
                difference,
                width,
                facts.get("train_tasks_per_second"),
                facts.get("wall_seconds"),
                facts.get("reason", ""),
            )
        )
    return rows


def paired(scores: np.ndarray | None, best: np.ndarray | None) -> tuple[float | None, float | None]:
    """Averages the differences of two trials on the same episodes.

    Args:
      scores: Scores [E]; None if they are unknown.
      best: Scores [E] of the best trial.

    Returns:
      Mean difference and half-width of its 95% interval, over episodes where both are finite; None of
      unknown scores.
    """
    if scores is None or best is None or scores.shape != best.shape:
        return None, None
    differences = (scores - best)[np.isfinite(scores) & np.isfinite(best)]
    if not len(differences):
        return None, None
    summary = mean_over_tasks(differences)
    width = summary.ci95 if summary.ci95 is not None and math.isfinite(summary.ci95) else None
    return summary.value, width


def finished(finals: Sequence[Final], score: str, *, higher_is_better: bool) -> list[Finished]:
    """Averages the last runs over their seeds.

    Args:
      finals: The last runs.
      score: Name of the score.
      higher_is_better: Whether the largest is the best.

    Returns:
      One of each trial with a result, the best validation first.
    """
    by_trial: dict[int, list[tuple[dict[str, Any], np.ndarray | None]]] = {}
    for final in finals:
        result = final.result
        if result.get(f"best_valid_{score}") is not None:
            tested = read_scores(final.folder / "test_scores.csv", score)
            by_trial.setdefault(final.number, []).append((result, tested))

    def valid(number: int) -> float:
        return float(np.mean([result[f"best_valid_{score}"] for result, _ in by_trial[number]]))

    order = sorted(by_trial, key=lambda number: valid(number) * (-1 if higher_is_better else 1))
    found, first = [], None
    for number in order:
        tests = np.array([result[f"test_{score}"] for result, _ in by_trial[number]], float)
        every = [tested for _, tested in by_trial[number] if tested is not None]
        known = len(every) == len(tests)
        episodes = np.mean(every, axis=0) if known else None
        first = episodes if number == order[0] else first
        few = of_few(mean_over_tasks(tests), len(tests)) if len(tests) > 1 else None
        width = few.ci95 if few else None
        found.append(
            Finished(
                number,
                len(tests),
                valid(number),
                float(tests.mean()),
                width,
                *paired(episodes, first),
            )
        )
    return found


def read_scores(path: Path, name: str) -> np.ndarray | None:
    """Reads a column of a file of scores.

    Args:
      path: File, one line per episode.
      name: Name of the column.

    Returns:
      Scores [E]; None if there is no such column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return np.array([float(row[name]) for row in csv.DictReader(file)])
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None


def _episodes(trial: Any, folder: Path) -> np.ndarray | None:
    where = Path(folder) / "trials" / f"{trial.number:04}" / SCORES
    return read_scores(where, trial.user_attrs["score"])
