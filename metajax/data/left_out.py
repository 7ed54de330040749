"""What lies in a folder of images and is not read, so that nobody misses it unawares."""

import os
from collections import Counter
from pathlib import Path

from metajax.data import folder
from metajax.names import listed, shown

KINDS = 6  # named in a line

_PLURALS = {
    "link to nothing": "links to nothing",
    "image in no class": "images in no class",
    "folder in a class": "folders in a class",
}


def notes(root: Path) -> tuple[str, ...]:
    """One line, such as "left out 3: 2 .txt, 1 .heic"; none if everything is read."""
    kinds, beside = count(root), folder.left_out(root)
    if not kinds and not beside:
        return ()
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    words = [f"{kinds[kind]:,} {_named(kind, kinds[kind])}" for kind in ordered[:KINDS]]
    if more := sum(kinds[kind] for kind in ordered[KINDS:]):
        words.append(f"{more:,} more")
    if beside:
        words.append(f"{len(beside):,} beside the folders for splits ({listed(beside)})")
    return (f"left out {kinds.total() + len(beside):,}: {', '.join(words)}",)


def count(root: Path) -> Counter[str]:
    """Counts files, links and folders that are not read, by suffix (".txt") or by kind in words."""
    parts = folder.class_folders(root)
    # Where the root is divided into splits, those hold the folders of classes.
    above = {root, *(path.parent for classes in parts.values() for path in classes.values())}
    kinds: Counter[str] = Counter()
    for place in above:
        with os.scandir(place) as entries:
            kinds.update(kind for entry in entries if (kind := _kind_beside_classes(entry)))
    for classes in parts.values():
        for place in classes.values():
            with os.scandir(place) as entries:
                kinds.update(_kind(entry) for entry in entries if not folder.is_image(entry))
    return kinds


def _kind_beside_classes(entry: os.DirEntry) -> str | None:
    """The kind of what lies beside folders, if it may have been meant to be read."""
    if _is_dangling(entry):
        return "link to nothing"
    if folder.holds(entry.is_dir):
        return "hidden" if entry.name.startswith((".", "__")) else None
    return "image in no class" if folder.is_image(entry) else None


def _kind(entry: os.DirEntry) -> str:
    if _is_dangling(entry):
        return "link to nothing"
    if entry.name.startswith("."):
        return "hidden"
    if folder.holds(entry.is_dir):
        return "folder in a class"
    return shown(Path(entry.name).suffix.lower(), 20) or "without a suffix"


def _named(kind: str, number: int) -> str:
    return kind if number == 1 else _PLURALS.get(kind, kind)


def _is_dangling(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
