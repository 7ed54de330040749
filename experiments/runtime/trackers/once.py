"""Each row once: what a service has is kept in the work directory, and the rest is sent from metrics.csv."""

import contextlib
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from metajax.data import strict_json

from ..files import write_json
from ..observers import Observer, Run


class Service(Protocol):
    """A tracker that keeps runs elsewhere."""

    def begin(self, run: Run, known: str) -> str:
        """Goes on with a run, or begins one.

        Args:
          run: The run.
          known: Identifier of the run of this work directory; "" for none.

        Returns:
          Identifier of the run that is written to, "" for one that cannot be gone on with. Any other run than
          `known` is sent the whole history.
        """
        ...

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Sends a row."""
        ...

    def file(self, path: Path, *, kind: str) -> None:
        """Sends a file."""
        ...

    def end(self, *, finished: bool) -> None:
        """Closes the run; `finished` is False if the same command will go on with it."""
        ...


class Once(Observer):
    """Sends each row to a service once, whatever was stopped, resumed or unreachable.

    A resumed run repeats the steps since its checkpoint, with the same numbers: rows that the service has are
    left out. Rows that it lacks, because it was added later or had failed, are sent from metrics.csv.

    Args:
      name: Name of the file `trackers/NAME.json` in the work directory, which holds what was sent.
      title: Name in messages.
      service: The service.
    """

    remedy = (
        "the run goes on without it. metrics.csv has all rows; the same command, when it goes on or is "
        "repeated, sends those that are missing."
    )

    def __init__(self, name: str, title: str, service: Service):
        self.name, self._file, self._service = title, f"trackers/{name}.json", service
        self._sent: dict[str, Any] = {}

    def begin(self, run: Run) -> None:
        """Goes on with the service's run, and sends what it lacks.

        Args:
          run: The run; one from step 0 on is a new one, whatever was sent before.
        """
        self._path = run.workdir / self._file
        known = _read(self._path) if run.step else {}
        steps = known.get("steps", {})
        if known.get("ended") and all(
            row["step"] <= steps.get(row["split"], -1) for row in run.history
        ):
            self._sent = known
            return
        found = self._service.begin(run, str(known.get("id", "")))
        same = found and found == known.get("id")
        self._sent = {"id": found, "steps": known.get("steps", {}) if same else {}, "ended": False}
        self._keep()
        for row in run.history:
            values = {name: value for name, value in row.items() if name not in ("step", "split")}
            self.scalars(row["step"], row["split"], values)

    def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Sends a row that the service does not have.

        Args:
          step: Meta-step of the row.
          split: Name of the split.
          values: Numbers by metric name.
        """
        if self._sent["ended"] or step <= self._sent["steps"].get(split, -1):
            return
        self._service.scalars(step, split, {name: float(value) for name, value in values.items()})
        self._sent["steps"][split] = step
        self._keep()

    def file(self, path: Path, *, kind: str) -> None:
        """Sends a file, unless the run was sent as a whole before.

        Args:
          path: File or folder.
          kind: Kind of the file.
        """
        if not self._sent["ended"]:
            self._service.file(path, kind=kind)

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Sends the test's numbers as a row of the split 'test', and closes the run.

        Args:
          result: Fields of result.json; None if the run stopped before.
        """
        if self._sent["ended"]:
            return
        if result is not None and (numbers := test_numbers(result)):  # none of a run without a test
            self.scalars(int(result["steps"]), "test", numbers)
        self._service.end(finished=result is not None)
        self._sent["ended"] = result is not None
        self._keep()

    def _keep(self) -> None:
        """Writes what was sent."""
        write_json(self._path, self._sent)


def test_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a test.

    Args:
      result: Fields of result.json.

    Returns:
      Each `test_NAME` by its name, and `ci95`; times are left out.

    Example:
      >>> test_numbers({"test_accuracy": 0.9, "ci95": 0.01, "steps": 100})
      {'accuracy': 0.9, 'ci95': 0.01}
    """
    found = {k: v for k, v in result.items() if k == "ci95" or k.startswith("test_")}
    found.pop("test_seconds", None)
    return {
        name.removeprefix("test_"): float(value)
        for name, value in found.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }


def _read(path: Path) -> dict[str, Any]:
    """Reads what was sent; {} for a file that is absent or not as `Once` writes it."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        found = strict_json.loads(path.read_text(encoding="utf-8"))
        steps = {str(split): int(step) for split, step in found["steps"].items()}
        return {"id": str(found["id"]), "steps": steps, "ended": found["ended"] is True}
    return {}
