"""Ranges of the rows of a task that are measured apart, as they are written on a command line."""

import re

from ..flags.settings import UsageError


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
