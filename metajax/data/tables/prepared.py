"""Tables of data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.data.tables.near import nearest
from metajax.data.tables.table import Table, as_column
from metajax.data.tfds import folders
from metajax.data.tfds.source import open_builder
from metajax.errors import DataError
from metajax.names import listed, shown

PREFIX = "tfds:"
"""Prefix of a path that is the name of a data set of TFDS."""

_INFO = "dataset_info.json"
_BATCH = 4096  # records in memory at once
_SPLIT = "split"  # column of the names of TFDS's splits


def find(path: str | Path) -> Path | None:
    """Finds the folder of a prepared data set.

    Args:
      path: `tfds:NAME`, `tfds:NAME/config` or `tfds:NAME:1.0.0`, which lies under $TFDS_DATA_DIR, else
        ~/tensorflow_datasets; or the folder of a version, or one above it that has versions.

    Returns:
      The folder of the version, the newest if there are several; None if the path is something else.

    Raises:
      DataError: If a data set is named and not there.

    Example:
      >>> find("tickets.csv") is None
      True
    """
    name = str(path)
    if name.startswith(PREFIX):
        return folders.find(name.removeprefix(PREFIX))
    folder = Path(path)
    if (folder / _INFO).is_file():
        # The folders that `save_to_disk` of Hugging Face writes have a file of that name as well.
        return folder if (folder / "features.json").is_file() else None
    if any(folder.glob(f"*/{_INFO}")) and any(folder.glob("*/features.json")):
        return folders.find(folder.name, data_dir=folder.parent)
    return None


def read(folder: Path, columns: Sequence[str] | None, most_bytes: int) -> Table:
    """Reads the features of a prepared data set that are text, class labels or single numbers.

    A class label becomes its name. Features of a feature have names such as `data/review_body`. The column
    `split` has TFDS's name of the split, unless there is a feature of that name.

    Args:
      folder: Folder of the version.
      columns: Names of the columns to read; None reads all that are of these kinds.
      most_bytes: Limit of the bytes of these columns.

    Returns:
      The table, one split after another.

    Raises:
      DataError: If the files are broken, a column is missing or of another kind, or the table is too large.
      ImportError: If tensorflow-datasets is missing.
    """
    name = f"{folder.parent.name}:{folder.name}"
    builder = open_builder(folder, folders.prepare_command(name, folder.parents[1]))
    paths = dict(_flat(builder.info.features, ()))
    found = {column: feature for column, (_, feature) in paths.items()}
    readers = {column: reader for column, feature in found.items() if (reader := _reader(feature))}
    own_split = _SPLIT in found
    wanted = _wanted(name, found, readers, columns)
    values: dict[str, list] = {column: [] for column in wanted}
    held, splits = 0, []
    for split in builder.info.splits:
        for record in _records(builder, folder, split):
            for column in wanted:
                if column == _SPLIT and not own_split:
                    continue
                value = readers[column](_at(record, paths[column][0]))
                values[column].append(value)
                # Each text is an object of its own here.
                held += 8 + (sys.getsizeof(value) if isinstance(value, str) else 0)
            splits.append(split)
            if held > most_bytes:
                raise DataError(
                    f"The columns {listed(wanted)} of {name} take more than {most_bytes / 2**30:.3g} GiB; "
                    "name fewer columns to read, or raise most_bytes of read_table."
                )
    if not splits:
        raise DataError(f"{name} has no records; prepare it again.")
    if _SPLIT in wanted and not own_split:
        values[_SPLIT] = splits
    arrays = {column: as_column(found) for column, found in values.items()}
    return Table(arrays, name, np.arange(1, len(splits) + 1))


def _flat(
    features: Any, above: tuple[str, ...]
) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
    """Yields names of features with their keys and themselves; names of nested ones have slashes."""
    for key in features:
        feature, path = features[key], (*above, key)
        if hasattr(feature, "keys"):
            yield from _flat(feature, path)
        else:
            yield "/".join(path), (path, feature)


def _reader(feature: Any) -> Any:
    """Makes the function that reads a value of a feature; None if it is no column of a table."""
    names = getattr(feature, "names", None)
    if names is not None:
        return lambda value: names[value] if 0 <= int(value) < len(names) else ""
    if feature.shape != () or not hasattr(feature, "np_dtype"):
        return None
    if np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_:
        return lambda value: np.asarray(value).item()
    if feature.np_dtype in (np.object_, np.str_, np.bytes_):
        return _text
    return None


def _text(value: Any) -> str:
    """Decodes a text; bytes that are not UTF-8 become marks of replacement."""
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _wanted(
    name: str,
    found: Mapping[str, Any],
    readers: Mapping[str, Any],
    columns: Sequence[str] | None,
) -> list[str]:
    """Finds the names of the columns to read."""
    known = list(dict.fromkeys((*readers, _SPLIT)))
    if columns is None:
        if not readers:
            raise DataError(
                f"{name} has no feature of text, class labels or numbers, only {listed(list(found))}; use a "
                "data set of tables."
            )
        return known
    for column in columns:
        if column in found and column not in readers:
            kind = type(found[column]).__name__
            raise DataError(
                f"Feature '{shown(column)}' of {name} is {kind}; use columns of text, class labels or "
                f"numbers, such as {listed(known, few=4)}."
            )
        if column not in known:
            raise DataError(
                f"{name} has no column '{shown(column)}' among {listed(known)}; {nearest(column, known)}"
            )
    return list(columns)


def _at(record: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Finds a value of a record by its keys."""
    value: Any = record
    for key in path:
        value = value[key]
    return value


def _records(builder: Any, folder: Path, split: str) -> Iterator[Mapping[str, Any]]:
    """Yields the records of a split; raises DataError if its files are broken or missing."""
    try:
        source = builder.as_data_source(split=split, decoders=_undecoded(builder))
        for start in range(0, len(source), _BATCH):
            yield from source.__getitems__(list(range(start, min(start + _BATCH, len(source)))))
    except (RuntimeError, IndexError, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{shown(folder)}: the files of {shown(split)} are broken or missing ({shown(error)}); remove "
            "that folder and prepare the data set again."
        ) from error


def _undecoded(builder: Any) -> dict[str, Any]:
    """Makes the decoders that leave images as files, since no table holds them."""
    import tensorflow_datasets as tfds

    return {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
