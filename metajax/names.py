"""Names as people read them: compared in one Unicode form, and printed short and harmless."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

LIMIT = 200  # characters of a name or value in a message
FEW = 5  # names in a message that could list many


def composed(name: str) -> str:
    """Composes letters and accents (Unicode NFC), so that names that look alike compare equal."""
    return unicodedata.normalize("NFC", name)


def shown(value: object, limit: int = LIMIT) -> str:
    """Escapes what is not printable and leaves out the middle of what is long.

    Args:
      value: Anything that has a string: a class name, path, flag value or error.
      limit: Most characters of the result that come from `value`, an int of 2 or more.

    Returns:
      One line without control characters, of about `limit` characters at most.
    """
    text = str(value)
    long = len(text) > limit
    start, end = (_escaped(part) for part in (text[:limit], text[-limit:]))
    if not long and len(start) <= limit:
        return start
    head = limit // 2
    # The end of a path says more than its middle.
    return f"{start[:head]}...{end[head - limit :]} ({len(text):,} characters)"


def listed(names: Iterable[object], few: int = FEW) -> str:
    """Quotes the first names, `shown`, and counts the others: "'a', 'b' and 3 more"."""
    names = list(names)
    quoted = ", ".join(f"'{shown(name)}'" for name in names[:few])
    return quoted + (f" and {len(names) - few:,} more" if len(names) > few else "")


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Finds the entry of a name; an unknown one is a ValueError that names the kind and the nearest."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.4) or sorted(table)
        raise ValueError(f"No {kind} is named '{shown(name)}'; the nearest are {', '.join(near)}.")
    return table[name]


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
