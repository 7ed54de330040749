"""Tables of pyarrow: Parquet and Arrow files, and the folders that Hugging Face's `save_to_disk` writes."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.data import strict_json
from metajax.data.tables.near import nearest
from metajax.data.tables.table import Table, concatenate
from metajax.errors import DataError
from metajax.names import listed, shown

SUFFIXES = (".parquet", ".arrow", ".feather")
"""Suffixes of the files that need pyarrow."""


def read(path: Path, columns: Sequence[str] | None, most_bytes: int, suffix: str) -> Table:
    """Reads a Parquet or Arrow file, or a folder of `save_to_disk`, column by column.

    A folder of several data sets has a column `split` with their names, unless it has one already. Class
    labels become their names where the file knows them; times become integers of their unit.

    Args:
      path: File or folder.
      columns: Names of the columns to read; None reads all.
      most_bytes: Limit of the bytes of these columns.
      suffix: Suffix of the kind of file; it is not read for a folder.

    Returns:
      The table.

    Raises:
      DataError: If the file is broken, empty or too large, a column is missing, or its values are neither
        text nor numbers.
      ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{shown(path.name)} needs pyarrow; install it with: pip install 'metajax[tables]'"
        ) from error
    from pyarrow import ArrowException

    try:
        if path.is_dir():
            table = _folder(path, columns, most_bytes)
        elif suffix == ".parquet":
            table = _parquet(path, columns, most_bytes)
        else:
            table = _arrow([path], shown(path.name), columns, most_bytes)
    except (ArrowException, OSError) as error:
        raise DataError(f"{shown(path)} cannot be read: {shown(error)}.") from error
    if not len(table):
        raise DataError(f"{shown(path)} has no rows; give a file with one or more.")
    return table


def _parquet(path: Path, columns: Sequence[str] | None, most_bytes: int) -> Table:
    """Reads a Parquet file."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = _wanted(shown(path.name), schema, columns)
        sizes = {}
        for group in range(file.metadata.num_row_groups):
            for place in range(file.metadata.num_columns):
                chunk = file.metadata.row_group(group).column(place)
                path_inside = chunk.path_in_schema
                # Columns of a nested one have paths with dots; a plain name may have dots too.
                name = path_inside if path_inside in schema.names else path_inside.split(".")[0]
                sizes[name] = sizes.get(name, 0) + chunk.total_uncompressed_size
        _check_size(shown(path.name), {name: sizes.get(name, 0) for name in wanted}, most_bytes)
        return _table(shown(path.name), schema, wanted, lambda name: file.read([name]).column(0))


def _folder(path: Path, columns: Sequence[str] | None, most_bytes: int) -> Table:
    """Reads a folder that `save_to_disk` wrote, of one data set or of several."""
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json")["splits"]
        wanted = None if columns is None else [name for name in columns if name != "split"]
        parts = []
        for name in names:
            part = _one_folder(path / name, wanted, most_bytes)
            own = {} if "split" in part.columns else {"split": [name] * len(part)}
            parts.append(part.with_columns(own))
        return concatenate(parts, source=shown(path.name))
    return _one_folder(path, columns, most_bytes)


def _one_folder(path: Path, columns: Sequence[str] | None, most_bytes: int) -> Table:
    """Reads a folder that `save_to_disk` wrote of one data set."""
    if not (path / "state.json").is_file():
        raise DataError(
            f"{shown(path)} is a folder without state.json; use one that Hugging Face's save_to_disk wrote, "
            "or name a file."
        )
    state = _json(path / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{shown(path)} keeps a selection of its rows; call flatten_indices() before save_to_disk."
        )
    files = [path / entry["filename"] for entry in state["_data_files"]]
    return _arrow(files, shown(path.name), columns, most_bytes)


def _json(path: Path) -> Any:
    """Parses a JSON file of a folder."""
    try:
        return strict_json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{shown(path)} is not JSON: {shown(error)}.") from error


def _arrow(
    files: Sequence[Path], source: str, columns: Sequence[str] | None, most_bytes: int
) -> Table:
    """Reads Arrow files or streams, which are mapped into memory and not loaded."""
    import pyarrow
    from pyarrow import ipc

    tables = []
    for path in files:
        mapped = pyarrow.memory_map(os.fspath(path))
        try:
            tables.append(ipc.open_file(mapped).read_all())
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            tables.append(ipc.open_stream(mapped).read_all())
    table = pyarrow.concat_tables(tables)
    wanted = _wanted(source, table.schema, columns)
    _check_size(source, {name: table.column(name).nbytes for name in wanted}, most_bytes)
    return _table(source, table.schema, wanted, table.column)


def _wanted(source: str, schema: Any, columns: Sequence[str] | None) -> list[str]:
    """Finds the names of the columns to read."""
    for name in columns or ():
        if name not in schema.names:
            raise DataError(
                f"{source} has no column '{shown(name)}' among {listed(schema.names)}; "
                f"{nearest(name, schema.names)}"
            )
    return list(schema.names if columns is None else columns)


def _check_size(source: str, sizes: dict[str, int], most_bytes: int) -> None:
    """Raises DataError if columns take more than the limit."""
    if sum(sizes.values()) > most_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])
        raise DataError(
            f"The columns of {source} take {sum(sizes.values()) / 2**30:.3g} GiB, and the limit is "
            f"{most_bytes / 2**30:.3g}; name the columns to read, without {listed(largest, few=3)}, or raise "
            "most_bytes of read_table."
        )


def _table(source: str, schema: Any, names: Sequence[str], read: Callable[[str], Any]) -> Table:
    """Makes a table of columns, which are read one at a time."""
    labels = _class_labels(schema)
    columns = {}
    for name in names:
        column = _column(source, name, read(name))
        if name in labels and column.dtype.kind != "O":
            known = [*labels[name], ""]  # -1 is a missing label
            column = np.array(known, object)[np.nan_to_num(column, nan=-1).astype(np.int64)]
        columns[name] = column
    length = len(next(iter(columns.values()))) if columns else 0
    return Table(columns, source, np.arange(1, length + 1))


def _column(source: str, name: str, chunked: Any) -> np.ndarray:
    """Makes an array of a column of Arrow."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(chunked.type):
        chunked = chunked.cast(chunked.type.value_type)
    kind = chunked.type
    if types.is_string(kind) or types.is_large_string(kind):
        filled = compute.fill_null(chunked, "")
        return np.array(filled.to_pylist(), object)
    if types.is_null(kind):
        return np.array([""] * len(chunked), object)
    if types.is_temporal(kind) and not types.is_interval(kind):
        small = kind.bit_width == 32
        chunked = chunked.cast(pyarrow.int32() if small else pyarrow.int64())
    elif types.is_boolean(kind):
        chunked = chunked.cast(pyarrow.int8())
    elif types.is_decimal(kind):
        chunked = chunked.cast(pyarrow.float64())
    elif not (types.is_integer(kind) or types.is_floating(kind)):
        raise DataError(
            f"Column '{shown(name)}' of {source} holds {shown(kind, 40)}; use text or numbers, or name the "
            "columns to read."
        )
    whole = types.is_integer(chunked.type) and not chunked.null_count
    values = chunked.to_numpy()  # nulls become NaN
    return values.astype(np.int64 if whole else np.float64)


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Finds the names of class labels, which Hugging Face keeps in the metadata of the schema."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored.get("info", {}).get("features", {})
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError):
        return {}
