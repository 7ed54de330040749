"""Decoded images kept on disk, so that a data set is decoded once and not at every start."""

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

import numpy as np

from metajax.episodes.images import LabelledImages

_FORMAT = 1  # counts up when the layout of the files changes, so that old ones are not read


def cache_dir() -> Path:
    """The folder: $METAJAX_CACHE_DIR, else $XDG_CACHE_HOME/metajax, else ~/.cache/metajax."""
    if chosen := os.environ.get("METAJAX_CACHE_DIR"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metajax"


def cached(key: str, build: Callable[[], LabelledImages]) -> LabelledImages:
    """Returns what `build` made for this key, from disk if it was made before.

    Files are written whole and then renamed, so any number of processes may ask at once; each finds
    a complete file or builds its own. A broken file is built again. Where the folder cannot be
    written, images are built every time, after one warning. Nothing is ever removed from the
    folder: it may be deleted whenever nobody needs the space less than the time.

    Args:
      key: everything the images depend on: data set, version, size and so on.
      build: makes the images.

    Returns:
      The images; the same whether read or built.
    """
    path = _path(key)
    if (images := _read(path, key)) is None:
        images = build()
        _write(path, key, images)
    return images


def _path(key: str) -> Path:
    digest = hashlib.sha256(f"{_FORMAT} {key}".encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", key)[:40].strip("-.")
    return cache_dir() / f"{readable}-{digest[:16]}.npz"


def _read(path: Path, key: str) -> LabelledImages | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            images = LabelledImages(
                images=arrays["images"],
                counts=arrays["counts"],
                names=tuple(text["names"]),
                groups=tuple(text["groups"]),
            )
    except Exception:  # A cache is a convenience: whatever ails the file, the remedy is to rebuild.
        return None
    return images if text.get("key") == key and _is_whole(images) else None


def _is_whole(images: LabelledImages) -> bool:
    classes = len(images.names)
    return (
        images.images.dtype == np.uint8
        and images.images.ndim == 4
        and images.counts.shape == (classes,)
        and images.counts.sum() == len(images.images)
        and len(images.groups) == classes
    )


def _write(path: Path, key: str, images: LabelledImages) -> None:
    text = json.dumps({"key": key, "names": images.names, "groups": images.groups})
    arrays = {
        "images": images.images,
        "counts": images.counts,
        "text": np.frombuffer(text.encode(), np.uint8),
    }
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(partial, path)
    except OSError as error:
        _warn_unwritable(str(path.parent), error.strerror or str(error))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # Gone already unless something went wrong.


@functools.cache
def _warn_unwritable(folder: str, error: str) -> None:
    """Warns once a folder, for the functools cache remembers it."""
    warnings.warn(
        f"decoded images cannot be kept in {folder} ({error}): they will be decoded at every start;"
        " set METAJAX_CACHE_DIR to a folder that can be written.",
        stacklevel=3,
    )
