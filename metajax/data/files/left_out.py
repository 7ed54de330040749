"""A count of the files in a folder of images that are not read, so that people notice them."""

import os
from collections import Counter
from pathlib import Path

from metajax.data.files import folder
from metajax.names import listed, shown

KINDS = 6  # most kinds that a note names

_PLURALS = {
    "link to nothing": "links to nothing",
    "image in no class": "images in no class",
    "folder in a class": "folders in a class",
}


def notes(root: Path) -> tuple[str, ...]:
    """Describes the files that are not read.

    Args:
      root: Folder of the data set.

    Returns:
      One line, such as "left out 3: 2 .txt, 1 .heic"; none if everything is read.
    """
    kinds, folders = count(root), folder.left_out(root)
    if not kinds and not folders:
        return ()
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    words = [f"{kinds[kind]:,} {_named(kind, kinds[kind])}" for kind in ordered[:KINDS]]
    if more := sum(kinds[kind] for kind in ordered[KINDS:]):
        words.append(f"{more:,} more")
    if folders:
        words.append(f"{len(folders):,} next to the folders for splits ({listed(folders)})")
    return (f"left out {kinds.total() + len(folders):,}: {', '.join(words)}",)


def count(root: Path) -> Counter[str]:
    """Counts files, links and folders that are not read.

    Args:
      root: Folder of the data set.

    Returns:
      Numbers by suffix, such as ".txt", or by kind in words, such as "link to nothing".
    """
    parts = folder.class_folders(root)
    # If the root is divided into splits, the folders of the splits hold the folders of classes.
    above = {root, *(path.parent for classes in parts.values() for path in classes.values())}
    kinds: Counter[str] = Counter()
    for place in above:
        with os.scandir(place) as entries:
            kinds.update(kind for entry in entries if (kind := _kind_next_to_classes(entry)))
    for classes in parts.values():
        for place in classes.values():
            with os.scandir(place) as entries:
                kinds.update(_kind(entry) for entry in entries if not folder.is_image(entry))
    return kinds


def _kind_next_to_classes(entry: os.DirEntry) -> str | None:
    """Names the kind of an entry next to class folders, if it may have been meant to be read."""
    if _is_dangling(entry):
        return "link to nothing"
    if folder.holds(entry.is_dir):
        return "hidden" if entry.name.startswith((".", "__")) else None
    return "image in no class" if folder.is_image(entry) else None


def _kind(entry: os.DirEntry) -> str:
    """Names the kind of an entry of a class folder."""
    if _is_dangling(entry):
        return "link to nothing"
    if entry.name.startswith("."):
        return "hidden"
    if folder.holds(entry.is_dir):
        return "folder in a class"
    return shown(Path(entry.name).suffix.lower(), 20) or "without a suffix"


def _named(kind: str, number: int) -> str:
    """Puts the name of a kind in the plural, if there are several."""
    return kind if number == 1 else _PLURALS.get(kind, kind)


def _is_dangling(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a link to nothing."""
    return entry.is_symlink() and not os.path.exists(entry.path)
