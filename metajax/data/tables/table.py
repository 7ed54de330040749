"""A table on the host: columns by name, which know the file and the row that they come from."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from metajax.data.tables.near import nearest
from metajax.data.tables.values import MISSING, parse_number
from metajax.errors import DataError
from metajax.names import shown


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length, by name; `read_table` makes it of a file.

    Attributes:
      columns: Arrays [R] by name: objects of str, float64 or int64. A missing text is "", a missing number
        NaN.
      source: Name of the file or data set in messages.
      numbers: Number of each row in its source, [R] int64; the first row below the header
        is 1, and rows of JSON have the numbers of their lines.

    Example:
      >>> table = Table.of({"text": ["a", "b", "c"], "stars": [4, 5, 1]})
      >>> table.select([2, 0]).text("text"), table.select([2, 0]).numbers.tolist()
      (['c', 'a'], [3, 1])
    """

    columns: Mapping[str, np.ndarray]
    source: str
    numbers: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, Sequence], *, source: str = "the table") -> "Table":
        """Makes a table of columns in memory.

        Args:
          columns: Sequences [R] by name, of str, numbers or bools; None stands for a missing value.
          source: Name of the table in messages.

        Returns:
          The table, whose rows are numbered from 1.

        Raises:
          DataError: If there is no column, or lengths disagree.

        Example:
          >>> Table.of({"stars": [4, None]}).columns["stars"].tolist()
          [4.0, nan]
        """
        arrays = {name: as_column(values) for name, values in columns.items()}
        lengths = {name: len(values) for name, values in arrays.items()}
        if not lengths:
            raise DataError(f"{source} has no columns; give one or more.")
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {length:,}" for name, length in lengths.items())
            raise DataError(
                f"The columns of {source} have different numbers of rows: {found}; give all the same number."
            )
        return cls(arrays, source, np.arange(1, next(iter(lengths.values())) + 1))

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self.numbers)

    def column(self, name: str) -> np.ndarray:
        """Finds a column.

        Args:
          name: Name of the column.

        Returns:
          The column, [R].

        Raises:
          DataError: If there is no such column; it lists the nearest names.

        Example:
          >>> Table.of({"stars": [4, 5]}).column("stars").tolist()
          [4, 5]
        """
        if name not in self.columns:
            raise DataError(
                f"{self.source} has no column '{shown(name)}'; {nearest(name, list(self.columns))}"
            )
        return self.columns[name]

    def text(self, name: str) -> list[str]:
        """Reads a column as text; whole numbers are written without a decimal point.

        Args:
          name: Name of the column.

        Returns:
          Texts [R]; "" is a missing value.

        Raises:
          DataError: If there is no such column.

        Example:
          >>> Table.of({"year": [1995.0, None]}).text("year")
          ['1995', '']
        """
        column = self.column(name)
        if column.dtype.kind == "f":
            return ["" if value != value else _number_text(value) for value in column.tolist()]
        words = column.tolist()
        return words if column.dtype.kind == "O" else [str(value) for value in words]

    def floats(self, name: str) -> np.ndarray:
        """Reads a column as numbers.

        Args:
          name: Name of the column.

        Returns:
          Numbers [R] float64; NaN is a missing value, which a text such as "", "?" or "NA" stands for.

        Raises:
          DataError: If there is no such column, or a value is no finite number.

        Example:
          >>> Table.of({"stars": ["4", "NA"]}).floats("stars").tolist()
          [4.0, nan]
        """
        column = self.column(name)
        if column.dtype.kind == "O":
            column = self._parsed(name, column)
        values = column.astype(np.float64)
        if np.isinf(values).any():
            row = int(np.flatnonzero(np.isinf(values))[0])
            raise DataError(
                f"{self.where(row)}, column '{shown(name)}': {values[row]} is not finite; leave it empty if "
                "it is missing."
            )
        return values

    def _parsed(self, name: str, column: np.ndarray) -> np.ndarray:
        """Parses texts as numbers; raises DataError at the first that is none."""
        words = column.tolist()
        values = np.full(len(words), np.nan)
        for row, word in enumerate(words):
            try:
                values[row] = parse_number(word)
            except ValueError:
                if word.strip().lower() not in MISSING:
                    raise DataError(
                        f"{self.where(row)}, column '{shown(name)}': '{shown(word, 40)}' is not a number; "
                        "mend the value, or treat the column as text or categories."
                    ) from None
        return values

    def select(self, rows: Iterable[int] | np.ndarray) -> "Table":
        """Keeps some rows.

        Args:
          rows: Row indices from 0 in their new order, or a mask [R] bool.

        Returns:
          The table of these rows, which keep their numbers.

        Example:
          >>> Table.of({"stars": [4, 5]}).select(np.array([False, True])).columns["stars"].tolist()
          [5]
        """
        rows = np.asarray(rows)
        if rows.dtype != bool:
            rows = rows.astype(np.int64)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Table(columns, self.source, self.numbers[rows])

    def with_columns(self, columns: Mapping[str, Sequence]) -> "Table":
        """Adds columns, or replaces those with the same names.

        Args:
          columns: Sequences [R] by name.

        Returns:
          The table with the columns.

        Raises:
          DataError: If a column has another number of rows.

        Example:
          >>> list(Table.of({"stars": [4, 5]}).with_columns({"film": ["Up", "Heat"]}).columns)
          ['stars', 'film']
        """
        arrays = {name: as_column(values) for name, values in columns.items()}
        for name, values in arrays.items():
            if len(values) != len(self):
                raise DataError(
                    f"Column '{shown(name)}' has {len(values):,} rows and {self.source} {len(self):,}; give "
                    "the same number."
                )
        return Table({**self.columns, **arrays}, self.source, self.numbers)

    def where(self, row: int) -> str:
        """Names a row in a message.

        Args:
          row: Row index from 0.

        Returns:
          A phrase such as "row 3 of ratings.csv".

        Example:
          >>> Table.of({"stars": [4, 5]}, source="ratings.csv").where(1)
          'row 2 of ratings.csv'
        """
        return f"row {self.numbers[row]:,} of {self.source}"

    def fingerprint(self) -> str:
        """Hashes the columns and their names, so that two runs can prove that they read the same.

        Returns:
          SHA-256 in hexadecimal; the source and the numbers of rows are not part of it.

        Example:
          >>> Table.of({"stars": [4, 5]}).fingerprint()[:8]
          '246711f7'
        """
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            column = self.columns[name]
            digest.update(f"{name}\0{column.dtype.str}\0{len(column)}\0".encode("utf-8", "replace"))
            if column.dtype.kind == "O":
                words = [word.encode("utf-8", "surrogatepass") for word in column.tolist()]
                digest.update(np.array([len(word) for word in words], "<i8").tobytes())
                digest.update(b"".join(words))
            else:
                digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def concatenate(tables: Sequence[Table], *, source: str) -> Table:
    """Joins the rows of tables that have the same columns.

    Args:
      tables: One or more tables.
      source: Name of the result in messages.

    Returns:
      The table of all rows, numbered as in their own tables.

    Raises:
      DataError: If a table lacks a column of the first.

    Example:
      >>> from metajax.data.tables import Table
      >>> table = Table.of({"stars": [4, 5]})
      >>> len(concatenate([table, table], source="both"))
      4
    """
    columns = {}
    for name in tables[0].columns:
        parts = [table.column(name) for table in tables]
        if len({part.dtype.kind for part in parts}) > 1:  # words in one file and numbers in another
            parts = [as_column(table.text(name)) for table in tables]
        columns[name] = np.concatenate(parts)
    return Table(columns, source, np.concatenate([table.numbers for table in tables]))


def as_column(values: Sequence | np.ndarray) -> np.ndarray:
    """Makes a column of values.

    Args:
      values: Values [R] of str, numbers or bools; None stands for a missing value.

    Returns:
      An array [R]: int64 for integers and bools, float64 for numbers of which some are missing or fractions,
      and otherwise objects of str, as for integers beyond 64 bits.

    Raises:
      DataError: If a value is neither text nor a number.

    Example:
      >>> as_column([True, False]).tolist(), as_column(["a", None]).tolist()
      ([1, 0], ['a', ''])
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    values = list(values)
    kinds = {type(value) for value in values}
    if kinds <= {bool, int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    exact = all(abs(value) <= 2**53 for value in values if type(value) is int)
    if exact and kinds <= {bool, int, float, type(None)} and kinds != {type(None)}:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    column = np.empty(len(values), object)
    if kinds == {str}:
        column[:] = values
        return column
    for row, value in enumerate(values):
        if isinstance(value, list | dict | tuple | set | bytes):
            raise DataError(
                f"Row {row + 1:,}: {shown(value, 40)} is {type(value).__name__}; use text or numbers."
            )
        column[row] = "" if value is None else _text(value)
    return column


def _text(value: object) -> str:
    """Writes a value as text; whole numbers have no decimal point."""
    return _number_text(value) if isinstance(value, float) else str(value)


def _number_text(value: float) -> str:
    """Writes a number as text; whole numbers have no decimal point."""
    return str(int(value)) if value.is_integer() else repr(value)
