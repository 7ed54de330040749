"""JSON from files that others made: whatever is wrong with it is a ValueError."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """Parses JSON; ValueError also for a key given twice and for nesting too deep to parse."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:  # its traceback would be a thousand frames
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # json.loads would keep the last in silence
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {repeated!r} twice")
    return found
