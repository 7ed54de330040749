"""Options of learners and models: declared once, where flags, checks and help find them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax import deprecation
from metajax.names import shown


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggests known names near an unknown one, or lists all.

    Args:
      name: Unknown name.
      known: Known names.

    Returns:
      End of a sentence.

    Example:
      >>> nearest("mamll", ["maml", "anil"])
      'did you mean maml?'
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}."


class Limits(NamedTuple):
    """Values that an option allows.

    Attributes:
      choices: Allowed values; None allows all.
      least: Smallest allowed number, inclusive.
      most: Largest allowed number, inclusive.
      above: Number that the value must exceed.
    """

    choices: tuple[str, ...] | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Rejects a value outside the limits; None, an option that is not given, always passes.

        Args:
          name: Name of the option, as the user writes it.
          value: Value to check.

        Raises:
          ValueError: If the value is outside the limits or not a finite number.
        """
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"{name}={shown(value)} is unknown; {nearest(value, self.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} is not a finite number.")
        if self.least is not None and value < self.least:
            raise ValueError(f"{name}={value} is too small; use {self.least} or more.")
        if self.most is not None and value > self.most:
            raise ValueError(f"{name}={value} is too large; use {self.most} or less.")
        if self.above is not None and value <= self.above:
            raise ValueError(f"{name}={value} is too small; use more than {self.above}.")


class Option(NamedTuple):
    """An option that only some learners or models have.

    Attributes:
      type: Type of its values: int, float, bool or str.
      default: Value if the option is not given. None leaves the choice to the learner or model.
      help: Noun phrase with the unit, for `--help`.
      limits: Allowed values.
      was: Former names, which flags accept for one more release.
      protocol: Whether published numbers are for one value only, as opposed to a choice of speed.
      only: Values of other options that it goes with, by the other's name.
    """

    type: type
    default: Any
    help: str
    limits: Limits = Limits()
    was: tuple[str, ...] = ()
    protocol: bool = True
    only: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def option(
    type: type,
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    was: tuple[str, ...] = (),
    protocol: bool = True,
    only: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Option:
    """Declares an option of a learner or a model.

    Args:
      type: Type of its values: int, float, bool or str.
      default: Value if the option is not given.
      help: Noun phrase with the unit, for `--help`.
      choices: Allowed values.
      least: Smallest allowed number, inclusive.
      most: Largest allowed number, inclusive.
      above: Number that the value must exceed.
      was: Former names.
      protocol: Whether published numbers are for one value only.
      only: Values of other options that it goes with, by the other's name.

    Returns:
      The declaration.

    Example:
      >>> rank = option(int, 4, "Rank of the factors.", least=1)
      >>> rank.limits.check("rank", 8)
    """
    return Option(type, default, help, Limits(choices, least, most, above), was, protocol, only)


def complete(
    owner: str, given: Mapping[str, Any], declared: Mapping[str, Option]
) -> dict[str, Any]:
    """Checks given options and fills in the defaults of the others.

    Args:
      owner: Name of the learner or model, for messages.
      given: Values by option; None stands for an option that is not given.
      declared: Declarations by option.

    Returns:
      Values by option, without those that are None.

    Raises:
      ValueError: If an option is not declared, or its value is outside the limits.

    Example:
      >>> complete("lora", {}, {"rank": option(int, 4, "Rank of the factors.", least=1)})
      {'rank': 4}
    """
    former = {old: name for name, entry in declared.items() for old in entry.was}
    for old in former.keys() & given.keys():
        deprecation.warn(f"{owner}: {old}", former[old])
    given = {former.get(name, name): value for name, value in given.items()}
    for name, value in given.items():
        if name not in declared:
            takes = ", ".join(declared) or "none"
            raise ValueError(f"{owner} has no option {name}; it takes {takes}.")
        declared[name].limits.check(name, value)
    values = {name: entry.default for name, entry in declared.items()}
    values |= {name: value for name, value in given.items() if value is not None}
    return {name: value for name, value in values.items() if value is not None}
