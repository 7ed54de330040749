"""What was read of data sets kept on disk, so that it is read once and not at every start."""

import contextlib
import functools
import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metajax.data.images import LabelledImages
from metajax.names import shown

_FORMAT = 1  # counts up when the layout of the files changes, so that old ones are not read

T = TypeVar("T")


def cache_dir() -> Path:
    """The folder: $METAJAX_CACHE_DIR, else $XDG_CACHE_HOME/metajax, else ~/.cache/metajax."""
    if chosen := os.environ.get("METAJAX_CACHE_DIR"):
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base), "metajax")


class Entry(NamedTuple):
    """What a file holds: arrays by name, and what can be said in JSON."""

    arrays: dict[str, np.ndarray]
    text: dict[str, Any]


def cached(key: str, build: Callable[[], LabelledImages]) -> LabelledImages:
    """Returns the images that `build` made for this key, from disk if it made them before; see `kept`."""
    return kept(key, build, pack=_pack, unpack=_unpack)


def kept(
    key: str, build: Callable[[], T], *, pack: Callable[[T], Entry], unpack: Callable[[Entry], T]
) -> T:
    """Returns what `build` made for this key, from disk if it was made before.

    Files are written whole and then renamed, so any number of processes may ask at once; each finds
    a complete file or builds its own. A broken file is built again. Where the folder cannot be
    written, everything is built every time, after one warning. Nothing is ever removed from the
    folder: it may be deleted whenever nobody needs the space less than the time.

    Args:
      key: everything the result depends on: data set, version, size and so on.
      build: makes it.
      pack: says what to write of it.
      unpack: makes it from what was read; raises anything where that is broken.

    Returns:
      The result; the same whether read or built.
    """
    path = _path(key)
    found = _read(path, key, unpack)
    if found is None:
        found = build()
        _write(path, key, pack(found))
    return found


def _pack(images: LabelledImages) -> Entry:
    return Entry(
        {"images": images.images, "counts": images.counts},
        {"names": images.names, "groups": images.groups},
    )


def _unpack(entry: Entry) -> LabelledImages:
    names, groups = (tuple(entry.text[name]) for name in ("names", "groups"))
    images = LabelledImages(**entry.arrays, names=names, groups=groups)
    if not (
        images.images.dtype == np.uint8
        and images.images.ndim == 4
        and images.counts.shape == (len(names),)
        and images.counts.sum() == len(images.images)
        and len(groups) == len(names)
    ):
        raise ValueError("images, classes and their names do not fit together")
    return images


def _path(key: str) -> Path:
    digest = hashlib.sha256(f"{_FORMAT} {key}".encode("utf-8", "surrogateescape")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", key)[:40].strip("-.")
    return cache_dir() / f"{readable}-{digest[:16]}.npz"


def _read(path: Path, key: str, unpack: Callable[[Entry], T]) -> T | None:
    if not os.path.isfile(path):  # False also where there can be no such path
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text = json.loads(arrays.pop("text").tobytes())
        return unpack(Entry(arrays, text)) if text.pop("key") == key else None
    except Exception:  # A cache is a convenience: whatever ails the file, the remedy is to rebuild.
        return None


def _write(path: Path, key: str, entry: Entry) -> None:
    text = json.dumps({"key": key, **entry.text})
    arrays = {**entry.arrays, "text": np.frombuffer(text.encode(), np.uint8)}
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(partial, path)
    except OSError as error:
        _warn_unwritable(shown(path.parent), error.strerror or shown(error))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # Gone already unless something went wrong.


@functools.cache
def _warn_unwritable(folder: str, error: str) -> None:
    """Warns once a folder, for the functools cache remembers it."""
    warnings.warn(
        f"what is read of data sets cannot be kept in {folder} ({error}): it will be read at every start;"
        " set METAJAX_CACHE_DIR to a folder that can be written.",
        stacklevel=3,
    )
