"""Options that are lists or pairs, as they are written on a command line."""

import re

from metajax.zoo.options import nearest

from ..flags.settings import UsageError
from .baselines import BASELINES


def sizes(asked: str) -> tuple[int, ...]:
    """Reads `--support`.

    Raises:
      UsageError: If it is not a list of different positive numbers.
    """
    parts = [part.strip() for part in str(asked).split(",")]
    found = [int(part) for part in parts if part.isdecimal()]
    if len(found) != len(parts) or min(found) < 1 or len(set(found)) < len(found):
        raise UsageError(
            f"--support={asked} is not a list of different numbers of rows, such as 16 or 16,32,64."
        )
    return tuple(found)


def windows_of(asked: str) -> tuple[tuple[int, int], ...]:
    """Reads `--windows`.

    Raises:
      UsageError: If it is not a list of ranges.
    """
    found = []
    for word in filter(None, map(str.strip, asked.split(","))):
        match = re.fullmatch(r"(\d+)-(\d+)", word)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(
                f"--windows={asked} is not a list of ranges of rows, such as 3-10,11-15."
            )
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def baseline_names(asked: str) -> tuple[str, ...]:
    """Reads `--baselines`.

    Raises:
      UsageError: If a name is unknown.
    """
    if asked == "none":
        return ()
    if asked == "all":
        return tuple(BASELINES)
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"--baselines={name} is unknown; {nearest(name, list(BASELINES))}")
    return names
