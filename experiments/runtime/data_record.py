"""A record of the training data without its pixels, so that a run can be tested without the data."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data import strict_json
from metajax.data.files.decoding import FITS, PLAIN, Form
from metajax.data.images import LabelledImages
from metajax.data.sources import Splits
from metajax.data.streamed import Images

from .files import plain, write_json

_NAME = "data.json"


@dataclasses.dataclass(frozen=True)
class RecordedImages:
    """Everything known of labelled images except their pixels.

    Attributes:
      names: Unique class names.
      counts: Number of images per class, int32 [N], in the order of the names.
      shape: Height, width and channels H, W, C.
      sha256: Value of `LabelledImages.fingerprint`.
      levels: Value of `LabelledImages.histogram`, int64 [C, 256].
      class_sha256: Digest of each class's images, independent of their order; empty for images left on disk.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    shape: tuple[int, int, int]
    sha256: str
    levels: np.ndarray
    class_sha256: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Number of images of all classes."""
        return int(self.counts.sum())

    def fingerprint(self) -> str:
        """Returns the recorded fingerprint of the images.

        Returns:
          A SHA-256 digest in hexadecimal digits.
        """
        return self.sha256

    def histogram(self) -> np.ndarray:
        """Returns the recorded histogram of the images.

        Returns:
          Counts of pixel values per channel, int64 [C, 256].
        """
        return self.levels


class Record(NamedTuple):
    """Training and validation data without pixels, with the other fields of `metajax.data.sources.Splits`.

    Attributes:
      train: Training images.
      valid: Validation images.
      description: Description of the data in words.
      notes: Remarks on how the images were read.
      form: Conversion of file pixels to data pixels: fit, bits per channel and polarity.
    """

    train: RecordedImages
    valid: RecordedImages
    description: str
    notes: tuple[str, ...] = ()
    form: Form = PLAIN


def record(images: Splits) -> Record:
    """Records the data of a training; reads every image in memory once.

    Args:
      images: Splits of the data.

    Returns:
      The record.
    """
    splits = _recorded(images.train), _recorded(images.valid)
    return Record(*splits, images.description, images.notes, images.form)


def write(workdir: Path, kept: Record) -> None:
    """Writes a record into a work directory.

    Args:
      workdir: Work directory.
      kept: Record of the training data.

    Raises:
      WriteError: If the disk does not accept it.
    """
    splits = {name: dataclasses.asdict(getattr(kept, name)) for name in ("train", "valid")}
    words = {"description": kept.description, "notes": kept.notes, "form": kept.form._asdict()}
    found = plain({**splits, **words})
    write_json(workdir / _NAME, {**found, "sha256": _signature(found)})


def read(workdir: Path) -> Record | None:
    """Reads the record of a work directory.

    Args:
      workdir: Work directory.

    Returns:
      The record; None if there is none, or it is damaged.
    """
    try:
        found = strict_json.loads((workdir / _NAME).read_text(encoding="utf-8"))
        # Earlier versions wrote no digest.
        if found.get("sha256", signature := _signature(found)) != signature:
            return None
        train, valid = (_parsed(found[name]) for name in ("train", "valid"))
        notes = tuple(map(str, found["notes"]))
        return Record(train, valid, str(found["description"]), notes, _form(found["form"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _signature(found: Mapping[str, Any]) -> str:
    """Hashes a record without its own hash: a changed histogram would change the normalization of images."""
    signed = {name: value for name, value in found.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()


def class_digests(images: Images) -> tuple[str, ...]:
    """Hashes the images of each class, independent of their order.

    Args:
      images: Images of a split.

    Returns:
      A digest per class; nothing for images left on disk.
    """
    if not isinstance(images, LabelledImages):
        return ()
    ends = np.cumsum(images.counts)
    parts = np.split(images.images, ends[:-1])
    return tuple(_digest(part) for part in parts)


def _digest(images: np.ndarray) -> str:
    """Hashes a class's images by the sorted digests of each."""
    each = sorted(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
    return hashlib.sha256(b"".join(each)).hexdigest()


def _recorded(images: Images) -> RecordedImages:
    """Records a split."""
    return RecordedImages(
        names=tuple(images.names),
        counts=np.asarray(images.counts, np.int32),
        shape=tuple(images.shape),
        sha256=images.fingerprint(),
        levels=images.histogram(),
        class_sha256=class_digests(images),
    )


def _parsed(found: Mapping[str, Any]) -> RecordedImages:
    """Converts a split from JSON; raises ValueError, KeyError or TypeError if it is not a valid record."""
    split = RecordedImages(
        names=tuple(map(str, found["names"])),
        counts=np.asarray(found["counts"], np.int32),
        shape=tuple(map(int, found["shape"])),
        sha256=str(found["sha256"]),
        levels=np.asarray(found["levels"], np.int64),
        class_sha256=tuple(map(str, found["class_sha256"])),
    )
    height, width, channels = split.shape
    pixels = split.num_images * height * width
    shapes = split.counts.shape == (len(split.names),) and split.levels.shape == (channels, 256)
    if not shapes or split.levels.min() < 0 or (split.levels.sum(1) != pixels).any():
        raise ValueError("classes, numbers of images and histograms do not fit together")
    return split


def _form(found: Mapping[str, Any]) -> Form:
    """Converts a form from JSON; raises ValueError or TypeError if it is not valid."""
    form = Form(**found)
    bits = form.bits is None or type(form.bits) is int
    if form.fit not in FITS or not bits or type(form.invert) is not bool:
        raise ValueError(f"{form} is not a form of images; see metajax.data.files.decoding.Form")
    return form
