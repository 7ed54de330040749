"""Folders of data sets that TensorFlow Datasets has prepared.

The newest version under <data_dir>/<name>[/<config>] is found from the files on disk alone; the data set is
not opened. If it is missing, the error explains how to make it.
"""

import difflib
import hashlib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from metajax.data import strict_json
from metajax.errors import DataError
from metajax.names import LIMIT, listed, shown

_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def find(name: str, *, data_dir: str | Path | None = None, known: Iterable[str] = ()) -> Path:
    """Finds the folder of the newest version of a data set, or of a given version.

    Args:
      name: TFDS's name, `name`, `name/config` or `name:1.0.0`.
      data_dir: Folder of TFDS data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      known: Further names to suggest if this one is unknown.

    Returns:
      The folder of the version.

    Raises:
      DataError: If the data set is not there. The message has the command that prepares it, or similar names.
    """
    root = _root(data_dir)
    parsed = _NAME.fullmatch(name)
    if parsed is None:
        raise DataError(f"'{shown(name)}' is not a data set's name{_suggest(name, root, known)}")
    base = root / parsed["path"]
    versions = {path.parent.name: path.parent for path in base.glob("*/dataset_info.json")}
    versions = {v: path for v, path in versions.items() if _VERSION.fullmatch(v)}
    if parsed["version"] in versions:
        return versions[parsed["version"]]
    if versions and parsed["version"] is None:
        return max(versions.values(), key=lambda path: [int(n) for n in path.name.split(".")])
    if versions:
        raise DataError(
            f"{name}: only versions {listed(sorted(versions))} are prepared under {shown(base)}; use one"
            " of these"
        )
    configs = sorted({p.parent.parent.name for p in base.glob("*/*/dataset_info.json")})
    if len(configs) == 1:
        version = f":{parsed['version']}" if parsed["version"] else ""
        return find(f"{parsed['path']}/{configs[0]}{version}", data_dir=root)
    if configs:
        raise DataError(
            f"{name} is prepared in several configs; use {name}/ and one of {listed(configs)}"
        )
    raise DataError(_missing(name, root, known))


def count_images(folder: Path) -> int:
    """Counts the records of all splits of a data set.

    Args:
      folder: Folder of the version.

    Returns:
      Number of records; 0 if its metadata lack it.
    """
    try:
        info = strict_json.loads((folder / "dataset_info.json").read_bytes())
        return sum(int(length) for split in info["splits"] for length in split["shardLengths"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def image_shape(folder: Path) -> tuple[int, int, int] | None:
    """Reads the shape of images that a data set declares.

    Args:
      folder: Folder of the version.

    Returns:
      Height, width and channels, with 0 for a free one; None if its metadata lack them, or an example has
      several images.
    """
    try:
        found = strict_json.loads((folder / "features.json").read_bytes())
        features = found["featuresDict"]["features"]
        (image,) = [feature["image"] for feature in features.values() if "image" in feature]
        height, width, channels = map(int, image["shape"]["dimensions"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return max(height, 0), max(width, 0), max(channels, 0)


def fingerprint(folder: Path) -> str:
    """Hashes the metadata of a data set, and the names and sizes of its files.

    Args:
      folder: Folder of the version.

    Returns:
      SHA-256 as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(os.fsencode(path.name) + f" {path.stat().st_size}\n".encode())
        if path.suffix in (".json", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare_command(name: str, data_dir: str | Path | None) -> str:
    """Writes the commands that download and prepare a data set.

    They need TensorFlow; reading does not.

    Args:
      name: TFDS's name of the data set.
      data_dir: Folder of TFDS data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      A line for a shell.
    """
    root = _root(data_dir)
    code = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={str(root)!r},"
        " file_format='array_record').download_and_prepare()"
    )
    quoted = shlex.quote(code) if set(code) & set('"$`\\') else f'"{code}"'
    # The `tfds` command would also need apache-beam and mlcroissant.
    return (
        "  python -m pip install tensorflow tensorflow-datasets importlib_resources && "
        f"python -c {quoted}"
    )


def _root(data_dir: str | Path | None) -> Path:
    """Finds the folder of TFDS data sets."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(root))


def _missing(name: str, root: Path, known: Iterable[str]) -> str:
    """Explains that a data set is not prepared, or that its name is unknown."""
    base = name.partition(":")[0].partition("/")[0]
    if base in _registered() or base in known:
        return (
            f"the data set {name} is not prepared under {shown(root)}. Prepare it once, with a network and"
            " TensorFlow (reading needs neither), or point data_dir to where it is:\n"
            f"{prepare_command(name, root)}"
        )
    return f"'{shown(name)}' is no known data set{_suggest(base, root, known)}"


def _suggest(name: str, root: Path, known: Iterable[str]) -> str:
    """Lists names similar to an unknown one."""
    prepared = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
    candidates = sorted({*known, *prepared, *_registered()})
    near = difflib.get_close_matches(name[:LIMIT], candidates, n=4)
    if near:
        return f"; did you mean {', '.join(map(shown, near))}?"
    return f", nor is anything near it under {shown(root)}"


def _registered() -> list[str]:
    """Lists the names that TFDS knows; none if it is not installed."""
    try:
        import tensorflow_datasets
    except ImportError:
        return []
    return tensorflow_datasets.list_builders(with_community_datasets=False)
