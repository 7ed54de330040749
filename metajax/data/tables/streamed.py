"""Text that is read row by row, keeping the wanted columns alone: delimited text and lines of JSON."""

import csv
import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from metajax.data import strict_json
from metajax.data.tables.lines import Lines
from metajax.data.tables.near import nearest
from metajax.errors import DataError
from metajax.names import listed, shown

Found = tuple[dict[str, list], list[int]]
"""Values of columns by name, and the number of each row."""

_LIMIT = threading.Lock()  # of csv's limit, which all threads share
_WORD = 8  # bytes of a number, or of the reference to a text
_ENTRY = 100  # bytes of a text's place among the texts seen


class Layout(NamedTuple):
    """The layout of delimited text.

    Attributes:
      separator: Text between fields; None is a tab in files named .tsv or .tab, and else a comma, or what the
        header has in its place: a semicolon or a tab.
      quote: Character around fields that hold separators or new lines; None if quotes have no meaning.
      names: Names of the columns of a file without a header; None reads them from the first line.
      encoding: Encoding of the text.
    """

    separator: str | None = None
    quote: str | None = '"'
    names: tuple[str, ...] | None = None
    encoding: str = "utf-8"


class _Kept:
    """The values of the wanted columns, of which equal texts are one object, and a limit of their size."""

    def __init__(self, source: str, most_bytes: int):
        self.values: dict[str, list] = {}
        self.numbers: list[int] = []
        self._seen: dict[str, dict[str, str]] = {}
        self._source, self._most, self._size = source, most_bytes, 0

    def add_column(self, name: str) -> None:
        """Adds a column, whose value is missing in the rows before."""
        self.values[name], self._seen[name] = [None] * len(self.numbers), {}

    def add_row(self, number: int, row: Sequence[Any]) -> None:
        """Adds a row of one value per column; raises DataError if it is one too many."""
        for (name, column), value in zip(self.values.items(), row, strict=True):
            if isinstance(value, str):
                seen = self._seen[name]
                found = seen.get(value)
                if found is None:
                    seen[value] = found = value
                    self._size += sys.getsizeof(value) + _ENTRY
                value = found
            column.append(value)
        self.numbers.append(number)
        self._size += _WORD * len(row)
        if self._size > self._most:
            raise DataError(
                f"The columns {listed(self.values)} of {self._source} have more than "
                f"{self._most / 2**30:.3g} GiB by row {number:,}; name fewer columns to read, or raise "
                "most_bytes of read_table."
            )


def delimited(
    lines: Lines, columns: Sequence[str] | None, layout: Layout, *, most_bytes: int
) -> Found:
    """Reads delimited text row by row.

    Args:
      lines: Lines of the file.
      columns: Names of the columns to keep; None keeps all.
      layout: Layout of the text.
      most_bytes: Limit of the bytes of what is kept; equal texts of a column count once.

    Returns:
      Values by column and the numbers of the rows.

    Raises:
      DataError: If the text is broken or too large, or a column is missing.
    """
    text = iter(lines)
    first = next(text, "")
    if layout.separator is None and layout.names is None:
        layout = layout._replace(separator=_separator(first))
    rows = _rows(itertools.chain([first] if first else [], text), lines, layout)
    names = layout.names
    if names is None:
        names = tuple(name.strip() for name in next(rows, ()))
        if not names:
            raise DataError(f"{lines.source} is empty; give a file with a header and rows.")
    check_names(lines.source, names)
    wanted = places(lines.source, names, columns)
    kept = _Kept(lines.source, most_bytes)
    for name in wanted:
        kept.add_column(name)
    number = 0
    for row in rows:
        if not row:
            continue  # an empty line
        number += 1
        if len(row) != len(names):
            raise DataError(
                f"Row {number:,} of {lines.source}, near line {lines.count:,}, has {len(row)} fields and the "
                f"header {len(names)}; put quotes around fields that hold separators, or mend the row."
            )
        kept.add_row(number, [row[place] for place in wanted.values()])
    return kept.values, kept.numbers


def _separator(header: str) -> str:
    """Finds the separator of a header: spreadsheets of some countries write semicolons."""
    return next((mark for mark in ",;\t" if mark in header), ",")


def _rows(text: Iterator[str], lines: Lines, layout: Layout) -> Iterator[list[str]]:
    """Yields the fields of rows; a separator of several characters knows no quotes."""
    separator = layout.separator or ","
    if len(separator) > 1:
        for line in text:
            yield line.rstrip("\r\n").split(separator) if line.strip() else []
        return
    quoting = csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE
    rows = csv.reader(
        text, delimiter=separator, quotechar=layout.quote or '"', quoting=quoting, strict=True
    )
    try:
        while (row := _next_of_any_length(rows)) is not None:
            yield row
    except csv.Error as error:
        remedy = "close the quotes" if layout.quote else "mend the line"
        raise DataError(
            f"{lines.source} is broken near line {lines.count:,}: {error}; {remedy}, or give a layout "
            "without quotes."
        ) from error


def _next_of_any_length(rows: Iterator[list[str]]) -> list[str] | None:
    """Returns the next row, or None, without the limit that csv has on the length of a field.

    The limit belongs to the process: it is set again before anybody else's code runs, since a reader that
    stops halfway, or two that take turns, would otherwise leave theirs to everyone.
    """
    with _LIMIT:
        limit = csv.field_size_limit(sys.maxsize)
        try:
            return next(rows, None)
        finally:
            csv.field_size_limit(limit)


def json_lines(
    lines: Lines, columns: Sequence[str] | None, layout: Layout, *, most_bytes: int
) -> Found:
    """Reads an object per line; a key that an object lacks is a missing value.

    Args:
      lines: Lines of the file.
      columns: Names of the columns to keep; None keeps all.
      layout: Layout, whose encoding the lines have already.
      most_bytes: Limit of the bytes of what is kept; equal texts of a column count once.

    Returns:
      Values by column and the numbers of the lines.

    Raises:
      DataError: If a line is no JSON object, a column is missing, or the table is too large.
    """
    del layout
    objects = (
        (number, parsed(line, f"Line {number:,} of {lines.source}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return of_objects(objects, lines.source, columns, most_bytes=most_bytes)


def parsed(text: str, where: str) -> object:
    """Parses JSON.

    Args:
      text: Text.
      where: Place of the text in messages.

    Returns:
      The value.

    Raises:
      DataError: If it is broken.
    """
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {shown(error)}; mend it.") from error


def of_objects(
    objects: Iterator[tuple[int, object]],
    source: str,
    columns: Sequence[str] | None,
    *,
    most_bytes: int,
) -> Found:
    """Collects columns of objects.

    Args:
      objects: Numbers of the rows and their objects.
      source: Name of the file in messages.
      columns: Names of the columns to keep; None keeps all.
      most_bytes: Limit of the bytes of what is kept.

    Returns:
      Values by column, with None where an object lacks the key, and the numbers of the rows.

    Raises:
      DataError: If a row is no object, a value is a list or an object, a column is missing, or the table is
        too large.
    """
    kept, names = _Kept(source, most_bytes), {}  # names in the order in which they are met
    for name in columns or ():
        kept.add_column(name)
    for number, found in objects:
        if not isinstance(found, dict):
            raise DataError(
                f"Row {number:,} of {source} is {type(found).__name__}; use an object per row."
            )
        if not found.keys() <= names.keys():
            names |= dict.fromkeys(found)
            for name in names if columns is None else ():
                if name not in kept.values:
                    kept.add_column(name)
        row = [found.get(name) for name in kept.values]
        for name, value in zip(kept.values, row, strict=True):
            if isinstance(value, list | dict):
                raise DataError(
                    f"Row {number:,} of {source}, column '{shown(name)}': {type(value).__name__}; use text "
                    "or numbers, or name the columns to read."
                )
        kept.add_row(number, row)
    if kept.numbers:
        places(source, tuple(names), columns)
    return kept.values, kept.numbers


def check_names(source: str, names: Sequence[str]) -> None:
    """Raises DataError if two columns have the same name.

    Args:
      source: Name of the file in the message.
      names: Names of the columns.

    Raises:
      DataError: If a name repeats.
    """
    if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DataError(
            f"{source} has two columns '{shown(repeated[0])}'; give every column its own name."
        )


def places(source: str, names: Sequence[str], columns: Sequence[str] | None) -> dict[str, int]:
    """Finds the wanted columns of a header.

    Args:
      source: Name of the file in the message.
      names: Names of all columns.
      columns: Names of the wanted columns; None for all.

    Returns:
      Place of each wanted column, by name.

    Raises:
      DataError: If there is no such column.
    """
    found = {name: place for place, name in enumerate(names)}
    for name in columns or ():
        if name not in found:
            raise DataError(
                f"{source} has no column '{shown(name)}' among {listed(names)}; {nearest(name, names)}"
            )
    return found if columns is None else {name: found[name] for name in columns}
