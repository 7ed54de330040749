"""Tables of files: delimited text, JSON, ARFF, CoNLL with comments, Parquet and Arrow."""

import csv
import gzip
import io
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metajax.data import strict_json
from metajax.data.tables import arff, arrow, conll
from metajax.data.tables.lines import MOST_BYTES, Lines
from metajax.data.tables.near import nearest
from metajax.data.tables.table import Table, as_column
from metajax.errors import DataError
from metajax.names import listed, shown


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


_PLAIN = Layout()


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    layout: Layout = _PLAIN,
    most_bytes: int = MOST_BYTES,
    suffix: str | None = None,
) -> Table:
    """Reads a file, or a folder that Hugging Face's `save_to_disk` wrote, as a table.

    | suffix | content |
    |---|---|
    | .csv, .tsv, .tab, .txt, .dat, .data | delimited text with a header; `layout` describes other text |
    | .jsonl, .ndjson, .json | an object per line; or one list of objects |
    | .arff | attributes and rows of OpenML and WEKA |
    | .conll, .conllu | blocks of lines whose comments `# key = value` are the columns |
    | .parquet; .arrow, .feather, and folders | tables of pyarrow, read column by column |

    All but the last kind may be compressed, with .gz after the suffix. Values of delimited text stay text, so
    that an identifier such as 007 survives; `Table.floats` parses numbers.

    Args:
      path: File or folder.
      columns: Names of the columns to read; None reads all.
      layout: Layout of delimited text, of which other files use the encoding alone.
      most_bytes: Limit of the bytes of the text, uncompressed, or of the columns of Parquet and Arrow.
      suffix: Suffix of the kind of file that it is, such as .csv; None is that of the path.

    Returns:
      The table.

    Raises:
      DataError: If the file is missing, broken, empty, too large or of unknown kind, or lacks a column.
      ImportError: If pyarrow is needed and missing.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "tickets.csv")
      ...     _ = path.write_text('message,topic\\n"Where is my card?",card\\n')
      ...     read_table(path).text("message")
      ['Where is my card?']
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise DataError(f"There is no file {shown(path)}; check the path.")
    packed = path.suffix.lower() == ".gz"
    suffix = (suffix or (path.with_suffix("") if packed else path).suffix).lower()
    if path.is_dir() or suffix in arrow.SUFFIXES:
        return arrow.read(path, columns, most_bytes, suffix)
    read = _READERS.get(suffix)
    if read is None:
        known = ", ".join([*_READERS, *arrow.SUFFIXES])
        raise DataError(f"{shown(path.name)} is of no known kind; use a file with one of: {known}.")
    if suffix in (".tsv", ".tab") and layout.separator is None:
        layout = layout._replace(separator="\t")
    opener = gzip.open if packed else open
    try:
        with opener(path, "rb") as file:
            # Lines of gzip's own objects are slower by far.
            lines = Lines(io.BufferedReader(file), shown(path.name), layout.encoding, most_bytes)
            found, numbers = read(lines, columns, layout)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or shown(error)}."
        ) from error
    if not len(numbers):
        raise DataError(f"{shown(path)} has no rows; give a file with one or more.")
    return Table(
        {name: as_column(values) for name, values in found.items()},
        shown(path.name),
        as_column(numbers),
    )


Found = tuple[dict[str, list], list[int]]
"""Values of columns by name, and the number of each row."""


def _delimited(lines: Lines, columns: Sequence[str] | None, layout: Layout) -> Found:
    """Reads delimited text."""
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
    values: dict[str, list[str]] = {name: [] for name in wanted}
    # Equal texts of a column are one object, which saves most of the memory of categories.
    parts = [(place, {}, values[name].append) for name, place in wanted.items()]
    numbers, number = [], 0
    for row in rows:
        if not row:
            continue  # an empty line
        number += 1
        if len(row) != len(names):
            raise DataError(
                f"Row {number:,} of {lines.source}, near line {lines.count:,}, has {len(row)} fields and the "
                f"header {len(names)}; put quotes around fields that hold separators, or mend the row."
            )
        for place, seen, append in parts:
            word = row[place]
            append(seen.setdefault(word, word))
        numbers.append(number)
    return values, numbers


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
    limit = csv.field_size_limit(sys.maxsize)  # the limit of other readers is set again below
    try:
        yield from csv.reader(
            text, delimiter=separator, quotechar=layout.quote or '"', quoting=quoting, strict=True
        )
    except csv.Error as error:
        remedy = "close the quotes" if layout.quote else "mend the line"
        raise DataError(
            f"{lines.source} is broken near line {lines.count:,}: {error}; {remedy}, or give a layout "
            "without quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _json_lines(lines: Lines, columns: Sequence[str] | None, layout: Layout) -> Found:
    """Reads an object per line."""
    del layout
    objects, numbers = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            objects.append(_parsed(line, f"Line {number:,} of {lines.source}"))
            numbers.append(number)
    return _columns(objects, numbers, lines.source, columns)


def _json(lines: Lines, columns: Sequence[str] | None, layout: Layout) -> Found:
    """Reads one list of objects."""
    del layout
    objects = _parsed("".join(lines), lines.source)
    if not isinstance(objects, list):
        raise DataError(
            f"{lines.source} holds {type(objects).__name__}; use a list of objects, or a .jsonl file."
        )
    return _columns(objects, list(range(1, len(objects) + 1)), lines.source, columns)


def _parsed(text: str, where: str) -> object:
    """Parses JSON; raises DataError with the place if it is broken."""
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {shown(error)}; mend it.") from error


def _columns(
    objects: list, numbers: list[int], source: str, columns: Sequence[str] | None
) -> Found:
    """Makes columns of objects; a key that an object lacks is a missing value."""
    for number, found in zip(numbers, objects, strict=True):
        if not isinstance(found, dict):
            raise DataError(
                f"Row {number:,} of {source} is {type(found).__name__}; use an object per row."
            )
    names = tuple(dict.fromkeys(name for found in objects for name in found))
    wanted = places(source, names, columns) if objects else {}
    values = {}
    for name in wanted:
        values[name] = [found.get(name) for found in objects]
        for number, value in zip(numbers, values[name], strict=True):
            if isinstance(value, list | dict):
                raise DataError(
                    f"Row {number:,} of {source}, column '{shown(name)}': {type(value).__name__}; use text "
                    "or numbers, or name the columns to read."
                )
    return values, numbers


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


_Reader = Callable[[Lines, Sequence[str] | None, Layout], Found]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".dat", ".data"), _delimited),
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    ".json": _json,
    ".arff": lambda lines, columns, layout: _of(arff.read(lines), lines.source, columns),
    **dict.fromkeys(
        (".conll", ".conllu"),
        lambda lines, columns, layout: _of(conll.read(lines), lines.source, columns),
    ),
}


def _of(found: Found, source: str, columns: Sequence[str] | None) -> Found:
    """Keeps the wanted columns."""
    values, numbers = found
    return {name: values[name] for name in places(source, list(values), columns)}, numbers
