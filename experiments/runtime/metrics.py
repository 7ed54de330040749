"""A run's metrics as they arrive: rows of metrics.csv."""

import csv
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.names import shown

from .files import Appended, write_text, writing

_STEP = re.compile("[0-9]{1,18}")
_NAME = re.compile(r'[^\x00-\x1f",]{1,200}')
_LONGEST_CELL = 64  # characters; a float64 needs at most 24 to be read back exactly


class MetricsLog:
    """Appends rows of metrics to `workdir/metrics.csv`.

    The columns are step, split, and the metrics in order of appearance. A resumed run first drops
    the rows after its checkpoint, so that its file ends up like that of an uninterrupted run.
    A damaged file is renamed, and its readable rows are kept; a deleted one is written again.

    Args:
      workdir: Work directory, made if absent.
      resume_step: Step that the run continues from; 0 starts a new table.
      redo: Split whose row at `resume_step` is dropped too, because it will be measured again; None for none.
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
        self._file = None
        self._rewrite()

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends a row and flushes it.

        Args:
          step: Meta-step of the row.
          split: Name of the split, 'train' or 'valid'.
          metrics: Scalars by metric name.

        Raises:
          WriteError: If the disk does not accept it.
        """
        # The shortest text that reads back as the same number in the scalar's precision.
        cells = {name: str(np.asarray(value)[()]) for name, value in metrics.items()}
        row = {"step": str(step), "split": split, **cells}
        new = [name for name in cells if name not in self._columns]
        self._columns += new
        self._rows.append(row)
        deleted = self._file.is_deleted()
        if deleted:
            print(
                f"warning: {shown(self._path)} was deleted during the run; it is written again.",
                file=sys.stderr,
            )
        if new or deleted:
            self._rewrite()
        else:
            self._file.write(_csv_text([row], self._columns).encode())

    def close(self) -> None:
        """Closes the file; further rows are an error."""
        self._file.close()

    def _rewrite(self) -> None:
        """Writes the whole table, as new columns need, and opens the file to append to."""
        if self._file is not None:
            self._file.close()
        header = dict(zip(self._columns, self._columns, strict=True))
        write_text(self._path, _csv_text([header, *self._rows], self._columns))
        self._file = Appended(self._path)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads metrics.csv; damaged rows are left out.

    Args:
      workdir: Work directory.

    Returns:
      A mapping per row: `step` as int, `split` as str, and the metrics that the row has as float.
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


class _Table(NamedTuple):
    """The readable part of metrics.csv.

    Attributes:
      columns: Names in the header.
      rows: Texts of the cells by column name, one mapping per row.
      damage: Description of the damage; "" for an intact file.
    """

    columns: Sequence[str] = ()
    rows: Sequence[dict[str, str]] = ()
    damage: str = ""


def _read_table(path: Path) -> _Table:
    """Reads metrics.csv as text; damaged lines are left out, and so is a last line without its line break."""
    if not os.path.lexists(path):
        return _Table()
    if not path.is_file():
        return _Table(damage="it is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Table(damage=error.strerror or "it cannot be read")
    # Line by line: for csv.reader on the whole file, an unclosed quote swallows all lines after it.
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
    """Splits a line into cells; none if it is not valid text."""
    try:
        return next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _is_row(cells: Sequence[str], columns: Sequence[str]) -> bool:
    """Checks that a line has a step, a split, and numbers or nothing in all other columns."""
    if len(cells) != len(columns) or not _STEP.fullmatch(cells[0]) or not _NAME.fullmatch(cells[1]):
        return False
    return all(not cell or _is_number(cell) for cell in cells[2:])


def _is_number(cell: str) -> bool:
    """Checks that a cell is a number that this program may have written."""
    try:
        float(cell)
    except ValueError:
        return False
    return len(cell) <= _LONGEST_CELL


def _set_aside(path: Path, damage: str) -> None:
    """Renames a damaged file, or whatever is in its place, to the first free name, and warns."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    with writing(path):
        path.rename(aside)
    print(
        f"warning: {shown(path)} is damaged ({damage}); it is kept as {aside.name}, and the run continues "
        "with its readable rows.",
        file=sys.stderr,
    )


def _csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Formats rows as lines of CSV."""
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
