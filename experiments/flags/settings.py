"""Options as fields of frozen dataclasses, each declared once.

A field's declaration is its flag, its line of `--help`, its checks, and its scope, from which follow the
settings that a work directory is bound to, that a test may change and that all processes share.
"""

import dataclasses
import functools
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from metajax.names import shown
from metajax.zoo.learners import LEARNERS
from metajax.zoo.options import Limits, Option

SECTIONS = (
    "Data",
    "Environment",
    "Episodes",
    "Learner",
    "Inner loop",
    "Training",
    "Start",
    "Adversary",
    "Test",
    "Devices",
    "Run",
    "Search",
)
# Scopes: what else has to be the same where a setting is another one.
RUN = "run"  # Decides what is trained: a work directory is bound to it.
TEST = "test"  # Decides how a trained run is tested: an evaluation may change it.
HOST = "host"  # Where a run happens: every process and every command may have another one.
DISPLAY = "display"  # What is printed and logged, and when a run stops or goes on.
SCOPES = (RUN, TEST, HOST, DISPLAY)

LONGEST_LINE = 4000  # characters of a message
# "experiments" in the checkout and "metajax.experiments" in an installed wheel.
PACKAGE = __name__.removesuffix(".flags.settings")


class UsageError(ValueError):
    """Flags that make no sense, alone or together; the message is one line for the user."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message gives the cause and what to try."""


class Declaration(NamedTuple):
    """How an option was declared.

    Attributes:
      help: Text of `--help`.
      section: Heading in `--help`, one of SECTIONS.
      limits: Allowed values.
      scope: One of SCOPES.
      protocol: Whether a published number is for one value only. Settings of how long or how well a recipe
        is trained are not part of the protocol.
      shared: Whether all processes of a run must have the same value.
      basic: Whether `--help` shows it; `--helpfull` shows all.
      was: Former names, accepted for one more release.
      only: Values of other options that it goes with, by the other's name.
      never: Values of other options that it does not go with, by the other's name.
      needs: Option that has to be given too.
      neutral: Values besides the default that go with everything.
    """

    help: str
    section: str
    limits: Limits
    scope: str
    protocol: bool
    shared: bool
    basic: bool
    was: tuple[str, ...]
    only: Mapping[str, Sequence[Any]]
    never: Mapping[str, Sequence[Any]]
    needs: str | None
    neutral: tuple[Any, ...]


def option(
    default: Any,
    help: str,
    *,
    section: str,
    choices: Sequence[str] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    scope: str = RUN,
    protocol: bool | None = None,
    shared: bool | None = None,
    basic: bool = False,
    was: Sequence[str] = (),
    only: Mapping[str, Sequence[Any]] | None = None,
    never: Mapping[str, Sequence[Any]] | None = None,
    needs: str | None = None,
    neutral: Sequence[Any] = (),
) -> Any:
    """Declares a field of a settings class.

    Args:
      default: Value if the flag is not given; the field's annotation gives the flag's type.
      help: Effect of the option, with its unit.
      section: Heading in `--help`, one of SECTIONS.
      choices: Allowed values.
      least: Smallest allowed number, inclusive.
      most: Largest allowed number, inclusive.
      above: Number that the value must exceed.
      scope: One of SCOPES.
      protocol: Whether a published number is for one value only; by default for run and test.
      shared: Whether all processes of a run must have the same value; by default all but host.
      basic: Whether `--help` shows it.
      was: Former names of the flag.
      only: Values of other options that it goes with, by the other's name; its default goes with all.
      never: Values of other options that it does not go with.
      needs: Option that has to be given too.
      neutral: Values besides the default that go with everything.

    Returns:
      A dataclass field.

    Raises:
      ValueError: If the section or the scope is unknown.
    """
    if section not in SECTIONS:  # --help would leave it out
        raise ValueError(f"section is {section!r}; use one of {', '.join(SECTIONS)}.")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; use one of {', '.join(SCOPES)}.")
    declaration = Declaration(
        help=help,
        section=section,
        limits=Limits(tuple(choices) if choices else None, least, most, above),
        scope=scope,
        protocol=scope in (RUN, TEST) if protocol is None else protocol,
        shared=scope != HOST if shared is None else shared,
        basic=basic,
        was=tuple(was),
        only=only or {},
        never=never or {},
        needs=needs,
        neutral=tuple(neutral),
    )
    return dataclasses.field(default=default, metadata={"declaration": declaration})


def redeclare(settings_class: type, name: str, default: Any, **changes: Any) -> Any:
    """Declares an inherited option again, with another default.

    Args:
      settings_class: Class that has the option.
      name: Name of the option.
      default: New default.
      **changes: New fields of the declaration, such as `help`.

    Returns:
      A dataclass field.
    """
    declared = declarations(settings_class)[name]._replace(**changes)
    return dataclasses.field(default=default, metadata={"declaration": declared})


def declarations(settings: Any) -> dict[str, Declaration]:
    """Returns the declaration of each option of a settings class, or of settings."""
    return {f.name: f.metadata["declaration"] for f in dataclasses.fields(settings)}


def defaults(settings: Any) -> dict[str, Any]:
    """Returns the defaults of a settings class, or of settings, by name."""
    return {field.name: field.default for field in dataclasses.fields(settings)}


def in_scope(settings: Any, *scopes: str) -> tuple[str, ...]:
    """Returns the names of the options of some scopes."""
    return tuple(n for n, declared in declarations(settings).items() if declared.scope in scopes)


@functools.cache
def former_names(settings_class: type) -> dict[str, str]:
    """Returns today's name by former name."""
    return {
        old: name for name, declared in declarations(settings_class).items() for old in declared.was
    }


def with_todays_names(settings_class: type, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the options in a record of an earlier release."""
    renamed = former_names(settings_class)
    found = {name: value for name, value in recorded.items() if name not in renamed}
    for old, name in renamed.items():
        # Two former options may be one today, of which a record has at most one.
        if recorded.get(old) is not None or (old in recorded and name not in found):
            found[name] = recorded[old]
    return found


def choice_options(name: str, registry: Mapping[str, Any], *, flag: str, section: str) -> type:
    """Makes a settings class of the options that only some choices of another option have.

    Args:
      name: Name of the class.
      registry: Entry by choice; its `options` are declarations by name.
      flag: The other option.
      section: Heading in `--help`.

    Returns:
      A frozen dataclass; every field is None unless the flag is given.
    """
    owners: dict[str, dict[str, Option]] = {}
    for choice, entry in registry.items():
        for own, declared in entry.options.items():
            owners.setdefault(own, {})[choice] = declared
    made = []
    for own, by_choice in owners.items():
        first = next(iter(by_choice.values()))
        for choice, declared in by_choice.items():
            if (declared.type, declared.limits, declared.protocol) != (
                first.type,
                first.limits,
                first.protocol,
            ):
                raise ValueError(
                    f"{own} of {choice} has another type or other limits than that of "
                    f"{next(iter(by_choice))}; options of one name are one flag, so make them equal."
                )
        field = option(
            None,
            _shared_help(by_choice),
            section=section,
            was=tuple(dict.fromkeys(old for each in by_choice.values() for old in each.was)),
            only={flag: tuple(by_choice), **first.only},
            protocol=first.protocol,
            **first.limits._asdict(),
        )
        made.append((own, first.type | None, field))
    return dataclasses.make_dataclass(name, made, frozen=True)


def _shared_help(by_choice: Mapping[str, Option]) -> str:
    """Joins the help texts of an option that several choices have: those alike once."""
    texts: dict[tuple[str, Any], list[str]] = {}
    for choice, declared in by_choice.items():
        texts.setdefault((declared.help, declared.default), []).append(choice)
    return " ".join(
        f"{', '.join(choices)}: {text}" + ("" if default is None else f" [{_shown(default)}]")
        for (text, default), choices in texts.items()
    )


def define_flags(settings_class: type, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines an absl flag for each field, named and typed like it, and its former names."""
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
        declared = field.metadata["declaration"]
        define[kind](field.name, field.default, declared.help, flag_values=values)
        for old in declared.was:
            flags.DEFINE_alias(old, field.name, flag_values=values)


def from_flags(settings_class: type, values: flags.FlagValues = flags.FLAGS) -> Any:
    """Reads the parsed flags into a settings object, which remembers those that the command gives."""
    names = [field.name for field in dataclasses.fields(settings_class)]
    settings = settings_class(**{name: values[name].value for name in names})
    present = frozenset(name for name in names if is_present(settings_class, name, values))
    object.__setattr__(settings, "_given", present)
    return settings


def is_present(settings_class: type, name: str, values: flags.FlagValues) -> bool:
    """Returns whether a command gives a flag, by its name or by a former one."""
    declared = declarations(settings_class)[name]
    return any(values[each].present for each in (name, *declared.was))


def given(settings: Any) -> frozenset[str]:
    """Lists the options that a command gives, as opposed to defaults of the driver or the learner.

    Args:
      settings: Settings of `from_flags`; of others, and of copies with other values, all options are given.

    Returns:
      Names of options.
    """
    return getattr(settings, "_given", frozenset(defaults(settings)))


def check_fields(settings: Any) -> None:
    """Raises UsageError for the first field outside its choices or bounds."""
    for name, declared in declarations(settings).items():
        value = getattr(settings, name)
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"--{name}={value} holds a zero byte, which no name does.")
        try:
            declared.limits.check(f"--{name}", value)
        except ValueError as error:
            raise UsageError(str(error)) from error


def check_combinations(settings: Any) -> None:
    """Raises UsageError for the first option that does not go with another one.

    An option with its default value goes with everything. Options that a choice implies, such as the
    estimator of a learner's paper, are found by `settings.in_force(name)`.
    """
    unset = defaults(settings)
    for name, declared in declarations(settings).items():
        value = getattr(settings, name)
        if value in (unset[name], None, *declared.neutral) or value is False:
            continue
        if declared.needs and getattr(settings, declared.needs) == unset[declared.needs]:
            raise UsageError(f"--{name}={_shown(value)} needs --{declared.needs}.")
        for other, against, allowed in conflicts(settings, name):
            remedy = f"; it is for {', '.join(map(_shown, allowed))}" if allowed else ""
            raise UsageError(
                f"--{name}={_shown(value)} does not go with --{other}={_shown(against)}{remedy}; leave out "
                "one of the two."
            )


def conflicts(settings: Any, name: str) -> list[tuple[str, Any, Sequence[Any] | None]]:
    """Finds the options that the value of another one does not go with.

    Args:
      settings: Settings.
      name: Name of the other option, whose value is not its default.

    Returns:
      Name and value of each option, and the values that would go with it; None for all but this one.
    """
    declared = declarations(settings)[name]
    found: list[tuple[str, Any, Sequence[Any] | None]] = []
    for other, allowed in declared.only.items():
        if (value := _in_force(settings, other)) not in allowed:
            found.append((other, value, allowed))
    for other, refused in declared.never.items():
        if (value := _in_force(settings, other)) in refused:
            found.append((other, value, None))
    return found


def _in_force(settings: Any, name: str) -> Any:
    find = getattr(settings, "in_force", None)
    return find(name) if find else getattr(settings, name)


def in_one_line(text: Any) -> str:
    """Puts a message into one line: control characters escaped, long words and a long whole shortened."""
    return shown(" ".join(shown(word, 500) for word in str(text).split()), LONGEST_LINE)


def help_text(settings_class: type, docstring: str, *, full: bool = False) -> str:
    """Renders a driver's docstring and its options under their sections.

    Args:
      settings_class: Settings of the driver.
      docstring: Text above the options.
      full: Whether to show all options; else the basic ones, or all if none is basic.

    Returns:
      Text of `--help`.
    """
    fields = dataclasses.fields(settings_class)
    basic = [field for field in fields if field.metadata["declaration"].basic]
    chosen = fields if full or not basic else basic
    lines = [docstring.strip().replace("python -m experiments.", f"python -m {PACKAGE}.")]
    for section in SECTIONS:
        found = [f for f in chosen if f.metadata["declaration"].section == section]
        if found:
            lines += ["", f"{section}:", *(line for field in found for line in _help_lines(field))]
    own = learner_defaults(settings_class) if full else {}
    if own:
        lines += ["", "Defaults of learners, where they are not the ones above:"]
        for learner, values in own.items():
            flags_of = " ".join(f"--{name}={_shown(value)}" for name, value in values.items())
            lines += textwrap.wrap(
                f"{learner}: {flags_of}", 90, initial_indent="  ", subsequent_indent="      "
            )
    if len(chosen) < len(fields):
        lines += ["", f"These are {len(chosen)} of {len(fields)} options; --helpfull shows all."]
    lines += [
        "",
        "A file of flags is read by --flagfile=FILE, a recipe by --flagfile=NAME; later flags win.",
    ]
    return "\n".join(lines)


def learner_defaults(settings_class: type, kind: str | None = None) -> dict[str, dict[str, Any]]:
    """Lists the defaults that learners have of their own, among the options of a driver.

    Args:
      settings_class: Settings of the driver.
      kind: Kind of targets; None for that of the driver's defaults.

    Returns:
      Values by option, by learner.
    """
    names = {field.name for field in dataclasses.fields(settings_class)}
    kind = kind or getattr(settings_class(), "predicts", None)
    found = {}
    for learner, entry in LEARNERS.items():
        preferred = entry.defaults.get(kind, {})
        own = {n: v for n, v in preferred.items() if n in names}
        if "train_ways" in preferred and "train_ways" not in names:
            own.pop("meta_batch", None)  # fewer tasks, because each would have more ways
        if own and kind in entry.predicts:
            found[learner] = own
    return found


def _help_lines(field: dataclasses.Field) -> list[str]:
    declared = field.metadata["declaration"]
    text = declared.help
    if declared.limits.choices:
        text += f" One of {', '.join(declared.limits.choices)}."
    if field.default not in (None, ""):
        text += f" [{_shown(field.default)}]"
    return [f"  --{field.name}", *(f"      {line}" for line in textwrap.wrap(text, 90))]


def _shown(value: Any) -> str:
    """Shows a value as a flag's."""
    return str(value).lower() if isinstance(value, bool) else str(value)
