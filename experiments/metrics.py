"""A run's metrics as it goes: rows of metrics.csv, and the same scalars for TensorBoard."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.checkpoints import CheckpointError
from experiments.files import write_text


class MetricsLog:
    """Appends rows of metrics to `workdir/metrics.csv`, and the same scalars to TensorBoard events.

    The columns are step, split, and the metrics in order of appearance. A resumed run first drops
    the rows beyond its checkpoint, so that its file ends up like that of a run never interrupted.

    Args:
      workdir: made if absent.
      resume_step: the step the run goes on from; 0 starts anew.
    """

    def __init__(self, workdir: Path, *, resume_step: int):
        from tensorboardX import SummaryWriter

        self._path = Path(workdir) / "metrics.csv"
        columns, rows = _read_rows(self._path)
        self._columns = columns or ["step", "split"]
        self._rewrite([row for row in rows if int(row["step"]) <= resume_step])
        self._file = self._path.open("a", encoding="utf-8", newline="")
        self._events = SummaryWriter(
            str(Path(workdir) / "tensorboard"),
            # TensorBoard hides what earlier event files have from this step on.
            purge_step=resume_step + 1,
            # A file is named by the second; a quick restart must not overwrite the one before.
            filename_suffix=f".{resume_step:012}",
        )

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends a row and flushes it.

        Args:
          step: the meta-step it belongs to.
          split: 'train' or 'valid'.
          metrics: name -> scalar.
        """
        # As shortest text that reads back as the same number in the scalar's own precision.
        cells = {name: str(np.asarray(value)[()]) for name, value in metrics.items()}
        new = [name for name in cells if name not in self._columns]
        if new:
            self._widen(new)
        self._file.write(_csv_line([{"step": step, "split": split, **cells}], self._columns))
        self._file.flush()
        for name, value in metrics.items():
            # TensorBoard cannot draw the others, and its writer would complain of each on stderr.
            if np.isfinite(value):
                self._events.add_scalar(f"{split}/{name}", float(value), step)
        self._events.flush()

    def close(self) -> None:
        """Closes both files; further rows are an error."""
        self._file.close()
        self._events.close()

    def _widen(self, names: Sequence[str]) -> None:
        self._file.close()
        _, rows = _read_rows(self._path)
        self._columns = [*self._columns, *names]
        self._rewrite(rows)
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        header = [dict(zip(self._columns, self._columns, strict=True))]
        write_text(self._path, _csv_line([*header, *rows], self._columns))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads metrics.csv: `step` as int, `split` as str, the metrics a row has as float."""
    return [
        {
            "step": int(row.pop("step")),
            "split": row.pop("split"),
            **{name: float(cell) for name, cell in row.items() if cell},
        }
        for row in _read_rows(Path(workdir) / "metrics.csv")[1]
    ]


def _csv_line(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Reads columns and rows of metrics.csv as text; a last line without its end is left out."""
    if not path.exists():
        return [], []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    rows = []
    for row in reader:
        if None in row or None in row.values() or not row.get("step", "").isdecimal():
            raise CheckpointError(
                f"Line {reader.line_num} of {path} is damaged; delete that line to go on."
            )
        rows.append(row)
    return list(reader.fieldnames or []), rows
