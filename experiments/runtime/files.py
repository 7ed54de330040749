"""Files written whole or not at all, and the settings that a work directory belongs to."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metajax.data import strict_json
from metajax.names import shown

# Recorded hashes, and how messages name them instead of printing them.
HASHES = {"data_sha256": "the training images", "test_data_sha256": "the test images"}

# Errors of a full disk, in the words of the operating system, which libraries pass on.
_FULL = re.compile("No space left|quota exceeded|File too large", re.IGNORECASE)
# Errors of a path where something else is already.
_IN_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)


class SettingsMismatch(ValueError):
    """A work directory that belongs to a run with other settings; the message is one line for the user."""


class WriteError(OSError):
    """A file that cannot be written; the message is one line for the user."""


def data_hashes(fingerprint: str) -> dict[str, str]:
    """Splits the fingerprint of all data into one of training and validation data and one of test data.

    Args:
      fingerprint: Hashes of the splits joined by dots, test data last; a single hash for data without splits.

    Returns:
      Hashes to record with the settings, keys of HASHES.
    """
    trained, dot, test = fingerprint.rpartition(".")
    return {"data_sha256": trained, "test_data_sha256": test} if dot else {"data_sha256": test}


def read_settings(workdir: Path) -> dict[str, Any] | None:
    """Reads the recorded settings of a work directory.

    Args:
      workdir: Work directory.

    Returns:
      Values by settings' name; None if nothing is recorded.

    Raises:
      SettingsMismatch: If `settings.json` is damaged.
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
    """Ties a work directory to the settings of its first run, kept in `workdir/settings.json`.

    Args:
      workdir: Work directory, made if absent.
      settings: Values that JSON can hold, by name.
      ignore: Names that may change between runs.
      binding: Whether the recorded settings bind; if not, such as when no checkpoint was saved with them,
        the new ones replace them.
      defaults: Defaults by name, for settings that an earlier version did not know; None for no such
        settings.
      remedy: Function from the differing names to the message's last sentences; None for the usual remedy.

    Raises:
      SettingsMismatch: If an earlier run had other settings; the message lists all of them.
    """
    path = Path(workdir) / "settings.json"
    now = {name: plain(value) for name, value in settings.items() if name not in ignore}
    was = read_settings(workdir) if binding else None
    if was is None:
        write_json(path, now)
        return
    was = {name: value for name, value in was.items() if name not in ignore}
    # An option that did not exist in the earlier run had its default there.
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
    """Writes JSON atomically; NaN and infinities become null, arrays lists, and paths strings.

    Args:
      path: File to write.
      obj: Mapping, sequence, array, number, string or path, nested in any way.

    Raises:
      WriteError: If the disk does not accept it.
    """
    write_text(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: if the process is killed, the file has its old content or its new.

    Args:
      path: File to write; its folder is made if absent.
      text: Content.

    Raises:
      WriteError: If the disk does not accept it.
    """
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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, whole or not at all.

    Args:
      path: File to write.
      rows: Values by column; a row need not have all columns.

    Raises:
      WriteError: If the disk does not accept it.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Appended:
    """A file opened for appending, without a buffer: bytes are with the system when `write` returns.

    A buffer would write, and report, what a full disk refused once more at exit.

    Args:
      path: File, made if absent together with its folder.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends bytes.

        Args:
          data: Bytes to append.

        Raises:
          WriteError: If the disk does not accept all of them.
        """
        rest = memoryview(data)
        with writing(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def is_deleted(self) -> bool:
        """Checks whether the file was deleted.

        Returns:
          Whether it has no name any more, so that nobody can find what is written to it.
        """
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Closes the file; further writes are an error."""
        self._file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError within the context into a WriteError that names the file and the remedy.

    Args:
      path: File that is written.

    Yields:
      None.

    Raises:
      WriteError: If an OSError is raised within the context.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise WriteError(f"{shown(path)} cannot be written {unwritten(error, path)}") from error


def unwritten(error: BaseException, path: Path) -> str:
    """Explains why a file could not be written and what to do.

    Args:
      error: Exception of the failed write.
      path: File that was to be written.

    Returns:
      The end of a sentence: the reason in parentheses, then the remedy.
    """
    full = _FULL.search(str(error))
    number = getattr(error, "errno", None)
    what = "check that its folder exists and is writable"
    if full:
        what = f"make room in {shown(Path(path).parent)}"
    elif number in _IN_PLACE:
        what = "move away what is in its place"
    reason = getattr(error, "strerror", None) or (full[0] if full else one_line(error))
    return f"({reason}); {what}, and the same command goes on from what is saved."


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk, so that they survive a power cut.

    Args:
      path: File or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """Formats an exception's type and the start of its message without line breaks.

    Args:
      error: Exception.

    Returns:
      A text of at most 160 characters after the type.
    """
    text = shown(" ".join(str(error)[:1000].split()), 1000)
    return f"{type(error).__name__}: {text[:157] + '...' if len(text) > 160 else text}"


_ABSENT = object()


def _difference(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describes a setting that differs."""
    if name in HASHES:
        return f"{HASHES[name]} differ"
    old, new = (_shown(run.get(name, _ABSENT)) for run in (was, now))
    return f"--{name}: was {old}, now {new}"


def _shown(value: Any) -> str:
    """Formats a setting's value for a message."""
    if value is _ABSENT:
        return "not set"
    return shown(repr(value) if value == "" or not isinstance(value, str) else value)


def plain(obj: Any) -> Any:
    """Converts an object to what strict JSON can hold.

    Args:
      obj: Mapping, sequence, array, number, string or path, nested in any way.

    Returns:
      Dicts, lists, strings, finite numbers, booleans and None.
    """
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if hasattr(obj, "tolist"):
        return plain(obj.tolist())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    return str(obj) if isinstance(obj, os.PathLike) else obj
