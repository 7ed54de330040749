"""What a run keeps of the data it was trained on, so that it can be tested where those are not at hand."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.runtime.files import plain, write_json
from metajax.data import strict_json
from metajax.data.decoding import FITS, PLAIN, Form
from metajax.data.images import LabelledImages
from metajax.data.sources import Splits
from metajax.data.streamed import Images

_NAME = "data.json"


@dataclasses.dataclass(frozen=True)
class RecordedImages:
    """Everything known of labelled images but their pixels.

    Attributes:
      names: Unique class names.
      counts: [classes] int32, number of images per class, in the order of the names.
      shape: H, W and C.
      sha256: What `LabelledImages.fingerprint` returned.
      levels: [C, 256] int64, what `LabelledImages.histogram` returned.
      class_sha256: Digest of the images of each class, whatever their order; empty where they stay on disk.
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
        """Returns that of the images."""
        return self.sha256

    def histogram(self) -> np.ndarray:
        """Returns that of the images."""
        return self.levels


class Record(NamedTuple):
    """Training and validation data without their pixels; the rest is as of `sources.Splits`."""

    train: RecordedImages
    valid: RecordedImages
    description: str
    notes: tuple[str, ...] = ()
    form: Form = PLAIN


def record(images: Splits) -> Record:
    """Describes the data of a training; reads every image that is in memory once."""
    splits = _recorded(images.train), _recorded(images.valid)
    return Record(*splits, images.description, images.notes, images.form)


def write(workdir: Path, kept: Record) -> None:
    """Writes a record into a work directory."""
    splits = {name: dataclasses.asdict(getattr(kept, name)) for name in ("train", "valid")}
    words = {"description": kept.description, "notes": kept.notes, "form": kept.form._asdict()}
    found = plain({**splits, **words})
    write_json(workdir / _NAME, {**found, "sha256": _signature(found)})


def read(workdir: Path) -> Record | None:
    """Reads the record of a work directory; None where there is none that can be read."""
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
    """Hashes a record but its own hash: pixel values decide how every image is normalised."""
    signed = {name: value for name, value in found.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()


def class_digests(images: Images) -> tuple[str, ...]:
    """Hashes the images of each class, whatever their order; nothing of those that stay on disk."""
    if not isinstance(images, LabelledImages):
        return ()
    ends = np.cumsum(images.counts)
    parts = np.split(images.images, ends[:-1])
    return tuple(_digest(part) for part in parts)


def _digest(images: np.ndarray) -> str:
    each = sorted(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
    return hashlib.sha256(b"".join(each)).hexdigest()


def _recorded(images: Images) -> RecordedImages:
    return RecordedImages(
        names=tuple(images.names),
        counts=np.asarray(images.counts, np.int32),
        shape=tuple(images.shape),
        sha256=images.fingerprint(),
        levels=images.histogram(),
        class_sha256=class_digests(images),
    )


def _parsed(found: Mapping[str, Any]) -> RecordedImages:
    """Checks what JSON holds; raises ValueError, KeyError or TypeError where it is no record."""
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
        raise ValueError("classes, their images and pixel values do not fit together")
    return split


def _form(found: Mapping[str, Any]) -> Form:
    """Checks what JSON holds of a form; raises ValueError or TypeError where it is none."""
    form = Form(**found)
    bits = form.bits is None or type(form.bits) is int
    if form.fit not in FITS or not bits or type(form.invert) is not bool:
        raise ValueError(f"{form} is no form of images")
    return form
