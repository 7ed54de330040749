"""Observers of a run: what they are given, and what happens where one of them fails."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import WriteError, one_line


class Run(NamedTuple):
    """A run as its observers are given it.

    Attributes:
      workdir: Work directory; its name is the name of the run.
      settings: Options by name.
      facts: Further facts by name, such as versions and the data set.
      score: Name of the validation metric that ranks checkpoints.
      step: Meta-step that the run continues from; 0 for a new one.
      history: Rows of metrics.csv up to that step: `step`, `split`, and metrics by name.
    """

    workdir: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    score: str
    step: int = 0
    history: Sequence[Mapping[str, Any]] = ()


class Observer:
    """An observer that does nothing; a subclass overrides the calls that it needs.

    Of several processes, the first one alone calls. An observer that raises is dropped with a warning, and
    the run goes on; only a WriteError, of a file in the work directory, ends the run.

    Example:
      >>> class Target(Observer):
      ...     def scalars(self, step, split, values):
      ...         return split == "valid" and values["accuracy"] > 0.9
      >>> Target().scalars(100, "valid", {"accuracy": 0.95})
      True
    """

    def begin(self, run: Run) -> None:
        """Begins, before the first step of a process.

        Args:
          run: The run, with its history if it is resumed.
        """

    def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> bool | None:
        """Receives a row of metrics.

        Args:
          step: Meta-step of the row.
          split: Name of the split, 'train' or 'valid'.
          values: Numbers by metric name.

        Returns:
          True after a validation to end training here, with the test of the best checkpoint; else None or
          False.
        """

    def file(self, path: Path, *, kind: str) -> None:
        """Receives a file of the work directory, once the result is written.

        Args:
          path: File, or the folder of a bundle.
          kind: One of 'picture', 'table', 'result' and 'bundle'.
        """

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Ends; no call follows.

        Args:
          result: Fields of result.json, or of validation.json with `--skip_test`; None if the run stopped
            before.
        """


class Observers:
    """All observers of a run.

    Args:
      run: The run before anything is restored.
      observers: Observers; the loop calls them in the first process alone.
      may_stop: Whether any of them may ask to end training.
    """

    def __init__(self, run: Run, observers: Sequence[Observer], *, may_stop: bool):
        self._run, self._observers, self.may_stop = run, list(observers), may_stop
        self._begun = False

    def begin(self, step: int, history: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Begins all observers.

        Args:
          step: Meta-step that the run continues from.
          history: Function that reads the rows up to that step.
        """
        self._begun = True
        if self._observers:
            run = self._run._replace(step=step, history=tuple(history()))
            self._tell(lambda observer: observer.begin(run))

    def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> bool:
        """Passes a row on; returns whether any observer asks to end training."""
        return any(self._tell(lambda observer: observer.scalars(step, split, values)))

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Passes the files of a result on, and ends all observers; a second call does nothing.

        Args:
          result: Fields of result.json, or of validation.json with `--skip_test`; None if the run stopped
            before.
        """
        if self._begun and result is not None:
            for path, kind in _files(self._run.workdir):
                self._tell(lambda observer, p=path, k=kind: observer.file(p, kind=k))
        if self._begun:
            self._tell(lambda observer: observer.end(result))
        self._observers = []

    def _tell(self, call: Callable[[Observer], Any]) -> list[Any]:
        """Calls each observer, and drops those that raise; returns the others' answers."""
        answers = []
        for observer in tuple(self._observers):
            try:
                answers.append(call(observer))
            except Exception as error:
                self._observers.remove(observer)
                if isinstance(error, WriteError):  # the disk that the run itself needs
                    raise
                name = getattr(observer, "name", type(observer).__name__)
                remedy = getattr(observer, "remedy", "the run goes on without it.")
                print(f"warning: {name} failed ({one_line(error)}); {remedy}", file=sys.stderr)
        return answers


def _files(workdir: Path) -> list[tuple[Path, str]]:
    """Lists the files of a finished run that observers are given, with their kinds."""
    kinds = {"*.png": "picture", "*.gif": "picture", "*.csv": "table", "result.json": "result"}
    # Whatever has the name of a file that could not be written is none.
    found = [
        (path, kind)
        for name, kind in kinds.items()
        for path in sorted(workdir.glob(name))
        if path.is_file()
    ]
    model = workdir / "model"
    return [*found, *([(model, "bundle")] if model.is_dir() else [])]
