"""Names in messages: one Unicode form to compare them, and a short printable form to show them."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

LIMIT = 200  # characters of a name or value in a message
FEW = 5  # names in a message that could list many


def composed(name: str) -> str:
    """Composes letters and accents (Unicode NFC), so that names that look alike compare equal.

    Args:
      name: Any text.

    Returns:
      The text in normal form C.

    Example:
      >>> len("e\u0301"), len(composed("e\u0301"))
      (2, 1)
    """
    return unicodedata.normalize("NFC", name)


def shown(value: object, limit: int = LIMIT) -> str:
    """Formats a value for a message: escapes unprintable characters and shortens a long text in the middle.

    Args:
      value: Class name, path, flag value, error or another object with a string form.
      limit: Largest number of characters taken from the text, an int of 2 or more.

    Returns:
      One line without control characters, of about `limit` characters at most.

    Example:
      >>> shown("red\r\n"), shown("a" * 50, 10)
      ('red\\r\\n', 'aaaaa...aaaaa (50 characters)')
    """
    text = str(value)
    long = len(text) > limit
    start, end = (_escaped(part) for part in (text[:limit], text[-limit:]))
    if not long and len(start) <= limit:
        return start
    head = limit // 2
    # The middle goes: the end of a path names the file.
    return f"{start[:head]}...{end[head - limit :]} ({len(text):,} characters)"


def listed(names: Iterable[object], few: int = FEW) -> str:
    """Quotes the first names of a list and counts the others.

    Args:
      names: Names or other objects, formatted by `shown`.
      few: Largest number of names to quote.

    Returns:
      One phrase.

    Example:
      >>> listed("abcde", few=2)
      "'a', 'b' and 3 more"
    """
    names = list(names)
    quoted = ", ".join(f"'{shown(name)}'" for name in names[:few])
    return quoted + (f" and {len(names) - few:,} more" if len(names) > few else "")


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Finds the entry of a name in a table.

    Args:
      kind: Kind of the entries in a message, such as "model".
      name: Name to look up.
      table: Entries by name.

    Returns:
      The entry.

    Raises:
      ValueError: If the table has no such name; it lists the nearest names.

    Example:
      >>> find("model", "conv4", {"conv4": 1, "resnet12": 2})
      1
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.4) or sorted(table)
        raise ValueError(f"No {kind} is named '{shown(name)}'; the nearest are {', '.join(near)}.")
    return table[name]


def _escaped(text: str) -> str:
    """Replaces unprintable characters by their escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
