"""Tables and features in the cache on disk, so that slow ones are made once."""

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax import trees
from metajax.data import cache
from metajax.data.tables.store import Featurized, Featurizer
from metajax.data.tables.table import Table

_LARGE = 5_000_000  # bytes of a file; smaller ones are read in a second


def kept_table(key: str, build: Callable[[], Table]) -> Table:
    """Returns a table from the cache, or builds and caches it; see `metajax.data.cache.kept`.

    Args:
      key: Text of everything that the table depends on, such as names, sizes and times of files.
      build: Function that makes the table.

    Returns:
      The table, the same whether read or built.
    """
    return cache.kept(f"table {key}", build, pack=_pack_table, unpack=_unpack_table)


def kept_file(path: str | Path, read: Callable[[str | Path], Table]) -> Table:
    """Reads a file, and keeps its table in the cache if it is large.

    Args:
      path: Path of the file, or anything else that `read` knows, which is read every time.
      read: Function path -> table, such as a `functools.partial` of `read_table`; its options and the source
        of its module are part of the key.

    Returns:
      The table, the same whether read or kept. A file of another size or time is read anew.
    """
    file = Path(path)
    if not file.is_file() or (stat := file.stat()).st_size < _LARGE:
        return read(path)
    key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {_named(read)}"
    return kept_table(key, lambda: read(path))


def cached(featurize: Featurizer, *, key: str = "") -> Featurizer:
    """Makes a featurizer that keeps its results in the cache, by the content of the texts.

    Args:
      featurize: Function from texts to arrays, to a dict of arrays, or to these with `valid`. The source of
        its module is part of the key, so that changed code does not read old results.
      key: Text of all options that are not arguments of a `functools.partial`, such as a vocabulary.

    Returns:
      The featurizer.

    Example:
      >>> lengths = lambda texts: np.array([[len(text)] for text in texts])
      >>> cached(lengths, key="lengths of words")(["a", "bcd"]).tolist()
      [[1], [3]]
    """
    name = f"{_named(featurize)} {key}"

    def look_up(texts: list[str]) -> Any:
        return cache.kept(
            f"features {name} {content_hash(texts)}",
            lambda: featurize(texts),
            pack=_pack_features,
            unpack=_unpack_features,
        )

    return look_up


def content_hash(texts: Sequence[str]) -> str:
    """Hashes texts and their order.

    Args:
      texts: Texts.

    Returns:
      SHA-256 in hexadecimal.

    Example:
      >>> content_hash(["ab", "c"]) == content_hash(["a", "bc"])
      False
    """
    return Table.of({"text": list(texts)}).fingerprint()


def _named(featurize: Callable) -> str:
    """Names a function by its module, options and source."""
    options = []
    while isinstance(featurize, functools.partial):
        options.append(f"{featurize.args} {sorted(featurize.keywords.items())}")
        featurize = featurize.func
    module = sys.modules.get(featurize.__module__)
    try:
        source = inspect.getsource(module) if module else ""
    except (OSError, TypeError):  # a function that was typed into a console has no file
        source = ""
    code = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{featurize.__module__}.{featurize.__qualname__} {options} {code}"


def _pack_table(table: Table) -> cache.Entry:
    """Packs a table for a file; texts become bytes and lengths, as nothing else needs no pickle."""
    arrays = {"numbers": table.numbers}
    for place, column in enumerate(table.columns.values()):
        if column.dtype.kind == "O":
            words = [word.encode("utf-8", "surrogatepass") for word in column.tolist()]
            arrays[f"lengths {place}"] = np.array([len(word) for word in words], np.int64)
            arrays[f"bytes {place}"] = np.frombuffer(b"".join(words), np.uint8)
        else:
            arrays[f"column {place}"] = column
    return cache.Entry(arrays, {"names": list(table.columns), "source": table.source})


def _unpack_table(entry: cache.Entry) -> Table:
    """Makes a table of a file's content; raises an exception if its parts do not fit."""
    columns = {}
    for place, name in enumerate(entry.text["names"]):
        if f"column {place}" in entry.arrays:
            columns[name] = entry.arrays[f"column {place}"]
            continue
        ends = np.cumsum(entry.arrays[f"lengths {place}"]).tolist()
        stored = entry.arrays[f"bytes {place}"].tobytes()
        seen: dict[bytes, str] = {}
        words = np.empty(len(ends), object)
        for row, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            word = stored[start:end]
            if word not in seen:
                seen[word] = word.decode("utf-8", "surrogatepass")
            words[row] = seen[word]
        columns[name] = words
    if any(len(column) != len(entry.arrays["numbers"]) for column in columns.values()):
        raise ValueError("columns have different numbers of rows")
    return Table(columns, entry.text["source"], entry.arrays["numbers"])


def _pack_features(made: Any) -> cache.Entry:
    """Packs arrays, or a dict of arrays, for a file."""
    values = made.values if hasattr(made, "valid") else made
    leaves = dict(zip(trees.paths(values), jax.tree.leaves(values), strict=True))
    arrays = {f"leaf {path}": np.asarray(leaf) for path, leaf in leaves.items()}
    if hasattr(made, "valid"):
        arrays["valid"] = np.asarray(made.valid)
    return cache.Entry(arrays, {"paths": list(leaves), "notes": list(getattr(made, "notes", ()))})


def _unpack_features(entry: cache.Entry) -> Any:
    """Makes arrays, or a dict of arrays, of a file's content."""
    values: Any = {}
    for path in entry.text["paths"]:
        leaf = entry.arrays[f"leaf {path}"]
        if not path:
            values = leaf
            break
        *above, last = path.split("/")
        inner = values
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = leaf
    if "valid" not in entry.arrays:
        return values
    return Featurized(values, entry.arrays["valid"], tuple(entry.text["notes"]))
