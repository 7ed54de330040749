"""Runs of one-shot classification as Lake laid them out: a folder per run, and one example per class."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from metajax.deploy.classifier import Classifier
from metajax.errors import DataError
from metajax.metrics import confidence_interval
from metajax.names import composed, shown

LABELS = "class_labels.txt"
"""File of a run: one line per question, `run01/test/item01.png run01/training/class05.png`."""

_LARGEST = 2**20  # bytes of a file of labels


class RunsEvaluation(NamedTuple):
    """Answers to the questions of several runs.

    Attributes:
      accuracy: Mean over the runs of the share of right answers.
      ci95: Half width of its 95% interval over the runs.
      questions: Number of questions of all runs.
      by_run: Share of right answers by name of the run.
    """

    accuracy: float
    ci95: float
    questions: int
    by_run: Mapping[str, float]


def is_runs(folder: str | Path) -> bool:
    """Finds out whether a folder has runs in it.

    Args:
      folder: Path of a folder.

    Returns:
      True if a folder in it has a file of labels.

    Example:
      >>> is_runs("nowhere")
      False
    """
    return bool(_runs(folder))


def evaluate_runs(model: Classifier, folder: str | Path) -> RunsEvaluation:
    """Learns each run's classes from its examples and answers its questions, each by itself.

    The layout is Lake's: `run01/training/class01.png`, `run01/test/item01.png`, and `run01/class_labels.txt`,
    whose lines name a question and the example of its class. Several examples of a class are one example each
    of several classes here, as there.

    Args:
      model: Trained learner of pictures; classes that it has learned are forgotten in each run. The
        classes of a run are the examples that its questions name: in Lake's runs each is asked for once.
      folder: Folder of the runs.

    Returns:
      The share of right answers, with its interval over the runs.

    Raises:
      DataError: If there is no run, a file of labels is damaged or leaves its folder, a picture cannot be
        read, or a run has more classes than the learner can tell apart.

    Example:
      >>> evaluate_runs(metajax.load("glyphs"), "all_runs").accuracy  # doctest: +SKIP

    Reference: Lake et al., 2015, Human-level concept learning through probabilistic program induction,
    Science 350; the runs are https://github.com/brendenlake/omniglot, python/one-shot-classification.
    """
    if not (found := _runs(folder)):
        raise DataError(f"{shown(folder)} has no runs: no folder in it has a file {LABELS}")
    fresh, by_run, questions = Classifier(model.bundle), {}, 0
    for run in found:
        answers = _questions(run)
        labels = sorted(set(answers.values()))
        learned = fresh.learn({str(label): [label] for label in labels})
        best = learned.probabilities(list(answers)).argmax(-1)
        right = [labels[i] == label for i, label in zip(best, answers.values(), strict=True)]
        by_run[composed(run.name)] = float(np.mean(right))
        questions += len(right)
    shares = np.asarray(list(by_run.values()))
    return RunsEvaluation(*confidence_interval(shares), questions, MappingProxyType(by_run))


def _runs(folder: str | Path) -> list[Path]:
    """Lists the runs of a folder."""
    root = Path(folder).expanduser()
    return sorted(path.parent for path in root.glob(f"*/{LABELS}") if path.is_file())


def _questions(run: Path) -> dict[Path, Path]:
    """Reads which example each question belongs to."""
    file = run / LABELS
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{shown(file)} has more than {_LARGEST:,} bytes; a run is smaller")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(file)} cannot be read: {shown(error)}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise DataError(
                f"{shown(file)}, line {number}: {shown(line)} is no question and its example; use two paths"
            )
        question, example = (_inside(run, word, f"{shown(file)}, line {number}") for word in words)
        if question in found:
            raise DataError(f"{shown(file)}, line {number}: {shown(words[0])} is asked twice")
        found[question] = example
    if not found:
        raise DataError(f"{shown(file)} has no questions")
    return found


def _inside(run: Path, name: str, where: str) -> Path:
    """Finds a file that a line names, which begins with the name of the run."""
    parts = Path(name).parts
    if parts[:1] != (run.name,) or ".." in parts or len(parts) < 2:
        raise DataError(f"{where}: {shown(name)} is not in {shown(run.name)}; use paths below it")
    return run.joinpath(*parts[1:])
