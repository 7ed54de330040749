"""Settings as frozen dataclasses: each field is an option, a flag and a line of `--help` at once."""

import dataclasses
import difflib
import logging
import math
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from experiments.checkpoints import CheckpointError
from experiments.files import SettingsMismatch
from metajax.episodes.images import DataError

SECTIONS = ("Data", "Episodes", "Learner", "Inner loop", "Training", "Test", "Run")


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


def launch(
    settings_class: type,
    docstring: str,
    run: Callable[[Any], int],
    *,
    prepare: Callable[[Any], None] = lambda settings: None,
) -> None:
    """Runs a driver: flags in, exit status out.

    Args:
      settings_class: the driver's settings.
      docstring: the head of `--help`.
      run: settings -> exit status. Flags that make no sense exit with 2, other errors of the user's with 1.
      prepare: configures the process; what is left out when `run` is called from a program.
    """
    define_flags(settings_class)

    def parse(argv: list[str]) -> list[str]:
        if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv):
            print(help_text(settings_class, docstring))
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise UsageError(f"{rest[1]!r} is not a flag; flags look like --ways=5.")
            check_fields(from_flags(settings_class))
        except flags.UnrecognizedFlagError as error:
            known = [field.name for field in dataclasses.fields(settings_class)]
            _fail(f"--{error.flagname} is not a flag; {nearest(error.flagname, known)}", 2)
        except (flags.Error, UsageError, OSError) as error:
            _fail(error, 2)
        return rest

    def main(argv: list[str]) -> None:
        del argv
        logging.getLogger("jax").setLevel(
            logging.WARNING
        )  # no word of the backends it did not find
        try:
            settings = from_flags(settings_class)
            prepare(settings)
            status = run(settings)
        except KeyboardInterrupt:
            _fail("interrupted; the same command goes on from what is saved.", 130)
        except (UsageError, SettingsMismatch) as error:
            _fail(error, 2)
        # What is the user's to mend is one line; a defect of ours still shows its traceback.
        except (DataError, CheckpointError, TrainingError, ImportError, OSError) as error:
            _fail(error, 1)
        sys.exit(status or 0)

    app.run(main, flags_parser=parse)


def _fail(error: Exception | str, status: int) -> typing.NoReturn:
    line = " ".join(str(error).split()).removeprefix("ERROR:: ")
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
