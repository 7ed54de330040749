"""Data sets for image classification that TensorFlow Datasets has prepared, read without TensorFlow.

`folders` finds them; nothing is downloaded.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data import strict_json
from metajax.data.files import decoding
from metajax.data.images import Arrangement, LabelledImages, arrange
from metajax.data.tfds import folders as tfds_folders
from metajax.data.workers import Results, cores
from metajax.errors import DataError
from metajax.names import listed, shown

DEFAULT_SPLITS = ("train", "validation", "test")
"""TFDS's splits that are joined by default."""

BATCH = 4096
"""Number of records in memory at once."""
_BATCHES_A_WORKER = 8  # fewest batches for which starting a worker pays
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # keys in TFDS's two formats
Rows = Sequence[int] | np.ndarray  # numbers of records
_TEMPLATE = re.compile(r"([^{}]|\{\w+\})*")


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a prepared data set by number, one split after another.

    Pickled, they are names alone; each process opens the files when it first reads.

    Attributes:
      folder: Folder of the data set's version.
      splits: TFDS's names of the splits.
      lengths: Number of records per split.
      image: Name of the feature that holds the image.
      labels: Names of the features that hold the class and, if any, its group.
    """

    folder: Path
    splits: tuple[str, ...]
    lengths: tuple[int, ...]
    image: str
    labels: tuple[str, ...]

    def __len__(self) -> int:
        """Counts the records of all splits."""
        return sum(self.lengths)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields alone, because open files cannot be pickled."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def read(self, rows: Rows) -> list[Mapping[str, Any]]:
        """Reads records, and leaves their images encoded.

        Args:
          rows: Numbers of the records, [n] int.

        Returns:
          Features of each record by name.

        Raises:
          DataError: If the files are broken or missing.
        """
        split, number = self._places(rows)
        found: list = [None] * len(split)
        for index in np.unique(split):
            where = np.flatnonzero(split == index)
            records = self._read(index, number[where].tolist())
            for place, record in zip(where, records, strict=True):
                found[place] = record
        return found

    def encoded(self, rows: Rows) -> tuple[list[bytes], list[str]]:
        """Reads encoded images.

        Args:
          rows: Numbers of the records, [n] int.

        Returns:
          Contents of the image files, and their names in errors.
        """
        return [record[self.image] for record in self.read(rows)], self._names(rows)

    def labels_of_batch(self, index: int) -> np.ndarray:
        """Reads the labels of a batch of records.

        Args:
          index: Number of the batch, of BATCH records each.

        Returns:
          Labels [features, n] int64.
        """
        start = index * BATCH
        return self._labels(self.read(range(start, min(start + BATCH, len(self)))))

    def decode(self, images: np.ndarray, form: decoding.Form) -> np.ndarray:
        """Decodes the images of all records.

        Args:
          images: Array [M, S, S, C] uint8 that the pixels are written to.
          form: Way to decode files.

        Returns:
          Labels of the records, [features, M] int64.
        """
        labels = [np.zeros((len(self.labels), 0), np.int64)]
        for start in range(0, len(self), BATCH):
            part = images[start : start + BATCH]
            rows = range(start, start + len(part))
            records = self.read(rows)
            encoded = [record[self.image] for record in records]
            decoding.decode_into(part, encoded, self._names(rows), form=form)
            labels.append(self._labels(records))
        return np.concatenate(labels, axis=1)

    def _labels(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Collects the labels [features, n] of records."""
        return np.array([[record[key] for record in records] for key in self.labels], np.int64)

    def _places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Finds the split of each record, and its number there."""
        numbers, ends = np.asarray(rows, np.int64), np.cumsum(self.lengths)
        split = np.searchsorted(ends, numbers, side="right")
        return split, numbers - (ends - self.lengths)[split]

    def _names(self, rows: Rows) -> list[str]:
        """Names records in errors."""
        places = zip(*self._places(rows), strict=True)
        return [
            f"{self.folder}: image {number} of {self.splits[split]}" for split, number in places
        ]

    def _read(self, split: int, numbers: list[int]) -> Sequence[Mapping[str, Any]]:
        """Reads records of one split; raises DataError if its files are broken or missing."""
        try:
            if split not in self._opened:
                self._opened[split] = self._builder.as_data_source(
                    split=self.splits[split], decoders=self._decoders
                )
            return self._opened[split].__getitems__(numbers)
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f"{shown(self.folder)}: the files of {shown(self.splits[split])} are broken or missing"
                f" ({shown(error)}); remove that folder and prepare the data set again"
            ) from error

    @functools.cached_property
    def _builder(self) -> Any:
        """Opened data set."""
        return open_builder(self.folder, prepare="")

    @functools.cached_property
    def _opened(self) -> dict[int, Any]:
        """Opened files by split."""
        return {}

    @functools.cached_property
    def _decoders(self) -> dict[str, Any]:
        """TFDS's decoders, which leave images encoded."""
        # TFDS decodes one-bit PNG to 0 and 1 with Pillow, and to 0 and 255 with OpenCV.
        tfds = _tfds()
        return {
            key: tfds.decode.SkipDecoding()
            for key, feature in self._builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }


class Prepared(NamedTuple):
    """Metadata of a prepared data set.

    Attributes:
      records: Records, none of which is read yet.
      shape: Height, width and channels of its decoded images.
      names: Name of each class.
      groups: Names of the groups of classes; None without such a feature.
    """

    records: Records
    shape: tuple[int, int, int]
    names: list[str]
    groups: list[str] | None

    @property
    def size(self) -> int:
        """Bytes of all decoded images."""
        return len(self.records) * math.prod(self.shape)

    def arrange(self, labels: np.ndarray) -> Arrangement:
        """Finds the order that sorts the records by class.

        Args:
          labels: Labels [features, M], as `Records` reads them.

        Returns:
          The order, and the sizes, names and groups of the classes.

        Raises:
          DataError: If a label has no name.
        """
        groups = None
        for found, known in zip(labels, (self.names, self.groups or ()), strict=False):
            if found.max(initial=-1) >= len(known):
                raise DataError(
                    f"{shown(self.records.folder)} has a label {found.max()}, and names for {len(known)}"
                    " classes or groups only; prepare the data set again"
                )
        if self.groups is not None:
            labelled = labels[0] >= 0
            group_of_class = np.zeros(len(self.names), np.int64)
            group_of_class[labels[0, labelled]] = labels[1, labelled]
            groups = [self.groups[index] for index in group_of_class]
        return arrange(labels[0], self.names, groups)


def arrangement(found: Prepared, *, workers: int | None = None) -> Arrangement:
    """Finds the order that sorts the records of a data set by class; reads all, and decodes no image.

    Args:
      found: Data set.
      workers: Number of processes that read; None is one per core, if there are enough records.

    Returns:
      The order, and the sizes, names and groups of the classes.

    Raises:
      DataError: If the files are broken or missing.
    """
    batches = -(-len(found.records) // BATCH)
    if workers is None:
        workers = min(cores(), batches // _BATCHES_A_WORKER)
    with Results(found.records.labels_of_batch, batches, workers=workers) as labels:
        return found.arrange(np.concatenate(list(labels), axis=1))


def load(
    name: str,
    *,
    form: decoding.Form = decoding.PLAIN,
    **options,
) -> LabelledImages:
    """Decodes a prepared data set.

    Args:
      name: TFDS's name, `name`, `name/config` or `name:1.0.0`.
      form: Way to decode files.
      **options: Options of `prepared`.

    Returns:
      The images, with classes in TFDS's order; images without a label are left out.

    Raises:
      DataError: If the data set is unknown, not prepared, broken, or not one of labeled images.
    """
    found = prepared(name, **options)
    side, _, channels = found.shape
    images = decoding.allocate(len(found.records), image_size=side, channels=channels)
    arranged = found.arrange(found.records.decode(images, form))
    pixels = np.ascontiguousarray(images[arranged.order])
    return LabelledImages(pixels, arranged.counts, arranged.names, arranged.groups)


def prepared(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    grayscale: bool | None = None,
    splits: Sequence[str] | None = None,
    group: str | None = None,
) -> Prepared:
    """Opens a prepared data set, and reads none of its records.

    Args:
      name: TFDS's name, `name`, `name/config` or `name:1.0.0`.
      data_dir: Folder of TFDS data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      image_size: Height and width in pixels; None keeps the size if the data set declares one square size of
        at most 84, and is 84 otherwise. `decoding.decode_into` describes the fit.
      grayscale: Whether images have one channel rather than three; None follows the data set.
      splits: TFDS's splits to join; None for those named train, validation and test. These split images; load
        them one by one if they also split the classes.
      group: Name of the feature that groups classes, such as alphabet.

    Returns:
      The metadata.

    Raises:
      DataError: If the data set is unknown, not prepared, broken, or not one of labeled images.
    """
    folder = tfds_folders.find(name, data_dir=data_dir)
    info = open_builder(folder, tfds_folders.prepare_command(name, data_dir)).info
    image_key, label_key = _keys(info, group)
    width, height, channels = _declared(info.features[image_key])
    wanted = _splits(info, splits)
    records = Records(
        folder=folder,
        splits=tuple(wanted),
        lengths=tuple(info.splits[split].num_examples for split in wanted),
        image=image_key,
        labels=(label_key,) if group is None else (label_key, group),
    )
    side = image_size or decoding.native_size([(width, height)])
    grayscale = channels == 1 if grayscale is None else grayscale
    return Prepared(
        records=records,
        shape=(side, side, 1 if grayscale else 3),
        names=info.features[label_key].names,
        groups=None if group is None else info.features[group].names,
    )


def _tfds() -> Any:
    """Imports TensorFlow Datasets."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "reading TFDS data sets needs tensorflow-datasets: pip install 'metajax[data]'"
        ) from error
    return tensorflow_datasets


def open_builder(folder: Path, prepare: str) -> Any:
    """Opens a prepared data set without its own code, which is never run.

    Args:
      folder: Folder of the version.
      prepare: Command that prepares the data set, for the error.

    Returns:
      TFDS's builder, whose `info` has the features and splits.

    Raises:
      DataError: If the files are not of ArrayRecord, broken, or name foreign features.
      ImportError: If tensorflow-datasets is missing.
    """
    info, features = (
        _description(folder / name) for name in ("dataset_info.json", "features.json")
    )
    formats = {str(info.get("fileFormat", "tfrecord"))}
    formats |= set(map(str, info.get("alternativeFileFormats", ())))
    if "array_record" not in formats:
        raise DataError(
            f"{shown(folder)} is prepared as {shown(', '.join(sorted(formats)))}, and only array_record is"
            f" read without TensorFlow. Move that folder away, then prepare it again:\n{prepare}"
        )
    tfds = _tfds()
    _check_classes(features, _feature_classes(tfds), file=f"{shown(folder)}/features.json")
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # broken metadata raise exceptions of many types
        raise DataError(
            f"{shown(folder)} cannot be opened: {shown(error)}; prepare it again"
        ) from error


def _description(path: Path) -> dict[str, Any]:
    """Reads a file of metadata, and checks it for what would harm TFDS; raises DataError."""
    try:
        found = strict_json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        if not isinstance(found.get("alternativeFileFormats", []), list):
            raise ValueError("alternativeFileFormats is no list")
        for template in _values(found, ("filepathTemplate", "filepath_template")):
            # TFDS formats the template, and a width in it could be of gigabytes.
            if not _TEMPLATE.fullmatch(template):
                raise ValueError(f"filepathTemplate is {shown(template)}")
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} is broken: {shown(error)}") from error
    return found


def _check_classes(features: Any, known: Collection[str], *, file: str) -> None:
    """Raises DataError if a class of features is unknown, because TFDS would import its module."""
    if foreign := sorted(set(_values(features, _CLASS_KEYS)) - set(known)):
        raise DataError(
            f"{file} names {listed(foreign)}, which tensorflow_datasets does not have, and code that data"
            " name is not run; prepare the data set with features of tensorflow_datasets, or import that"
            " module before, if you trust it"
        )


def _values(description: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yields the strings under some keys at any depth, also in JSON inside a string."""
    left = [description]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in keys if isinstance(value.get(key), str))
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            left.append(_embedded(value))


def _embedded(text: str) -> Any:
    """Parses a string as JSON, and keeps repeated keys; returns None if it is not JSON."""
    try:
        # TFDS reads the last of equal keys, which is among these.
        return json.loads(text, object_pairs_hook=lambda pairs: [{k: v} for k, v in pairs])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        return None


def _feature_classes(tfds: Any) -> set[str]:
    """Lists the names by which TFDS finds imported features, its own and the program's."""
    found, left = set(), [tfds.features.FeatureConnector]
    while left:
        feature = left.pop()
        left += feature.__subclasses__()
        found |= {f"{feature.__module__}.{feature.__name__}", *vars(feature).get("ALIASES", ())}
    return found


def _keys(info: Any, group: str | None) -> tuple[str, str]:
    """Finds the names of the image and of the label feature; raises DataError if there are none."""
    tfds = _tfds()
    features = info.features
    supervised = info.supervised_keys or ("image", "label")
    image_key, label_key = supervised[:2]
    name = shown(info.full_name)
    found = (
        f"its features are {shown({key: type(features[key]).__name__ for key in sorted(features)})}"
    )
    if not all(isinstance(key, str) and key in features for key in (image_key, label_key)):
        raise DataError(f"{name} has no image and label; {found}")
    image, label = features[image_key], features[label_key]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise DataError(f"{name}: {shown(image_key)} is no 8-bit image; {found}")
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
        raise DataError(f"{name}: {shown(label_key)} is no class label; {found}")
    if group is not None and not (
        group in features and isinstance(features[group], tfds.features.ClassLabel)
    ):
        raise DataError(f"{name} has no class label {group}; {found}")
    return image_key, label_key


def _declared(image: Any) -> tuple[int, int, int | None]:
    """Reads the declared width, height and channels of an image feature; a free size is 0."""
    height, width, channels = image.shape
    return width or 0, height or 0, channels


def _splits(info: Any, splits: Sequence[str] | None) -> list[str]:
    """Chooses TFDS's splits; raises DataError for unknown ones."""
    present = list(info.splits)
    if splits is None:
        return [split for split in DEFAULT_SPLITS if split in present] or present
    if unknown := [split for split in splits if split not in present]:
        raise DataError(
            f"{shown(info.full_name)} has no splits {listed(unknown)}; it has {listed(present)}"
        )
    return list(splits)
