"""A run's metrics as it goes: rows of metrics.csv, and the same scalars for TensorBoard."""

import contextlib
import csv
import io
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runtime.files import Appended, write_text, writing
from metajax.names import shown

_STEP = re.compile("[0-9]{1,18}")
_NAME = re.compile(r'[^\x00-\x1f",]{1,200}')
_LONGEST_CELL = 64  # characters; the shortest text of a float64 has at most 24


class MetricsLog:
    """Appends rows of metrics to `workdir/metrics.csv`, and the same scalars to TensorBoard events.

    The columns are step, split, and the metrics in order of appearance. A resumed run first drops
    the rows beyond its checkpoint, so that its file ends up like that of a run never interrupted.
    A damaged file is set aside, and what can be read of it goes on; a deleted one is made again.

    Args:
      workdir: made if absent.
      resume_step: the step the run goes on from; 0 starts anew.
      redo: the split whose row of that very step is dropped too, None for no such split.
    """

    def __init__(self, workdir: Path, *, resume_step: int, redo: str | None = None):
        self._path = Path(workdir) / "metrics.csv"
        table = _read_table(self._path)
        if table.damage:
            _set_aside(self._path, table.damage)
        self._columns = list(table.columns) or ["step", "split"]
        steps = [(int(row["step"]), row) for row in table.rows]
        again = (resume_step, redo)
        self._rows = [
            row for step, row in steps if step <= resume_step and (step, row["split"]) != again
        ]
        self._events = _Events(Path(workdir) / "tensorboard", resume_step=resume_step)
        self._file = None
        self._rewrite()

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends a row and flushes it.

        Args:
          step: the meta-step it belongs to.
          split: 'train' or 'valid'.
          metrics: name -> scalar.

        Raises:
          WriteError: if the disk does not take it.
        """
        # As shortest text that reads back as the same number in the scalar's own precision.
        cells = {name: str(np.asarray(value)[()]) for name, value in metrics.items()}
        row = {"step": str(step), "split": split, **cells}
        new = [name for name in cells if name not in self._columns]
        self._columns += new
        self._rows.append(row)
        deleted = self._file.is_deleted()
        if deleted:
            print(
                f"warning: {shown(self._path)} was deleted while the run worked there; it is made again.",
                file=sys.stderr,
            )
        if new or deleted:
            self._rewrite()
        else:
            self._file.write(_csv_text([row], self._columns).encode())
        self._events.write(step, {f"{split}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        """Closes both files; further rows are an error."""
        self._file.close()
        self._events.close()

    def _rewrite(self) -> None:
        if self._file is not None:
            self._file.close()
        header = dict(zip(self._columns, self._columns, strict=True))
        write_text(self._path, _csv_text([header, *self._rows], self._columns))
        self._file = Appended(self._path)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads metrics.csv: `step` as int, `split` as str, the metrics a row has as float.

    Damaged rows are left out.
    """
    return [
        {
            "step": int(row["step"]),
            "split": row["split"],
            **{
                name: float(cell)
                for name, cell in row.items()
                if cell and name not in ("step", "split")
            },
        }
        for row in _read_table(Path(workdir) / "metrics.csv").rows
    ]


class _Events:
    """TensorBoard's events file, written in this thread: a writer's thread would end at a full disk, unseen.

    Args:
      folder: made if absent.
      resume_step: TensorBoard hides what earlier event files have beyond this step.
    """

    def __init__(self, folder: Path, *, resume_step: int):
        self._folder = folder
        self._open(resume_step)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends scalars by tag; TensorBoard cannot draw those that are not finite."""
        from tensorboardX.summary import scalar

        if not self._path.exists():
            self.close()
            self._open(step - 1)
        finite = {tag: float(value) for tag, value in scalars.items() if np.isfinite(value)}
        self._append(*(_event(step=step, summary=scalar(*each)) for each in finite.items()))

    def close(self) -> None:
        """Closes the file, once more in vain where the disk did not take what was written last."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _open(self, resume_step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        # A file is named by the second; a quick restart must not overwrite the one before.
        name = (
            f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{resume_step:012}"
        )
        self._path = self._folder / name
        with writing(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self._path))
        self._append(
            _event(file_version="brain.Event:2"),
            _event(step=resume_step + 1, file_version="brain.Event:2"),
            _event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)),
        )

    def _append(self, *events: bytes) -> None:
        with writing(self._path):
            for event in events:
                self._records.write(event)
            self._records.flush()


def _event(**fields: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), **fields).SerializeToString()


class _Table(NamedTuple):
    """What can be read of metrics.csv.

    Attributes:
      columns: the header's names.
      rows: name -> text of a cell.
      damage: Description of what is wrong with the file, "" if nothing is.
    """

    columns: Sequence[str] = ()
    rows: Sequence[dict[str, str]] = ()
    damage: str = ""


def _read_table(path: Path) -> _Table:
    """Reads metrics.csv as text; a last line without its end is left out, and so are damaged ones."""
    if not os.path.lexists(path):
        return _Table()
    if not path.is_file():
        return _Table(damage="it is no file")
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Table(damage=error.strerror or "it cannot be read")
    # Not by csv.reader alone, to which an open quote is a cell of all lines that follow.
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:
        return _Table()
    columns, *rows = map(_cells, lines)
    if columns[:2] != ["step", "split"] or len({*columns}) < len(columns):
        return _Table(damage="its first line does not name the columns")
    if not all(_NAME.fullmatch(name) for name in columns):
        return _Table(damage="its first line does not name the columns")
    whole = [dict(zip(columns, cells, strict=True)) for cells in rows if _is_row(cells, columns)]
    lost = len(rows) - len(whole)
    return _Table(columns, whole, f"{lost:,} of its rows cannot be read" if lost else "")


def _cells(line: bytes) -> list[str]:
    """The cells of a line; none where it is no text."""
    try:
        return next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _is_row(cells: Sequence[str], columns: Sequence[str]) -> bool:
    if len(cells) != len(columns) or not _STEP.fullmatch(cells[0]) or not _NAME.fullmatch(cells[1]):
        return False
    return all(not cell or _is_number(cell) for cell in cells[2:])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return len(cell) <= _LONGEST_CELL


def _set_aside(path: Path, damage: str) -> None:
    """Keeps a damaged file, or what is in its place, under the first free name, and says so."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    with writing(path):
        path.rename(aside)
    print(
        f"warning: {shown(path)} is damaged ({damage}); it is kept as {aside.name}, and the run goes on "
        "with the rows that can be read.",
        file=sys.stderr,
    )


def _csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
