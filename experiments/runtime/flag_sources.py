"""Flag values that a command does not give: from the evaluated run, the learner or the recipe."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from metajax.zoo.learners import LEARNERS

from ..flags.settings import (
    DISPLAY,
    HOST,
    UsageError,
    conflicts,
    declarations,
    define_flags,
    former_names,
    from_flags,
    in_scope,
    is_present,
    learner_defaults,
    with_todays_names,
)
from ..flags.training import AFTER_TRAINING
from .checkpoints import Checkpoints
from .files import SettingsMismatch, read_settings

# Sizes of training tasks that a learner prefers where the data allow them: found when these are read.
_SIZES = ("train_ways", "train_shots")


def read_flags(settings_class: type, argv: Sequence[str], values: flags.FlagValues) -> Any:
    """Parses a command line into settings.

    Args:
      settings_class: Settings dataclass whose flags `values` has.
      argv: Program name and arguments.
      values: Flags, unparsed; changed in place.

    Returns:
      Settings of that class. Options that are not given have, in this order, the values of the run that
      `--mode=evaluate` evaluates, the learner's defaults, and the driver's defaults. `published` is None
      where flags besides the recipe ask for another protocol.

    Raises:
      absl.flags.Error: If flags are unknown or of the wrong type.
      FormatError: If the run to evaluate is one of another version.
      UsageError: If an argument is not a flag, or a recorded value is impossible for its flag.
    """
    rest = values(list(argv))
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r} is not a flag; flags look like --ways=5.")
    _warn_of_former_names(settings_class, values)
    recorded = _take_recorded(settings_class, values)
    if not recorded:
        _take_defaults_of_learner(settings_class, values)
    _drop_published(settings_class, argv, values)
    return from_flags(settings_class, values)


def _warn_of_former_names(settings_class: type, values: flags.FlagValues) -> None:
    """Warns of flags that are given by a former name."""
    for old, name in former_names(settings_class).items():
        if values[old].present:
            print(
                f"warning: --{old} is now --{name}; the old name goes with the next release.",
                file=sys.stderr,
            )


def _take_recorded(settings_class: type, values: flags.FlagValues) -> Mapping[str, Any]:
    """Sets the flags that an evaluation is not given to the values of the work directory's run."""
    names = [field.name for field in dataclasses.fields(settings_class)]
    if (
        "mode" not in names
        or values["mode"].value not in AFTER_TRAINING
        or not values["workdir"].value
    ):
        return {}
    recorded = {}
    with contextlib.suppress(OSError, SettingsMismatch):  # reported when the directory is opened
        workdir = Path(values["workdir"].value).expanduser()
        Checkpoints(workdir / "checkpoints").check_format()
        recorded = with_todays_names(settings_class, read_settings(workdir) or {})
    # How other test data are read goes with them.
    elsewhere = "test_dataset" in names and values["test_dataset"].present
    of_other_images = ("test_split", "test_invert") if elsewhere else ()
    unbound = in_scope(settings_class, HOST, DISPLAY)
    for name in names:
        if is_present(settings_class, name, values) or name in (*unbound, *of_other_images):
            continue
        if name in recorded:
            values[name].value = _parsed(values[name], recorded[name], values["workdir"].value)
    return recorded


def _take_defaults_of_learner(settings_class: type, values: flags.FlagValues) -> None:
    """Sets the flags that are not given to the defaults of the learner."""
    if "learner" not in values:
        return

    def given(name: str) -> bool:
        return is_present(settings_class, name, values)

    # An unknown learner has none, and is reported when choices are checked.
    learner = values["learner"].value
    kind = getattr(from_flags(settings_class, values), "predicts", None)
    defaults = learner_defaults(settings_class, kind).get(learner, {})
    if not defaults or (given("outer") and values["outer"].value != LEARNERS[learner].outer):
        return  # they are for the estimator of the learner's paper
    # Test steps follow training steps, and tasks per step their size, where a command gives these.
    tied = {"test_inner_steps": "inner_steps", "meta_batch": "train_ways"}
    for name, value in defaults.items():
        follows = name in tied and tied[name] in values and given(tied[name])
        if name not in _SIZES and not given(name) and not follows:
            before, values[name].value = values[name].value, value
            if conflicts(from_flags(settings_class, values), name):
                values[name].value = before


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
        f"--{name}={recipe[name].value} and this run has {values[name].value}"
        for name, declared in declarations(settings_class).items()
        if declared.protocol and recipe[name].value != values[name].value
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
            _take_defaults_of_learner(settings_class, alone)
            found.append(alone)
    return found


def _flag_files(argv: Sequence[str]) -> list[str]:
    """Finds the flag files that a command names."""
    found = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("-flagfile", "--flagfile"):
            found.append(value if equals else following)
    return found
