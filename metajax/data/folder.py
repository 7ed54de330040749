"""Images in folders, one folder a class.

Two layouts are read, root/<class>/<image> and root/{train,valid,test}/<class>/<image>. In any case of
letters, train may also be called training, valid val, validation or dev, and test testing. Images lie
directly in the folder of their class.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.data import decoding
from metajax.data.images import DataError, LabelledImages
from metajax.names import composed, listed, shown

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_EXPECTED = "expected <root>/<class>/<image>, or <root>/{train,valid,test}/<class>/<image>"

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


def read(found: Listing, shape: tuple[int, int, int], *, form: decoding.Form) -> LabelledImages:
    """Decodes listed images to one shape [H, W, C]; DataError for a file that is not a readable image.

    See `decoding.decode_into` for how images are fitted.
    """
    side, _, channels = shape
    images = decoding.allocate(len(found.files), image_size=side, channels=channels)
    decoding.decode_into(images, found.files, found.files, form=form)
    return LabelledImages(images, found.counts, found.names, ("",) * len(found.names))


def listing(root: str | Path) -> Listing:
    """Lists the images of a folder; DataError for a class without any.

    Where a class has images in more than one of train, valid and test, they are put together.
    """
    _check_links(Path(root))
    classes, names_of = {}, {}
    for part in _parts(Path(root)).values():
        for name, files in part.items():
            # A class in several splits is one, also where one of them writes its accents apart.
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
    """Class names by split where root holds folders for splits, None where it holds the classes."""
    parts = _parts(Path(root))
    return None if "" in parts else {split: tuple(sorted(parts[split])) for split in parts}


def left_out(root: str | Path) -> tuple[str, ...]:
    """Names of the folders beside those for splits, which are not read."""
    folders = _folders(Path(root))
    if not _is_divided(folders):
        return ()
    return tuple(name for name in folders if name.casefold() not in _SPLIT_NAMES)


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


def _check_links(root: Path) -> None:
    """Raises DataError for two class folders that are the same one, by a link."""
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
    """Lists the files: {split: {class: files}}, the split being '' where root holds the classes."""
    return {
        split: {name: _files(path) for name, path in classes.items()}
        for split, classes in class_folders(root).items()
    }


def class_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Finds the folders of classes: {split: {class: folder}}, the split being '' where root holds them."""
    if not os.path.isdir(root):  # False also for a name that no folder can have
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
    """Whether the folders of a root are splits, and not classes that are called like one."""
    named = [name for name in folders if name.casefold() in _SPLIT_NAMES]
    if len(named) == len(folders):
        splits = {_SPLIT_NAMES[name.casefold()] for name in named}
        return {"train", "test"} <= splits or any(_folders(folders[name]) for name in named)
    return any(_folders(folders[name]) and not _files(folders[name]) for name in named)


def _split_folders(root: Path, folders: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Class folders by split; DataError where one has two folders, or there are images beside them."""
    names: dict[str, str] = {}
    beside = []
    for name in folders:
        split = _SPLIT_NAMES.get(name.casefold())
        if split in names:
            both = listed([names[split], name])
            raise DataError(f"{shown(root)} holds {both}, both for {split}; keep one of them")
        if split:
            names[split] = name
        elif _files(folders[name]) or any(map(_files, _folders(folders[name]).values())):
            beside.append(name)
    if beside:
        raise DataError(
            f"{shown(root)} holds folders for splits, {listed(names.values())}, and beside them images in"
            f" {listed(beside)}; move what is beside them into the split that it belongs to, or away. If all"
            " of them are classes, put the images of each directly in its folder"
        )
    return {split: _folders(folders[name]) for split, name in names.items()}


def _check_names(root: Path, classes: dict[str, Path]) -> None:
    """Raises DataError for two folders whose names look alike and are different bytes."""
    seen: dict[str, str] = {}
    for name in classes:
        if other := seen.get(composed(name)):
            raise DataError(
                f"two class folders of {shown(root)} have the same name {listed([name])} in different Unicode"
                f" forms, {other!a} and {name!a}; rename one, or put their images together"
            )
        seen[composed(name)] = name


def _remedy(root: Path, empty: Sequence[str]) -> str:
    """What to do with class folders that hold no image: what they hold may be the classes."""
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
        f"the images lie one folder deeper, in {listed(deeper)}: where those folders are the classes, move"
        " them up as they are, and where they divide one class, put their images together"
    )


def _folders(root: Path) -> dict[str, Path]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if holds(entry.is_dir)]
    return {name: root / name for name in sorted(names) if not name.startswith((".", "__"))}


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry)]
    return [folder / name for name in sorted(names)]


def is_image(entry: os.DirEntry) -> bool:
    """Whether what lies in the folder of a class is read."""
    name = entry.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith(".") and holds(entry.is_file)


def holds(test: Callable[[], bool]) -> bool:
    """What a directory entry says of itself; False for a loop of links."""
    try:
        return test()
    except OSError:
        return False
