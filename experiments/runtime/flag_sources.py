"""Flag values that a command does not spell out: those of an evaluated run, and a published number."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.flags.settings import UsageError, define_flags, from_flags
from experiments.runtime.checkpoints import Checkpoints
from experiments.runtime.files import SettingsMismatch, read_settings
from experiments.runtime.workdir import NOT_COMPARED

# How long, how well and where a recipe is trained. Anything else decides which published number it is for.
_NOT_OF_THE_PROTOCOL = (
    *NOT_COMPARED,
    *("seed", "eval_seed", "split_seed", "eval_episodes", "valid_episodes"),
    *("steps", "meta_batch", "outer_optimizer", "outer_lr", "outer_schedule", "outer_lr_end"),
    *("clip", "patience", "eval_every", "checkpoint_every", "tasks_at_once", "queries_at_once"),
    *("adjoint", "kernels"),
)


def read_flags(settings_class: type, argv: Sequence[str], values: flags.FlagValues) -> Any:
    """Parses a command line into settings.

    Args:
      settings_class: Settings dataclass whose flags `values` has.
      argv: Program name and arguments.
      values: Flags, unparsed; changed in place.

    Returns:
      Settings of that class. Options that `--mode=evaluate` is not given have the values of the run that it
      evaluates, and `published` is None where flags beside the recipe ask for another protocol.

    Raises:
      absl.flags.Error: If flags are unknown or of the wrong type.
      FormatError: If the run to evaluate is one of another version.
      UsageError: If an argument is no flag, or a recorded value is none of its flag.
    """
    rest = values(list(argv))
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r} is not a flag; flags look like --ways=5.")
    _take_recorded(settings_class, values)
    _drop_published(settings_class, argv, values)
    return from_flags(settings_class, values)


def _take_recorded(settings_class: type, values: flags.FlagValues) -> None:
    """Sets the flags that an evaluation is not given to those of the work directory's run."""
    names = [field.name for field in dataclasses.fields(settings_class)]
    if "mode" not in names or values["mode"].value != "evaluate" or not values["workdir"].value:
        return
    recorded = None
    with contextlib.suppress(OSError, SettingsMismatch):  # reported when the directory is opened
        workdir = Path(values["workdir"].value).expanduser()
        Checkpoints(workdir / "checkpoints").check_format()
        recorded = read_settings(workdir)
    # How other test data are read goes with them.
    elsewhere = "test_dataset" in names and values["test_dataset"].present
    of_other_images = ("test_split", "test_invert") if elsewhere else ()
    for name in names:
        if values[name].present or name in (*NOT_COMPARED, *of_other_images):
            continue
        if recorded and name in recorded:
            values[name].value = _parsed(values[name], recorded[name], values["workdir"].value)


def _parsed(flag: flags.Flag, value: Any, workdir: str) -> Any:
    """Parses a recorded value as on a command line; UsageError where the flag cannot have it."""
    if value is None and flag.default is None:
        return None
    try:
        return flag.parser.parse(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{Path(workdir) / 'settings.json'} is damaged: {value!r} is no value of --{flag.name}; use "
            "another --workdir, or delete that file if you are sure of the settings."
        ) from error


def _drop_published(settings_class: type, argv: Sequence[str], values: flags.FlagValues) -> None:
    """Replaces a recipe's published number by the reason where other flags change its protocol."""
    recipes = _recipes(settings_class, argv)
    if not recipes or values["published"].present > sum(r["published"].present for r in recipes):
        return  # without a number, or with one of the user's own
    recipe = recipes[-1]
    changed = [
        f"--{field.name}={recipe[field.name].value} and this run has {values[field.name].value}"
        for field in dataclasses.fields(settings_class)
        if field.name not in _NOT_OF_THE_PROTOCOL
        and recipe[field.name].value != values[field.name].value
    ]
    if changed:
        source = f" ({values['published_by'].value})" if values["published_by"].value else ""
        more = f", and {len(changed) - 1} more differ" if changed[1:] else ""
        reason = f"left out: {values['published'].value:g}{source} is for {changed[0]}{more}"
        values["published"].value, values["published_by"].value = None, reason


def _recipes(settings_class: type, argv: Sequence[str]) -> list[flags.FlagValues]:
    """Parses the flag files of a command that have a published number, each by itself."""
    found = []
    for path in _flag_files(argv):
        alone = flags.FlagValues()
        define_flags(settings_class, alone)
        alone(["recipe", f"--flagfile={path}"], known_only=True)
        if "published" in alone and alone["published"].value is not None:
            found.append(alone)
    return found


def _flag_files(argv: Sequence[str]) -> list[str]:
    found = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("-flagfile", "--flagfile"):
            found.append(value if equals else following)
    return found
