"""Options that are lists or pairs, as they are written on a command line."""

import re
from typing import Any

from experiments.flags.settings import UsageError
from experiments.pertask.baselines import BASELINES
from metajax.names import shown
from metajax.zoo.options import nearest
from metajax.zoo.row_models import ROW_MODELS, RowOptions, row_options


def model_options(model: str, asked: str) -> RowOptions:
    """Reads `--model_options`.

    Args:
      model: Name of the network.
      asked: Words NAME=VALUE.

    Returns:
      Options of the features and of the network; none for "mlp" and "auto".

    Raises:
      UsageError: If the network has no such option, or the option no such value.
    """
    if model not in ROW_MODELS:
        return RowOptions({}, {})
    declared = {**ROW_MODELS[model].features, **ROW_MODELS[model].options}
    given = {}
    for word in asked.split():
        name, _, value = word.partition("=")
        if name not in declared:
            raise UsageError(
                f"--model_options={shown(word)} is no option of --model={model}; "
                f"{nearest(name, list(declared))}"
            )
        given[name] = _typed(word, value, declared[name].type)
    try:
        return row_options(model, given)
    except ValueError as error:
        raise UsageError(f"--model_options={shown(asked)}: {error}") from error


def _typed(word: str, value: str, kind: type) -> Any:
    """Parses a value of an option; raises UsageError if it is of another type."""
    truth = {"true": True, "1": True, "false": False, "0": False}
    try:
        return truth[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UsageError(
            f"--model_options={shown(word)} is no {kind.__name__}; write NAME=VALUE, such as size=2048."
        ) from None


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
