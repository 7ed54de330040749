"""Settings as frozen dataclasses: each field is an option, a flag and a line of `--help` at once."""

import dataclasses
import difflib
import math
import textwrap
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from metajax.names import shown

SECTIONS = (
    "Data",
    "Episodes",
    "Learner",
    "Inner loop",
    "Training",
    "Adversary",
    "Test",
    "Devices",
    "Run",
)


LONGEST_LINE = 4000  # characters of a message


class UsageError(ValueError):
    """Flags that make no sense, alone or together; the message is one line for the user."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to try."""


def option(
    default: Any,
    help: str,
    *,
    section: str,
    choices: Sequence[str] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """Declares a field of a settings class.

    Args:
      default: its value when the flag is not given; the field's annotation gives the flag's type.
      help: what it does, with its unit.
      section: the heading it stands under in `--help`, one of SECTIONS.
      choices: the values allowed.
      least: the smallest number allowed.
      most: the largest number allowed.
      above: a number it must exceed.
    """
    if section not in SECTIONS:  # --help would leave it out
        raise ValueError(f"section is {section!r}; use one of {', '.join(SECTIONS)}.")
    metadata = dict(help=help, section=section, choices=choices)
    metadata.update(least=least, most=most, above=above)
    return dataclasses.field(default=default, metadata=metadata)


def define_flags(settings_class: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines an absl flag for each field, named and typed like it."""
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_boolean,
        str: flags.DEFINE_string,
    }
    hints = typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        kinds = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        kind = kinds[0] if kinds else hints[field.name]
        define[kind](field.name, field.default, field.metadata["help"], flag_values=values)


def from_flags(settings_class: type, values: flags.FlagValues = flags.FLAGS) -> Any:
    """Reads the parsed flags into a settings object."""
    names = [field.name for field in dataclasses.fields(settings_class)]
    return settings_class(**{name: values[name].value for name in names})


def check_fields(settings: Any) -> None:
    """Raises UsageError for the first field outside its choices or bounds."""
    for field in dataclasses.fields(settings):
        value, rules = getattr(settings, field.name), field.metadata
        if value is None:
            continue
        if rules["choices"] and value not in rules["choices"]:
            raise UsageError(
                f"--{field.name}={value} is unknown; {nearest(value, rules['choices'])}"
            )
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"--{field.name}={value} holds a zero byte, which no name does.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{field.name}={value} is not a finite number.")
        if rules["least"] is not None and value < rules["least"]:
            raise UsageError(f"--{field.name}={value} is too small; use {rules['least']} or more.")
        if rules["most"] is not None and value > rules["most"]:
            raise UsageError(f"--{field.name}={value} is too large; use {rules['most']} or less.")
        if rules["above"] is not None and value <= rules["above"]:
            raise UsageError(
                f"--{field.name}={value} is too small; use more than {rules['above']}."
            )


def in_one_line(text: Any) -> str:
    """Puts a message into one line: control characters escaped, long words and a long whole shortened."""
    return shown(" ".join(shown(word, 500) for word in str(text).split()), LONGEST_LINE)


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggests names near an unknown one, or lists them all; the end of a sentence."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}."


def help_text(settings_class: type, docstring: str) -> str:
    """Renders a driver's docstring and its options under their sections."""
    lines = [docstring.strip()]
    for section in SECTIONS:
        found = [f for f in dataclasses.fields(settings_class) if f.metadata["section"] == section]
        if found:
            lines += ["", f"{section}:", *(line for field in found for line in _help_lines(field))]
    lines += ["", "A file of flags, such as a recipe, is read by --flagfile=FILE; later flags win."]
    return "\n".join(lines)


def _help_lines(field: dataclasses.Field) -> list[str]:
    text = field.metadata["help"]
    if field.metadata["choices"]:
        text += f" One of {', '.join(field.metadata['choices'])}."
    if field.default not in (None, ""):
        text += f" [{str(field.default).lower() if field.type is bool else field.default}]"
    return [f"  --{field.name}", *(f"      {line}" for line in textwrap.wrap(text, 90))]
