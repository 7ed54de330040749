"""The space of a search: the text of `--search`, read and checked by what the options declare."""

import re
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from metajax.names import shown
from metajax.zoo.options import nearest

from ..flags.settings import RUN, TEST, UsageError, declarations, former_names

# Options that decide what is measured or for how long, and are the same in all trials.
SAME_SECTIONS = ("Data", "Environment", "Test", "Devices", "Run", "Search")
SAME = (
    *("ways", "shots", "protocol", "points", "support", "rows", "columns", "episodes", "calls"),
    *("trial_episodes", "steps", "eval_every", "valid_episodes", "checkpoint_every", "patience"),
    *("demonstrations", "ensemble", "seed"),
)
_BOOLEANS = {"true": True, "false": False}
_RANGE = re.compile(r"(log:)?\s*([^,|]*?)\s*\.\.\s*([^,|]*)")


class Range(NamedTuple):
    """Numbers of an interval.

    Attributes:
      low: Smallest value, inclusive.
      high: Largest value, inclusive.
      log: Whether values are drawn uniformly in their logarithm.
      whole: Whether values are integers.
    """

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that limits are checked by."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        """Returns whether a value lies in the interval."""
        return isinstance(value, int | float) and self.low <= value <= self.high


class Choice(NamedTuple):
    """Values of a list.

    Attributes:
      values: Values of the option's type, two or more.
    """

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that limits are checked by."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Returns whether a value is in the list."""
        return value in self.values


Space = Mapping[str, Range | Choice]


def read_space(text: str, settings_class: type) -> dict[str, Range | Choice]:
    """Reads the space of a search.

    Args:
      text: Options with their values, such as "inner_lr=log:0.05..2; inner_steps=1..5; learner=maml,anil".
        A range is LOW..HIGH, with `log:` one of logarithms; a list is separated by commas, or by | where
        values have commas.
      settings_class: Settings of the driver, whose declarations give types and limits.

    Returns:
      Ranges and choices by option; options that others depend on come first.

    Raises:
      UsageError: If an option is unknown, is no option of a training, or has values outside its limits.
    """
    space: dict[str, Range | Choice] = {}
    declared, former = declarations(settings_class), former_names(settings_class)
    hints = typing.get_type_hints(settings_class)
    for part in filter(None, (piece.strip() for piece in re.split(r"[;\n]", text))):
        given, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not values:
            raise UsageError(
                f"--search: {shown(part)!r} names no values; write such as inner_lr=log:0.05..2 or "
                "learner=maml,anil."
            )
        name = former.get(given, given)
        if name not in declared:
            raise UsageError(f"--search: {shown(name)} is no option; {nearest(name, [*declared])}")
        if name in space:
            raise UsageError(f"--search: {name} is there twice; leave one out.")
        _check_searchable(name, declared[name])
        kinds = [kind for kind in typing.get_args(hints[name]) if kind is not type(None)]
        space[name] = _values(name, values, kinds[0] if kinds else hints[name])
        for value in space[name].ends:
            try:
                declared[name].limits.check(f"--search: {name}", value)
            except ValueError as error:
                raise UsageError(str(error)) from error
    if not space:
        raise UsageError(
            "--search is empty; name options and their values, such as "
            '--search="inner_lr=log:0.05..2; inner_steps=1..5".'
        )
    return _ordered(space, declared)


def _check_searchable(name: str, declared: Any) -> None:
    """Raises UsageError for an option that has to be the same in all trials."""
    # Inner steps at test are part of a learner; how many queries are asked then is not.
    searchable = (RUN, TEST) if declared.section == "Inner loop" else (RUN,)
    if name in SAME or declared.scope not in searchable or declared.section in SAME_SECTIONS:
        raise UsageError(
            f"--search: {name} has to be the same in all trials, which are compared on the same validation "
            f"episodes; give one --{name}."
        )


def _values(name: str, text: str, kind: type) -> Range | Choice:
    """Reads the values of one option."""
    if match := _RANGE.fullmatch(text):
        return _range(name, kind, match)
    parts = [part.strip() for part in text.split("|" if "|" in text else ",")]
    values = tuple(_parsed(name, part, kind) for part in parts)
    if len(set(values)) < max(2, len(values)):
        raise UsageError(
            f"--search: {name}={shown(text)} has "
            + (f"one value; give --{name}={shown(text)}." if len(values) < 2 else "a value twice.")
        )
    return Choice(values)


def _range(name: str, kind: type, match: re.Match) -> Range:
    """Reads a range of numbers."""
    shown_range = f"--search: {name}={shown(match[0])}"
    if kind not in (int, float):
        raise UsageError(f"{shown_range} is a range, and its values are no numbers; list values.")
    low, high = (_parsed(name, end.strip(), kind) for end in match.group(2, 3))
    if not low < high:
        raise UsageError(f"{shown_range} is empty; write the smaller number first.")
    if match[1] and low <= 0:
        raise UsageError(f"{shown_range} begins at {low}; a log: range needs numbers above 0.")
    return Range(low, high, bool(match[1]), kind is int)


def _parsed(name: str, text: str, kind: type) -> Any:
    """Parses one value as the option's flag does."""
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        words = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise UsageError(f"--search: {name}={shown(text)} is not {words}.") from error


def _ordered(space: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Sorts options so that those that another one's declaration names come before it."""
    ordered: dict[str, Any] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        for other in (*declared[name].only, *declared[name].never):
            # The estimator in force is the learner's, where none is given.
            for needed in (other, "learner") if other == "outer" else (other,):
                if needed in space and needed not in (*above, name):
                    add(needed, (*above, name))
        ordered.setdefault(name, space[name])

    for name in space:
        add(name, ())
    return ordered
