"""Images in folders, one folder per class.

Two layouts are read: root/<class>/<image> and root/{train,valid,test}/<class>/<image>. Upper and lower case
are the same, train may also be named training, valid may be val, validation or dev, and test may be testing.
Images are files directly in the folder of their class.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.data.files import decoding
from metajax.data.images import LabelledImages
from metajax.errors import DataError
from metajax.names import composed, listed, shown

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Suffixes of files that are read."""

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_EXPECTED = "expected <root>/<class>/<image>, or <root>/{train,valid,test}/<class>/<image>"

Classes = dict[str, list[Path]]  # image files by class


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files by number; pickled as two arrays, however many files there are.

    Attributes:
      root: Folder of all files.
      paths: Paths below the folder, end to end, [bytes] uint8.
      ends: End of each path, [M] int64.
    """

    root: str
    paths: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, root: Path, files: Sequence[Path]) -> "Files":
        """Numbers files below a folder in the given order.

        Args:
          root: Folder.
          files: Paths of the files.

        Returns:
          The files by number.
        """
        names = [os.fsencode(file.relative_to(root)) for file in files]
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(str(root), np.frombuffer(b"".join(names), np.uint8), ends)

    def encoded(self, rows: np.ndarray) -> tuple[list[Path], list[Path]]:
        """Finds files.

        Args:
          rows: Numbers of the files, [n] int.

        Returns:
          Paths of the files, and their names in errors, which are the same.
        """
        starts, ends = np.where(rows > 0, self.ends[rows - 1], 0), self.ends[rows]
        names = [self.paths[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
        files = [Path(self.root, os.fsdecode(name)) for name in names]
        return files, files


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
      files: Paths, sorted by class, then by name.
      counts: Number of files per class, [classes] int32.
      names: Name of each class.
    """

    files: list[Path]
    counts: np.ndarray
    names: tuple[str, ...]


def read(found: Listing, shape: tuple[int, int, int], *, form: decoding.Form) -> LabelledImages:
    """Decodes listed images to one shape; `decoding.decode_into` describes the fit.

    Args:
      found: Files.
      shape: Height, width and channels; height and width are equal.
      form: Way to decode files.

    Returns:
      The images.

    Raises:
      DataError: If a file is not a readable image, or memory is short.
    """
    side, _, channels = shape
    images = decoding.allocate(len(found.files), image_size=side, channels=channels)
    decoding.decode_into(images, found.files, found.files, form=form)
    return LabelledImages(images, found.counts, found.names, ("",) * len(found.names))


def listing(root: str | Path) -> Listing:
    """Lists the images of a folder.

    The images of a class in more than one of train, valid and test are joined.

    Args:
      root: Folder of the data set.

    Returns:
      The files and their classes.

    Raises:
      DataError: If there are no classes, a class has no image, or two class folders are one.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from metajax.data.files import folder
      >>> with tempfile.TemporaryDirectory() as root:
      ...     for name in ("bee", "ant"):
      ...         Path(root, name).mkdir()
      ...         Path(root, name, "0.png").touch()
      ...     print(folder.listing(root).names)
      ('ant', 'bee')
    """
    _check_links(Path(root))
    classes, names_of = {}, {}
    for part in _parts(Path(root)).values():
        for name, files in part.items():
            # A class in several splits is one class, even if one of them decomposes its accents.
            first = names_of.setdefault(composed(name), name)
            classes.setdefault(first, []).extend(files)
    names = sorted(classes)
    if empty := [name for name in names if not classes[name]]:
        raise DataError(
            f"{len(empty)} class folders of {shown(root)} hold no image ({', '.join(SUFFIXES)}) directly"
            f" in them: {listed(empty)}; {_remedy(Path(root), empty)}"
        )
    counts = np.array([len(classes[name]) for name in names], np.int32)
    return Listing([file for name in names for file in classes[name]], counts, tuple(names))


def given_split(root: str | Path) -> dict[str, tuple[str, ...]] | None:
    """Finds the split that a folder has by its folders for splits.

    Args:
      root: Folder of the data set.

    Returns:
      Class names by split; None if the folder holds the classes directly.
    """
    parts = _parts(Path(root))
    return None if "" in parts else {split: tuple(sorted(parts[split])) for split in parts}


def left_out(root: str | Path) -> tuple[str, ...]:
    """Finds the folders next to the folders for splits, which are not read.

    Args:
      root: Folder of the data set.

    Returns:
      Names of the folders.
    """
    folders = _folders(Path(root))
    if not _is_divided(folders):
        return ()
    return tuple(name for name in folders if name.casefold() not in _SPLIT_NAMES)


def fingerprint(root: str | Path) -> str:
    """Hashes the path, size and time of change of every image, without opening any.

    Args:
      root: Folder of the data set.

    Returns:
      SHA-256 as hexadecimal digits.
    """
    root = Path(root)
    digest = hashlib.sha256()
    for _, classes in sorted(_parts(root).items()):
        for _, files in sorted(classes.items()):
            for file in files:
                status = file.stat()
                line = f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check_links(root: Path) -> None:
    """Raises DataError if two class folders are the same folder by a link."""
    seen: dict[str, Path] = {}
    for classes in class_folders(root).values():
        for path in classes.values():
            other = seen.setdefault(os.path.realpath(path), path)
            if other != path:
                both = listed(folder.relative_to(root) for folder in (other, path))
                raise DataError(
                    f"the class folders {both} of {shown(root)} are one folder by a link, so that its images "
                    "would be two classes; remove one of the two"
                )


def _parts(root: Path) -> dict[str, Classes]:
    """Lists the files by split and class; the split is '' if root holds the classes directly."""
    return {
        split: {name: _files(path) for name, path in classes.items()}
        for split, classes in class_folders(root).items()
    }


def class_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Finds the folders of classes.

    Args:
      root: Folder of the data set.

    Returns:
      Folders by split and class; the split is '' if root holds the classes directly.

    Raises:
      DataError: If there is no such folder, a split has no class, or names of folders are ambiguous.
    """
    if not os.path.isdir(root):  # False also for impossible names
        raise DataError(f"the image folder {shown(root)} does not exist or is not a folder")
    folders = _folders(root)
    parts = _split_folders(root, folders) if _is_divided(folders) else {"": folders}
    if empty := [split for split, classes in parts.items() if not classes]:
        where = f" in {' and '.join(empty)}" if "" not in parts else ""
        advice = ""
        if whole := [folders[name] for name in folders if where and _folders(folders[name])]:
            advice = f". To divide the classes of one folder at random, give {shown(whole[-1])}"
        raise DataError(f"{shown(root)} holds no class folders{where}; {_EXPECTED}{advice}")
    for classes in parts.values():
        _check_names(root, classes)
    return parts


def _is_divided(folders: dict[str, Path]) -> bool:
    """Returns whether the folders of a root are splits, rather than classes with the name of a split."""
    named = [name for name in folders if name.casefold() in _SPLIT_NAMES]
    if len(named) == len(folders):
        splits = {_SPLIT_NAMES[name.casefold()] for name in named}
        return {"train", "test"} <= splits or any(_folders(folders[name]) for name in named)
    return any(_folders(folders[name]) and not _files(folders[name]) for name in named)


def _split_folders(root: Path, folders: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Finds class folders by split.

    Args:
      root: Folder of the data set.
      folders: Folders in it, by name.

    Returns:
      Class folders by split and class.

    Raises:
      DataError: If a split has two folders, or other folders have images.
    """
    names: dict[str, str] = {}
    others = []
    for name in folders:
        split = _SPLIT_NAMES.get(name.casefold())
        if split in names:
            both = listed([names[split], name])
            raise DataError(f"{shown(root)} holds {both}, both for {split}; keep one of them")
        if split:
            names[split] = name
        elif _files(folders[name]) or any(map(_files, _folders(folders[name]).values())):
            others.append(name)
    if others:
        raise DataError(
            f"{shown(root)} holds folders for splits, {listed(names.values())}, and besides them images in"
            f" {listed(others)}; move these into the split that they belong to, or away. If all of the"
            " folders are classes, put the images of each directly in its folder"
        )
    return {split: _folders(folders[name]) for split, name in names.items()}


def _check_names(root: Path, classes: dict[str, Path]) -> None:
    """Raises DataError if two folders have names that look alike and are different bytes."""
    seen: dict[str, str] = {}
    for name in classes:
        if other := seen.get(composed(name)):
            raise DataError(
                f"two class folders of {shown(root)} have the same name {listed([name])} in different Unicode"
                f" forms, {other!a} and {name!a}; rename one, or put their images together"
            )
        seen[composed(name)] = name


def _remedy(root: Path, empty: Sequence[str]) -> str:
    """Suggests a remedy for class folders without images, whose own folders may be the classes."""
    folders = [
        path for split in (root, *_folders(root).values()) for path in _folders(split).values()
    ]
    deeper = [
        inner.relative_to(root)
        for path in folders
        if path.name in empty
        for inner in _folders(path).values()
        if _files(inner)
    ]
    if not deeper:
        return "remove them, or move them elsewhere"
    return (
        f"the images are one folder deeper, in {listed(deeper)}: if those folders are the classes, move"
        " them up; if they divide one class, put their images together"
    )


def _folders(root: Path) -> dict[str, Path]:
    """Lists the visible folders of a folder, sorted by name."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if holds(entry.is_dir)]
    return {name: root / name for name in sorted(names) if not name.startswith((".", "__"))}


def _files(folder: Path) -> list[Path]:
    """Lists the images of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry)]
    return [folder / name for name in sorted(names)]


def is_image(entry: os.DirEntry) -> bool:
    """Returns whether an entry of a class folder is read as an image.

    Args:
      entry: Entry of the folder.
    """
    name = entry.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith(".") and holds(entry.is_file)


def holds(test: Callable[[], bool]) -> bool:
    """Calls a test of a directory entry; a loop of links fails it.

    Args:
      test: Method such as `entry.is_file`.

    Returns:
      The result of the test; False for an OSError.
    """
    try:
        return test()
    except OSError:
        return False
