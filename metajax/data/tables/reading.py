"""Tables of files: delimited text, JSON, ARFF, CoNLL with comments, Parquet, Arrow, and data sets of TFDS."""

import functools
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from metajax.data.tables import arff, arrow, conll, prepared
from metajax.data.tables.lines import MOST_BYTES, Lines
from metajax.data.tables.streamed import (
    Found,
    Layout,
    delimited,
    json_lines,
    of_objects,
    parsed,
    places,
)
from metajax.data.tables.table import Table, as_column
from metajax.errors import DataError
from metajax.names import shown

__all__ = ["Layout", "read_table"]

_PLAIN = Layout()


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    layout: Layout = _PLAIN,
    most_bytes: int = MOST_BYTES,
    suffix: str | None = None,
) -> Table:
    """Reads a file, a folder that Hugging Face's `save_to_disk` wrote, or a data set of TFDS, as a table.

    | suffix | content |
    |---|---|
    | .csv, .tsv, .tab, .txt, .dat, .data | delimited text with a header; `layout` describes other text |
    | .jsonl, .ndjson, .json | an object per line; or one list of objects |
    | .arff | attributes and rows of OpenML and WEKA |
    | .conll, .conllu | blocks of lines whose comments `# key = value` are the columns |
    | .parquet; .arrow, .feather, and folders | tables of pyarrow, read column by column |
    | tfds:NAME, and its folder | features of a data set that TFDS has prepared as ArrayRecord |

    Files of text may be compressed, with .gz after the suffix. Values of delimited text stay text, so that an
    identifier such as 007 survives; `Table.floats` parses numbers. Delimited text and lines of JSON are read
    row by row, so the file may be larger than the limit where the columns that are read are not.

    Args:
      path: File, folder, or name such as `tfds:ag_news_subset`.
      columns: Names of the columns to read; None reads all.
      layout: Layout of delimited text, of which other files use the encoding alone.
      most_bytes: Limit of the bytes of the columns that are read, of which equal texts count once; of .json,
        .arff and .conll, of the whole text, uncompressed.
      suffix: Suffix of the kind of file that it is, such as .csv; None is that of the path.

    Returns:
      The table.

    Raises:
      DataError: If the file is missing, broken, empty, too large or of unknown kind, or lacks a column.
      ImportError: If pyarrow or tensorflow-datasets is needed and missing.

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
    if (folder := prepared.find(path)) is not None:
        return prepared.read(folder, columns, most_bytes)
    if not path.exists():
        raise DataError(f"There is no file {shown(path)}; check the path.")
    packed = path.suffix.lower() == ".gz"
    suffix = (suffix or (path.with_suffix("") if packed else path).suffix).lower()
    if path.is_dir() or suffix in arrow.SUFFIXES:
        return arrow.read(path, columns, most_bytes, suffix)
    if suffix not in _READERS and suffix not in _STREAMED:
        known = ", ".join([*_STREAMED, *_READERS, *arrow.SUFFIXES])
        raise DataError(f"{shown(path.name)} is of no known kind; use a file with one of: {known}.")
    if suffix in (".tsv", ".tab") and layout.separator is None:
        layout = layout._replace(separator="\t")
    opener = gzip.open if packed else open
    try:
        with opener(path, "rb") as file:
            # Lines of gzip's own objects are slower by far.
            streamed = suffix in _STREAMED
            most_text = sys.maxsize if streamed else most_bytes
            lines = Lines(io.BufferedReader(file), shown(path.name), layout.encoding, most_text)
            if streamed:
                read = functools.partial(_STREAMED[suffix], most_bytes=most_bytes)
            else:
                read = _READERS[suffix]
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


def _json(lines: Lines, columns: Sequence[str] | None, layout: Layout) -> Found:
    """Reads one list of objects."""
    del layout
    objects = parsed("".join(lines), lines.source)
    if not isinstance(objects, list):
        raise DataError(
            f"{lines.source} holds {type(objects).__name__}; use a list of objects, or a .jsonl file."
        )
    # The text, which is larger, has been held to the limit.
    return of_objects(enumerate(objects, 1), lines.source, columns, most_bytes=sys.maxsize)


_Reader = Callable[[Lines, Sequence[str] | None, Layout], Found]
_READERS: dict[str, _Reader] = {
    ".json": _json,
    ".arff": lambda lines, columns, layout: _of(arff.read(lines), lines.source, columns),
    **dict.fromkeys(
        (".conll", ".conllu"),
        lambda lines, columns, layout: _of(conll.read(lines), lines.source, columns),
    ),
}
# Readers that keep the wanted columns alone, whose limit is one of what they keep.
_STREAMED = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".dat", ".data"), delimited),
    **dict.fromkeys((".jsonl", ".ndjson"), json_lines),
}


def _of(found: Found, source: str, columns: Sequence[str] | None) -> Found:
    """Keeps the wanted columns."""
    values, numbers = found
    return {name: values[name] for name in places(source, list(values), columns)}, numbers
