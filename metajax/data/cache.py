"""A cache of decoded data sets on disk, so that files are decoded once and not at every start."""

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

_FORMAT = 1  # counts up if the layout of the files changes, so that old files are not read

T = TypeVar("T")


def cache_dir() -> Path:
    """Finds the folder of the cache.

    Returns:
      Folder $METAJAX_CACHE_DIR, else $XDG_CACHE_HOME/metajax, else ~/.cache/metajax; it need not exist.
    """
    if chosen := os.environ.get("METAJAX_CACHE_DIR"):
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base), "metajax")


class Entry(NamedTuple):
    """The content of a file.

    Attributes:
      arrays: Arrays by name.
      text: Values that JSON can hold, by name.
    """

    arrays: dict[str, np.ndarray]
    text: dict[str, Any]


def cached(key: str, build: Callable[[], LabelledImages]) -> LabelledImages:
    """Returns labeled images from the cache, or builds and caches them.

    Args:
      key: Text of everything that the images depend on: data set, version, size and so on.
      build: Function that makes the images.

    Returns:
      The images, the same whether read or built; see `kept`.
    """
    return kept(key, build, pack=_pack, unpack=_unpack)


def kept(
    key: str, build: Callable[[], T], *, pack: Callable[[T], Entry], unpack: Callable[[Entry], T]
) -> T:
    """Returns a value from the cache, or builds and caches it.

    Files are written under another name and then renamed, so any number of processes may ask at once: each
    finds a complete file or builds the value itself. A broken file is built again. If the folder cannot be
    written, everything is built every time, after one warning. Nothing is ever removed from the folder;
    deleting it is safe and costs the time to build.

    Args:
      key: Text of everything that the value depends on: data set, version, size and so on.
      build: Function that makes the value.
      pack: Function value -> `Entry` to write.
      unpack: Function `Entry` -> value; any exception marks a broken file.

    Returns:
      The value, the same whether read or built.
    """
    path = _path(key)
    found = _read(path, key, unpack)
    if found is None:
        found = build()
        _write(path, key, pack(found))
    return found


def _pack(images: LabelledImages) -> Entry:
    """Packs labeled images for a file."""
    return Entry(
        {"images": images.images, "counts": images.counts},
        {"names": images.names, "groups": images.groups},
    )


def _unpack(entry: Entry) -> LabelledImages:
    """Makes labeled images of a file's content; raises ValueError if its parts do not fit."""
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
    """Names the file of a key: a readable beginning and a digest."""
    digest = hashlib.sha256(f"{_FORMAT} {key}".encode("utf-8", "surrogateescape")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", key)[:40].strip("-.")
    return cache_dir() / f"{readable}-{digest[:16]}.npz"


def _read(path: Path, key: str, unpack: Callable[[Entry], T]) -> T | None:
    """Reads the value of a file; None if there is no file, or it is broken or has another key."""
    if not os.path.isfile(path):  # False also for paths that cannot exist
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text = json.loads(arrays.pop("text").tobytes())
        return unpack(Entry(arrays, text)) if text.pop("key") == key else None
    except Exception:  # Whatever is wrong with the file, the remedy is to build the value again.
        return None


def _write(path: Path, key: str, entry: Entry) -> None:
    """Writes a file under another name and renames it, so that readers see complete files alone."""
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
            partial.unlink()  # renamed already, unless something went wrong


@functools.cache
def _warn_unwritable(folder: str, error: str) -> None:
    """Warns once per folder, because of the functools cache."""
    warnings.warn(
        f"decoded data sets cannot be cached in {folder} ({error}), and will be decoded at every start;"
        " set METAJAX_CACHE_DIR to a folder that can be written.",
        stacklevel=3,
    )
