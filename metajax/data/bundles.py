"""Bundles on disk: a folder with `model.json` and tensors in safetensors files, and no code of any kind."""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data import strict_json
from metajax.errors import DataError
from metajax.names import listed, shown

FORMAT = 1
"""Number of the layout; bundles of a later one are refused."""
DESCRIPTION = "model.json"
"""Name of the description, which is written last."""
LARGEST = 4 * 2**30
"""Most bytes of a file of tensors that is read."""

_FILE = re.compile(r"[a-z]{1,20}-[0-9a-f]{16}\.safetensors")
_LARGEST_DESCRIPTION = 64 * 2**20  # bytes


class BundleFiles(NamedTuple):
    """The content of a bundle.

    Attributes:
      description: Values that JSON can hold, by name.
      tensors: Arrays by name, by the name of their group, such as "meta".
    """

    description: dict[str, Any]
    tensors: dict[str, dict[str, np.ndarray]]


def write_bundle(
    folder: str | Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
) -> Path:
    """Writes a bundle, or replaces the one that is there.

    Files of tensors carry their hash in their name, and the description, which names them, is renamed into
    place last: a process killed at any moment leaves the old bundle or the new one.

    Args:
      folder: Folder of the bundle; it is made if it is not there.
      description: Values that JSON can hold, by name.
      tensors: Arrays by name, by the name of their group, of lower-case letters.

    Returns:
      The folder.

    Raises:
      DataError: If the folder cannot be written.
      ImportError: If safetensors is not installed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as root:
      ...     where = write_bundle(root, {"learner": "protonet"}, {"meta": {"w": np.ones(3)}})
      ...     found = read_bundle(where)
      >>> found.description["learner"], found.tensors["meta"]["w"].tolist()
      ('protonet', [1.0, 1.0, 1.0])
    """
    folder, packed = Path(folder), {}
    for group, arrays in tensors.items():
        content = _safetensors().save({name: np.array(a, order="C") for name, a in arrays.items()})
        digest = hashlib.sha256(content).hexdigest()
        packed[group] = (f"{group}-{digest[:16]}.safetensors", digest, content)
    files = {group: {"file": file, "sha256": digest} for group, (file, digest, _) in packed.items()}
    text = json.dumps({"format": FORMAT, **description, "tensors": files}, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, _, content in packed.values():
            _replace(folder / file, content)
        _replace(folder / DESCRIPTION, text.encode())
        _remove_others(folder, {file for file, _, _ in packed.values()})
    except OSError as error:
        raise DataError(
            f"the bundle {shown(folder)} cannot be written: {error.strerror}"
        ) from error
    return folder


def read_bundle(folder: str | Path) -> BundleFiles:
    """Reads a bundle, and checks its hashes before anything is made of it.

    Args:
      folder: Folder of the bundle.

    Returns:
      The description, and tensors by name.

    Raises:
      DataError: If it is no bundle, one of a later format, or damaged.
      ImportError: If safetensors is not installed.
    """
    folder = Path(folder)
    description = _description(folder)
    tensors = {}
    for group, entry in description["tensors"].items():
        tensors[group] = _tensors(folder, group, entry)
    return BundleFiles(description, tensors)


def write_file(path: str | Path, content: bytes) -> Path:
    """Writes a file whole, or leaves the old one.

    Args:
      path: File to write.
      content: Content of the file.

    Returns:
      The path.

    Raises:
      DataError: If it cannot be written.
    """
    path = Path(path).expanduser()
    try:
        _replace(path, content)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be written: {error.strerror}") from error
    return path


def is_bundle(folder: str | Path) -> bool:
    """Finds out whether a folder holds a bundle.

    Args:
      folder: Path of a folder.

    Returns:
      True if it has a description.
    """
    return os.path.isfile(Path(folder) / DESCRIPTION)


def _description(folder: Path) -> dict[str, Any]:
    """Reads and checks `model.json`."""
    path = folder / DESCRIPTION
    try:
        if path.stat().st_size > _LARGEST_DESCRIPTION:
            raise ValueError(f"it has more than {_LARGEST_DESCRIPTION:,} bytes")
        found = strict_json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or type(found.get("format")) is not int:
            raise ValueError("it has no number of a format")
    except FileNotFoundError:
        raise DataError(
            f"{shown(folder)} is no bundle: it has no {DESCRIPTION}. A run writes one into its work directory"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} is damaged: {shown(error)}") from error
    if found["format"] != FORMAT:
        raise DataError(
            f"{shown(folder)} is a bundle of format {found['format']}, and this metajax reads {FORMAT}; use "
            "the version that wrote it, or a newer one"
        )
    if not isinstance(found.get("tensors"), dict) or not found["tensors"]:
        raise DataError(f"{shown(path)} is damaged: it names no files of tensors")
    return found


def _tensors(folder: Path, group: str, entry: Any) -> dict[str, np.ndarray]:
    """Reads one file of tensors."""
    damaged = f"{shown(folder / DESCRIPTION)} is damaged"
    if not isinstance(entry, dict) or set(entry) != {"file", "sha256"}:
        raise DataError(f"{damaged}: the tensors {shown(group)} have no file and sha256")
    name = entry["file"]
    # A path would leave the folder.
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise DataError(f"{damaged}: {shown(name)} is no name of a file of tensors")
    path = folder / name
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{shown(path)} has more than {LARGEST:,} bytes; a bundle is smaller")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DataError(f"{shown(path)} is damaged: its content is not the one {DESCRIPTION} names")
    try:
        arrays = _safetensors().load(content)
    except Exception as error:  # the library's own types, for whatever is not a file of tensors
        raise DataError(f"{shown(path)} is no file of tensors: {shown(error)}") from error
    bad = [
        tensor
        for tensor, array in arrays.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if bad:
        raise DataError(f"{shown(path)} holds numbers that are not finite, in {listed(bad)}")
    return arrays


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole, or leaves the old one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Removes files of tensors that the description does not name any more."""
    for path in folder.iterdir():
        if _FILE.fullmatch(path.name) and path.name not in kept:
            with contextlib.suppress(OSError):
                path.unlink()


def _safetensors() -> Any:
    """Imports safetensors."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("bundles need safetensors: pip install 'metajax[deploy]'") from error
    return safetensors.numpy
