"""The flags of a trial: the flags of the command, with the values that the trial tries."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from absl import flags

from ..flags.settings import (
    UsageError,
    check_fields,
    conflicts,
    declarations,
    define_flags,
    given,
)
from ..flags.settings import defaults as unset_values
from ..flags.training import check_together
from ..runtime.flag_sources import read_flags
from .options import SearchSettings
from .space import Choice, Space

# Flags of a command that are the search's own, or that each run is given.
_NOT_PASSED_ON = ("workdir", "mode", "skip_test", "plan", "published", "published_by")


class Base(NamedTuple):
    """What all trials of a search have in common.

    Attributes:
      driver: Name of the driver.
      settings_class: Settings of the driver.
      given: Flags of the command, by name.
      space: Options that trials try.
      own: Values that the command itself gives to options of the space.
      steps: Meta-steps of the last runs.
      trial_steps: Meta-steps of a trial.
      trial_every: Meta-steps between validations of a trial.
    """

    driver: str
    settings_class: type
    given: dict[str, Any]
    space: Space
    own: dict[str, Any]
    steps: int
    trial_steps: int
    trial_every: int


def make_base(driver: str, settings_class: type, settings: Any, space: Space) -> Base:
    """Takes the driver's flags out of a command, and checks them before anything runs.

    Args:
      driver: Name of the driver.
      settings_class: Settings of the driver.
      settings: Settings of the command.
      space: Options that trials try.

    Returns:
      Facts that all trials share.

    Raises:
      UsageError: If flags do not go together, or an option of the space goes with none of them.
    """
    own = unset_values(SearchSettings)
    passed = {
        name: getattr(settings, name)
        for name in unset_values(settings_class)
        if name in given(settings) and name not in (*own, *_NOT_PASSED_ON, *space)
    }
    steps = settings.trial_steps or settings.steps
    # Several validations, so that a hopeless trial can end early.
    every = settings.eval_every or steps
    every = every if "eval_every" in passed else max(1, min(steps // 5, every))
    own_values = {name: getattr(settings, name) for name in space if name in given(settings)}
    base = Base(driver, settings_class, passed, space, own_values, settings.steps, steps, every)
    first = {name: v.values[0] if isinstance(v, Choice) else v.low for name, v in space.items()}
    chosen: dict[str, Any] = {}
    for name in space:
        if asks(base, chosen, name):
            chosen[name] = first[name]
    numbers = {name for name, v in space.items() if not isinstance(v, Choice)}
    check_together(settings_of(base, {n: v for n, v in chosen.items() if n not in numbers}))
    for name in space:
        _check_asked_somewhere(base, name)
    return base


def asks(base: Base, chosen: Mapping[str, Any], name: str) -> bool:
    """Decides whether an option goes with the values chosen before it.

    Args:
      base: Facts that all trials share.
      chosen: Values by option.
      name: Name of another option of the space.

    Returns:
      Whether trials with these values have the option.
    """
    settings = settings_of(base, chosen)
    needed = declarations(settings)[name].needs
    if needed and getattr(settings, needed) == unset_values(settings)[needed]:
        return False
    return not conflicts(settings, name)


def settings_of(base: Base, chosen: Mapping[str, Any]) -> Any:
    """Reads the settings of a trial, without the command's flags that do not go with its values.

    Args:
      base: Facts that all trials share.
      chosen: Values by option.

    Returns:
      Settings of the driver, with the defaults of the chosen learner.

    Raises:
      UsageError: If a value is outside the limits of its option.
    """
    return _read(base, {**fitting(base, chosen), **chosen})


def fitting(base: Base, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out flags of the command that a trial's values exclude, such as another learner's options.

    Args:
      base: Facts that all trials share.
      chosen: Values by option.

    Returns:
      Values of the command's other flags, by name.
    """
    kept = dict(base.given)
    while (name := next(_excluded(base, kept, chosen), None)) is not None:
        del kept[name]
    return kept


def flags_of(base: Base, chosen: Mapping[str, Any], **more: Any) -> list[str]:
    """Lists the flags of a run.

    Args:
      base: Facts that all trials share.
      chosen: Values by option.
      **more: Further values, which win.

    Returns:
      Flags such as "--ways=5", read back to the same values.
    """
    return _lines({**fitting(base, chosen), **chosen, **more})


def trial_flags(base: Base, chosen: Mapping[str, Any]) -> list[str]:
    """Lists the flags of a trial, which is shorter than the last runs and is not tested."""
    return flags_of(base, chosen, steps=base.trial_steps, eval_every=base.trial_every)


def _read(base: Base, values: Mapping[str, Any]) -> Any:
    parser = flags.FlagValues()
    define_flags(base.settings_class, parser)
    settings = read_flags(base.settings_class, ["search", *_lines(values)], parser)
    check_fields(settings)
    return settings


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _excluded(base: Base, kept: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[str]:
    """Yields flags of the command that do not go with the values of the space."""
    settings = _read(base, {**kept, **chosen})
    unset = unset_values(settings)
    by_search = {*base.space, *(("outer",) if "learner" in base.space else ())}
    for name, declared in declarations(settings).items():
        value = getattr(settings, name)
        if name not in kept or value in (unset[name], None, *declared.neutral) or value is False:
            continue
        if any(other in by_search for other, _, _ in conflicts(settings, name)):
            yield name


def _check_asked_somewhere(base: Base, name: str) -> None:
    """Raises UsageError for an option that no value of the others goes with."""
    declared = declarations(base.settings_class)[name]
    if declared.needs and declared.needs not in (*base.given, *base.space):
        raise UsageError(f"--search: {name} needs --{declared.needs}.")
    settings = settings_of(base, {})
    for other, allowed in declared.only.items():
        if other == "outer" and "learner" in base.space and other not in base.space:
            continue
        tried = base.space.get(other)
        if not isinstance(tried, Choice):
            if tried is not None:
                continue
            tried = Choice((settings.in_force(other),))
        if not set(tried.values) & set(allowed):
            values = ", ".join(map(str, tried.values))
            raise UsageError(
                f"--search: {name} does not go with --{other}={values}; it is for "
                f"{', '.join(map(str, allowed))}."
            )
