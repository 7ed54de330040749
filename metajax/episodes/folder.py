"""Images in folders, one folder a class.

Two layouts are read, root/<class>/<image> and root/{train,valid,test}/<class>/<image>, where valid
may also be called val or validation. Images lie directly in the folder of their class.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.episodes import decoding
from metajax.episodes.images import DataError, LabelledImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

_SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
_GREY_MODES = ("1", "L", "LA")

Classes = dict[str, list[Path]]


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files by number; however many there are, they are pickled as two arrays.

    Attributes:
      root: the folder they are in.
      paths: [bytes] uint8, their paths below it, end to end.
      ends: [M] int64, where each path ends.
    """

    root: str
    paths: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, root: Path, files: Sequence[Path]) -> "Files":
        """Numbers files below a folder as they come."""
        names = [os.fsencode(file.relative_to(root)) for file in files]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(str(root), np.frombuffer(b"".join(names), np.uint8), ends)

    def encoded(self, rows: np.ndarray) -> tuple[list[Path], list[Path]]:
        """The files of numbers [n], and what to call them in errors."""
        starts, ends = np.where(rows > 0, self.ends[rows - 1], 0), self.ends[rows]
        names = [self.paths[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
        files = [Path(self.root, os.fsdecode(name)) for name in names]
        return files, files


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
      files: sorted by class, then by name.
      counts: [classes] int32, how many each class has.
      names: of the classes.
    """

    files: list[Path]
    counts: np.ndarray
    names: tuple[str, ...]


def load(
    root: str | Path, *, image_size: int | None = None, grayscale: bool | None = None
) -> LabelledImages:
    """Decodes a folder of images.

    See `decoding.decode_into` for how images are fitted. Where a class has images in more than one
    of train, valid and test, they are put together.

    Args:
      root: the folder.
      image_size: height and width; None keeps the size if all images are squares of one size of at
        most 84, and makes them 84 otherwise.
      grayscale: one channel or three; None gives one if all files are grey.

    Returns:
      The images, classes and files sorted by name.

    Raises:
      DataError: no images, a class without images, or a file that is not a readable image.
    """
    files, counts, names = listing(root)
    side, _, channels = shape(files, image_size=image_size, grayscale=grayscale)
    images = decoding.allocate(len(files), image_size=side, channels=channels)
    decoding.decode_into(images, files, files)
    return LabelledImages(images, counts, names, ("",) * len(names))


def listing(root: str | Path) -> Listing:
    """Lists the images of a folder; DataError for a class without any."""
    classes: Classes = {}
    for part in _parts(Path(root)).values():
        for name, files in part.items():
            classes.setdefault(name, []).extend(files)
    names = sorted(classes)
    if empty := [name for name in names if not classes[name]]:
        raise DataError(
            f"{len(empty)} class folders of {root} hold no image ({', '.join(SUFFIXES)}) directly"
            f" in them, {empty[:5]} for example; remove them, or move their images up"
        )
    counts = np.array([len(classes[name]) for name in names], np.int32)
    return Listing([file for name in names for file in classes[name]], counts, tuple(names))


def shape(
    files: Sequence[Path], *, image_size: int | None = None, grayscale: bool | None = None
) -> tuple[int, int, int]:
    """H, W and C that images become: what is asked for, else as `load` says, which opens every file."""
    if image_size is None or grayscale is None:
        headers = [decoding.header(file) for file in files]
        image_size = image_size or decoding.native_size(size for size, _ in headers)
        grayscale = (
            all(mode in _GREY_MODES for _, mode in headers) if grayscale is None else grayscale
        )
    return image_size, image_size, 1 if grayscale else 3


def given_split(root: str | Path) -> dict[str, tuple[str, ...]] | None:
    """Class names by split where root holds folders for train and test, None where it does not."""
    parts = _parts(Path(root))
    return None if "" in parts else {split: tuple(sorted(parts[split])) for split in parts}


def fingerprint(root: str | Path) -> str:
    """Digest of every image's path under root, size and time of change, without opening any."""
    root = Path(root)
    digest = hashlib.sha256()
    for _, classes in sorted(_parts(root).items()):
        for _, files in sorted(classes.items()):
            for file in files:
                status = file.stat()
                line = f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _parts(root: Path) -> dict[str, Classes]:
    """Lists the files: {split: {class: files}}, the split being '' where root holds the classes."""
    if not root.is_dir():
        raise DataError(f"the image folder {root} does not exist or is not a folder")
    folders = _folders(root)
    # Classes may be called train or test too, hence the demand for both and nothing else.
    if {"train", "test"} <= set(folders) <= set(_SPLIT_NAMES):
        if len(folders) > 3:
            raise DataError(f"{root} holds {sorted(folders)}; keep one folder for validation")
        parts = {_SPLIT_NAMES[name]: _folders(path) for name, path in folders.items()}
    else:
        parts = {"": folders}
    if empty := [split or "root" for split, classes in parts.items() if not classes]:
        raise DataError(
            f"{root} holds no class folders{' in ' + ', '.join(empty) if '' not in parts else ''};"
            " expected <root>/<class>/<image>, or <root>/{train,valid,test}/<class>/<image>"
        )
    return {
        split: {name: _files(path) for name, path in classes.items()}
        for split, classes in parts.items()
    }


def _folders(root: Path) -> dict[str, Path]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return {name: root / name for name in sorted(names) if not name.startswith((".", "__"))}


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
    return [folder / name for name in sorted(names) if not name.startswith(".")]
