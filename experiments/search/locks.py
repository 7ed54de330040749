"""Locks that end with the processes that hold them, also with a killed one."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..runtime.files import writing


def try_lock(path: Path) -> IO | None:
    """Takes a lock if nobody holds it.

    A process that inherits the open file holds the lock too: it is free once all of them have ended.

    Args:
      path: File of the lock, made if absent together with its folder.

    Returns:
      The open file, which holds the lock until it is closed; None if another process holds it.

    Raises:
      WriteError: If the file cannot be made.
    """
    file = _opened(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock within the context, and waits for it before.

    Args:
      path: File of the lock.

    Yields:
      None.

    Raises:
      WriteError: If the file cannot be made.
    """
    with _opened(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> IO:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
