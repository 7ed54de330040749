"""The data sets that TensorFlow Datasets has prepared, found by their folders; none is opened.

Only the files on disk are looked at: the newest version under <data_dir>/<name>[/<config>]. Where they are
missing, the error says how to make them.
"""

import difflib
import hashlib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from metajax.data import strict_json
from metajax.data.images import DataError
from metajax.names import LIMIT, listed, shown

_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def find(name: str, *, data_dir: str | Path | None = None, known: Iterable[str] = ()) -> Path:
    """Finds the folder of a data set's newest version, or of the one named.

    Args:
      name: as TFDS has it, `name`, `name/config` or `name:1.0.0`.
      data_dir: the folder that holds the data sets; None is $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      known: further names to suggest if this one is unknown.

    Raises:
      DataError: it is not there; says how to prepare it, or which names are near.
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
            f"{name}: only versions {listed(sorted(versions))} are prepared under {shown(base)}"
        )
    configs = sorted({p.parent.parent.name for p in base.glob("*/*/dataset_info.json")})
    if len(configs) == 1:
        version = f":{parsed['version']}" if parsed["version"] else ""
        return find(f"{parsed['path']}/{configs[0]}{version}", data_dir=root)
    if configs:
        raise DataError(
            f"{name} is prepared in several configs; choose {name}/ and one of {listed(configs)}"
        )
    raise DataError(_missing(name, root, known))


def count_images(folder: Path) -> int:
    """How many records a data set holds, of all its splits; 0 where its metadata do not tell."""
    try:
        info = strict_json.loads((folder / "dataset_info.json").read_bytes())
        return sum(int(length) for split in info["splits"] for length in split["shardLengths"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def image_shape(folder: Path) -> tuple[int, int, int] | None:
    """Height, width and channels that the images of a data set declare, a free one being 0.

    None where its metadata do not tell, or there is more than one image in an example.
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
    """Digest of a prepared data set: its metadata, and its files' names and sizes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(os.fsencode(path.name) + f" {path.stat().st_size}\n".encode())
        if path.suffix in (".json", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare_command(name: str, data_dir: str | Path | None) -> str:
    """The commands that download and prepare a data set; they need TensorFlow, reading does not."""
    root = _root(data_dir)
    code = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={str(root)!r},"
        " file_format='array_record').download_and_prepare()"
    )
    quoted = shlex.quote(code) if set(code) & set('"$`\\') else f'"{code}"'
    # The `tfds` command would need apache-beam and mlcroissant besides.
    return (
        "  python -m pip install tensorflow tensorflow-datasets importlib_resources && "
        f"python -c {quoted}"
    )


def _root(data_dir: str | Path | None) -> Path:
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(root))


def _missing(name: str, root: Path, known: Iterable[str]) -> str:
    base = name.partition(":")[0].partition("/")[0]
    if base in _registered() or base in known:
        return (
            f"the data set {name} is not prepared under {shown(root)}. Prepare it once, with a network and"
            " TensorFlow (reading needs neither), or point data_dir to where it is:\n"
            f"{prepare_command(name, root)}"
        )
    return f"'{shown(name)}' is no known data set{_suggest(base, root, known)}"


def _suggest(name: str, root: Path, known: Iterable[str]) -> str:
    prepared = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
    candidates = sorted({*known, *prepared, *_registered()})
    near = difflib.get_close_matches(name[:LIMIT], candidates, n=4)
    if near:
        return f"; did you mean {', '.join(map(shown, near))}?"
    return f", nor is anything near it under {shown(root)}"


def _registered() -> list[str]:
    try:
        import tensorflow_datasets
    except ImportError:
        return []
    return tensorflow_datasets.list_builders(with_community_datasets=False)
