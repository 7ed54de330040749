"""JSON from files of others: every defect is a ValueError."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """Parses JSON, and rejects repeated keys and too deep nesting.

    Args:
      text: JSON.

    Returns:
      The parsed value.

    Raises:
      ValueError: If the text is not JSON, has a key twice in one object, or is nested too deeply to parse.

    Example:
      >>> loads('{"a": [1, 2]}')
      {'a': [1, 2]}
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:  # its traceback would be a thousand frames
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dictionary of pairs; raises ValueError if a key repeats."""
    found = dict(pairs)
    if len(found) < len(pairs):  # json.loads would keep the last one silently
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {repeated!r} twice")
    return found
