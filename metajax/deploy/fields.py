"""Checked fields of a description that was read from disk."""

from collections.abc import Mapping
from typing import Any

from metajax.errors import DataError
from metajax.names import shown


def taken(found: Any, kinds: Mapping[str, type | tuple[type, ...]], *, what: str) -> dict[str, Any]:
    """Takes fields of known types from parsed JSON, and refuses all others.

    Args:
      found: Parsed JSON.
      kinds: Type, or types, of each field by name.
      what: Name of the description in errors.

    Returns:
      Values by name, of the fields in `kinds`.

    Raises:
      DataError: If it is no object, or a field is missing, unknown, or of another type.

    Example:
      >>> taken({"ways": 5}, {"ways": int}, what="The learner")
      {'ways': 5}
    """
    if not isinstance(found, dict):
        raise DataError(f"{what} is {shown(found)}, and no object of fields")
    if extra := set(found) ^ set(kinds):
        name = sorted(extra)[0]
        state = "unknown" if name in found else "missing"
        raise DataError(f"{what}: the field {shown(name)} is {state}")
    for name, kind in kinds.items():
        kinds_of = kind if isinstance(kind, tuple) else (kind,)
        value = found[name]
        # A bool is an int to isinstance, and an int serves as a float.
        fits = type(value) in kinds_of or (float in kinds_of and type(value) is int)
        if not fits:
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds_of)
            raise DataError(f"{what}: {name} is {shown(value)}; it has to be of type {names}")
    return dict(found)


def in_range(value: float, name: str, *, least: float, most: float, what: str) -> None:
    """Refuses a number that is out of range.

    Args:
      value: Number to check.
      name: Name of its field.
      least: Smallest allowed number.
      most: Largest allowed number.
      what: Name of the description in errors.

    Raises:
      DataError: If it is out of range, or NaN.
    """
    if not least <= value <= most:
        raise DataError(f"{what}: {name} is {value}; it has to be {least:g} to {most:g}")
