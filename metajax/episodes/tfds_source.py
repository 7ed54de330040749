"""Any image classification data set that TensorFlow Datasets has prepared, read without TensorFlow.

Only the files on disk are looked at: the newest version under <data_dir>/<name>[/<config>]. Nothing
is downloaded; where the files are missing, the error says how to make them.
"""

import difflib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from metajax.episodes import decoding
from metajax.episodes.images import DataError, LabelledImages

DEFAULT_SPLITS = ("train", "validation", "test")

_BATCH = 4096  # records in memory at once
_NAME = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    grayscale: bool | None = None,
    splits: Sequence[str] | None = None,
    group: str | None = None,
) -> LabelledImages:
    """Decodes a prepared data set.

    Args:
      name: as TFDS has it, `name`, `name/config` or `name:1.0.0`.
      data_dir: the folder that holds the data sets; None is $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      image_size: height and width; None keeps the size if the data set declares one square size of
        at most 84, and makes images 84 otherwise; `decoding.decode_into` says how they are fitted.
      grayscale: one channel or three; None gives as many as the data set declares.
      splits: which of TFDS's splits to put together, None for those called train, validation and
        test. These are splits of images; load them one by one where they also part the classes.
      group: the feature that says what a class belongs to, e.g. alphabet.

    Returns:
      The images, classes in TFDS's order; images without a label are left out.

    Raises:
      DataError: the data set is unknown, not prepared, broken, or not one of labelled images.
    """
    folder = find(name, data_dir=data_dir)
    builder = _builder(folder, prepare_command(name, _root(data_dir)))
    image_key, label_key = _keys(builder.info, group)
    features = builder.info.features
    names = features[label_key].names
    width, height, channels = _declared(features[image_key])
    wanted = _splits(builder.info, splits)
    images = decoding.allocate(
        sum(builder.info.splits[split].num_examples for split in wanted),
        image_size=image_size or decoding.native_size([(width, height)]),
        channels=1 if (channels == 1 if grayscale is None else grayscale) else 3,
    )
    keys = [label_key] if group is None else [label_key, group]
    labels = _decode(images, builder, wanted, image_key, keys)  # [keys, M]
    labelled = labels[0] >= 0
    if not labelled.all():
        images, labels = images[labelled], labels[:, labelled]
    groups = None
    if group is not None:
        group_of_class = np.zeros(len(names), np.int64)
        group_of_class[labels[0]] = labels[1]
        groups = [features[group].int2str(index) for index in group_of_class.tolist()]
    return LabelledImages.from_labels(images, labels[0], names, groups)


def find(name: str, *, data_dir: str | Path | None = None, known: Iterable[str] = ()) -> Path:
    """Finds the folder of a data set's newest version, or of the one named.

    Args:
      name: as for `load`.
      data_dir: as for `load`.
      known: further names to suggest if this one is unknown.

    Raises:
      DataError: it is not there; says how to prepare it, or which names are near.
    """
    root = _root(data_dir)
    parsed = _NAME.fullmatch(name)
    if parsed is None:
        raise DataError(f"{name!r} is not a data set's name{_suggest(name, root, known)}")
    base = root / parsed["path"]
    versions = {path.parent.name: path.parent for path in base.glob("*/dataset_info.json")}
    versions = {v: path for v, path in versions.items() if _VERSION.fullmatch(v)}
    if parsed["version"] in versions:
        return versions[parsed["version"]]
    if versions and parsed["version"] is None:
        return max(versions.values(), key=lambda path: [int(n) for n in path.name.split(".")])
    if versions:
        raise DataError(f"{name}: only versions {sorted(versions)} are prepared under {base}")
    configs = sorted({p.parent.parent.name for p in base.glob("*/*/dataset_info.json")})
    if len(configs) == 1:
        version = f":{parsed['version']}" if parsed["version"] else ""
        return find(f"{parsed['path']}/{configs[0]}{version}", data_dir=root)
    if configs:
        raise DataError(
            f"{name} is prepared in several configs; choose {name}/ and one of {configs}"
        )
    raise DataError(_missing(name, root, known))


def fingerprint(folder: Path) -> str:
    """Digest of a prepared data set: its metadata, and its files' names and sizes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.suffix in (".json", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare_command(name: str, root: Path) -> str:
    """The commands that download and prepare a data set; they need TensorFlow, reading does not."""
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
    return Path(root).expanduser()


def _tfds():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "reading TFDS data sets needs tensorflow-datasets: pip install 'metajax[data]'"
        ) from error
    return tensorflow_datasets


def _builder(folder: Path, prepare: str):
    """Opens the files, whatever made them: the code of the data set is not needed."""
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        formats = {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder}/dataset_info.json is broken: {error}") from error
    if "array_record" not in formats:
        raise DataError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, and only array_record is read"
            f" without TensorFlow. Move that folder away, then prepare it again:\n{prepare}"
        )
    tfds = _tfds()
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # The many ways in which metadata can be broken.
        raise DataError(f"{folder} cannot be opened: {error}; prepare it again") from error


def _keys(info, group: str | None) -> tuple[str, str]:
    """Names of the image and of the label feature."""
    tfds = _tfds()
    features = info.features
    supervised = info.supervised_keys or ("image", "label")
    image_key, label_key = supervised[:2]
    listing = {key: type(features[key]).__name__ for key in sorted(features)}
    if not all(isinstance(key, str) and key in features for key in (image_key, label_key)):
        raise DataError(f"{info.full_name} has no image and label; its features are {listing}")
    image, label = features[image_key], features[label_key]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise DataError(f"{info.full_name}: {image_key} is no 8-bit image; features are {listing}")
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
        raise DataError(f"{info.full_name}: {label_key} is no class label; features are {listing}")
    if group is not None and not (
        group in features and isinstance(features[group], tfds.features.ClassLabel)
    ):
        raise DataError(f"{info.full_name} has no class label {group}; features are {listing}")
    return image_key, label_key


def _declared(image) -> tuple[int, int, int | None]:
    """Width, height and channels that the data set declares; a free size counts as 0."""
    height, width, channels = image.shape
    return width or 0, height or 0, channels


def _splits(info, splits: Sequence[str] | None) -> list[str]:
    present = list(info.splits)
    if splits is None:
        return [split for split in DEFAULT_SPLITS if split in present] or present
    if unknown := [split for split in splits if split not in present]:
        raise DataError(f"{info.full_name} has no splits {unknown}; it has {present}")
    return list(splits)


def _decode(
    images: np.ndarray, builder, splits: Sequence[str], image_key: str, label_keys: Sequence[str]
) -> np.ndarray:
    """Fills images [M, S, S, C] and returns labels [keys, M]."""
    labels = np.empty([len(label_keys), len(images)], np.int64)
    start = 0
    for where, records in _batches(builder, splits):
        part = slice(start, start + len(records))
        decoding.decode_into(images[part], [record[image_key] for record in records], where)
        labels[:, part] = [[record[key] for record in records] for key in label_keys]
        start = part.stop
    return labels


def _batches(builder, splits: Sequence[str]):
    """Yields (names for errors, records with images still encoded)."""
    tfds = _tfds()
    # TFDS's own decoding of one-bit PNG gives 0 and 1 with Pillow but 0 and 255 with OpenCV.
    keep = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    for split in splits:
        try:
            source = builder.as_data_source(split=split, decoders=keep)
            for start in range(0, len(source), _BATCH):
                indices = range(start, min(start + _BATCH, len(source)))
                records = source.__getitems__(list(indices))
                yield [f"{builder.data_dir}: image {i} of {split}" for i in indices], records
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f"{builder.data_dir}: the files of {split} are broken or missing ({error}); remove"
                " that folder and prepare the data set again"
            ) from error


def _missing(name: str, root: Path, known: Iterable[str]) -> str:
    base = name.partition(":")[0].partition("/")[0]
    if base in _registered() or base in known:
        return (
            f"the data set {name} is not prepared under {root}. Prepare it once, with a network and"
            " TensorFlow (reading needs neither), or point data_dir to where it is:\n"
            f"{prepare_command(name, root)}"
        )
    return f"{name!r} is no known data set{_suggest(base, root, known)}"


def _suggest(name: str, root: Path, known: Iterable[str]) -> str:
    prepared = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
    candidates = sorted({*known, *prepared, *_registered()})
    near = difflib.get_close_matches(name, candidates, n=4)
    return (
        f"; did you mean {', '.join(near)}?" if near else f", nor is anything near it under {root}"
    )


def _registered() -> list[str]:
    try:
        import tensorflow_datasets
    except ImportError:
        return []
    return tensorflow_datasets.list_builders(with_community_datasets=False)
