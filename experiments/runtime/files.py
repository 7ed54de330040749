"""Files written whole or not at all, and the settings that a working directory belongs to."""

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metajax.data import strict_json
from metajax.names import shown

# Recorded hashes, which no message needs to print.
HASHES = {"data_sha256": "the training images", "test_data_sha256": "the test images"}

# What the system, and libraries that pass on its words, say of a disk that takes no more.
_FULL = re.compile("No space left|quota exceeded|File too large", re.IGNORECASE)
_IN_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)


class SettingsMismatch(ValueError):
    """A working directory of a run with other settings; its message is one line for the user."""


class WriteError(OSError):
    """A file that cannot be written; its message is one line for the user."""


def data_hashes(fingerprint: str) -> dict[str, str]:
    """Splits the fingerprint of all data into those of training and validation data and of test data.

    Args:
      fingerprint: Hashes of the splits joined by dots, test data last; a single one where all is one.

    Returns:
      Mapping to record beside the settings, with keys of HASHES.
    """
    trained, dot, test = fingerprint.rpartition(".")
    return {"data_sha256": trained, "test_data_sha256": test} if dot else {"data_sha256": test}


def read_settings(workdir: Path) -> dict[str, Any] | None:
    """Reads the recorded settings of a working directory.

    Raises:
      SettingsMismatch: If `settings.json` is damaged.

    Returns:
      Mapping from names to values; None if nothing is recorded.
    """
    path = Path(workdir) / "settings.json"
    if not os.path.lexists(path):
        return None
    try:
        return dict(strict_json.loads(path.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsMismatch(
            f"{path} is damaged ({one_line(error)}); use another --workdir, or delete that file "
            "if you are sure of the settings."
        ) from error


def check_settings(
    workdir: Path,
    settings: Mapping[str, Any],
    *,
    ignore: Collection[str],
    binding: bool = True,
    defaults: Mapping[str, Any] | None = None,
    remedy: Callable[[Sequence[str]], str] | None = None,
    rename: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Ties a working directory to the settings of its first run, kept in `workdir/settings.json`.

    Args:
      workdir: made if absent.
      settings: name -> what JSON can hold.
      ignore: names that may change between runs.
      binding: whether the settings there bind; if not, such as where they never led to a checkpoint,
        the new ones take their place.
      defaults: of names that an earlier run may not have known: it had these. None for those not here.
      remedy: Function from the differing names to the message's last sentences; None names the usual ones.
      rename: Function that gives the options of an earlier release today's names.

    Raises:
      SettingsMismatch: if an earlier run had other settings; lists all of them.
    """
    path = Path(workdir) / "settings.json"
    now = {name: plain(value) for name, value in settings.items() if name not in ignore}
    was = read_settings(workdir) if binding else None
    if was is None:
        write_json(path, now)
        return
    was = {name: value for name, value in rename(was).items() if name not in ignore}
    # An option that came later was at its default in the earlier run.
    was = {
        **{name: plain(value) for name, value in (defaults or {}).items() if name in now},
        **was,
    }
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if names:
        usual = "Use another --workdir, or the old values to continue that run."
        raise SettingsMismatch(
            f"{workdir} belongs to a run with other settings: "
            f"{'; '.join(_difference(name, was, now) for name in names)}. "
            f"{remedy(names) if remedy else usual}"
        )


def write_json(path: Path, obj: Any) -> None:
    """Writes JSON atomically; NaN and infinities become null, arrays lists, paths strings."""
    write_text(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: killed at any moment, it has its old content or its new."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


class Appended:
    """A file that bytes are appended to, all of them handed to the system when `write` returns.

    It has no buffer: what a full disk did not take would be written, and reported, again at the end.

    Args:
      path: made if absent, with its folder.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends; WriteError where the disk does not take all of it."""
        rest = memoryview(data)
        with writing(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def is_deleted(self) -> bool:
        """Whether the file has lost its name, so that nobody will find what is written to it."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Closes the file; further writes are an error."""
        self._file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error in writing a file into a WriteError, which names the file and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(f"{shown(path)} cannot be written {unwritten(error, path)}") from error


def unwritten(error: BaseException, path: Path) -> str:
    """Says why a file could not be written, in brackets, and what to do; the end of a sentence."""
    full = _FULL.search(str(error))
    number = getattr(error, "errno", None)
    what = "see that its folder is there and can be written"
    if full:
        what = f"make room in {shown(Path(path).parent)}"
    elif number in _IN_PLACE:
        what = "move away what is in its place"
    reason = getattr(error, "strerror", None) or (full[0] if full else one_line(error))
    return f"({reason}); {what}, and the same command goes on from what is saved."


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """Names an error's type and the start of its message, without line breaks."""
    text = shown(" ".join(str(error)[:1000].split()), 1000)
    return f"{type(error).__name__}: {text[:157] + '...' if len(text) > 160 else text}"


_ABSENT = object()


def _difference(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name in HASHES:
        return f"{HASHES[name]} differ"
    old, new = (_shown(run.get(name, _ABSENT)) for run in (was, now))
    return f"--{name}: was {old}, now {new}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not set"
    return shown(repr(value) if value == "" or not isinstance(value, str) else value)


def plain(obj: Any) -> Any:
    """Turns an object into what strict JSON can hold."""
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if hasattr(obj, "tolist"):
        return plain(obj.tolist())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    return str(obj) if isinstance(obj, os.PathLike) else obj
