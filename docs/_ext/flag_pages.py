"""Pages of every driver's flags, from the settings classes that define them."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import types
from typing import Any, NamedTuple

DRIVERS = (
    *("experiments.fewshot", "experiments.regression", "experiments.completion"),
    *("experiments.pertask", "experiments.tables"),
    *("experiments.rl", "experiments.imitation"),
    *("experiments.learn_to_reweight", "experiments.learn_to_regularise", "experiments.pod.check"),
    "experiments.search",
)


class Flag(NamedTuple):
    """A flag of a driver.

    Attributes:
      name: Name without dashes.
      default: Value if it is not given.
      help: Text of `--help`.
      section: Heading in `--help`.
      choices: Allowed values, if they are listed.
      was: Former names.
    """

    name: str
    default: Any
    help: str
    section: str
    choices: tuple[str, ...]
    was: tuple[str, ...]


def module_of(driver: str) -> types.ModuleType:
    """Imports the module that holds a driver: a package's `driver`, or the command's own."""
    inside = f"{driver}.driver"
    return importlib.import_module(inside if _exists(inside) else driver)


def settings_of(driver: str) -> type:
    """Finds the settings class of a driver: the one of its package that has the most options."""
    found = [
        value
        for name, value in vars(module_of(driver)).items()
        if name.endswith("Settings")
        and dataclasses.is_dataclass(value)
        and value.__module__.startswith(driver)
    ]
    return max(found, key=lambda value: len(dataclasses.fields(value)))


@functools.cache
def flags_of(driver: str) -> tuple[Flag, ...]:
    """Lists the flags of a driver, by what the fields of its settings declare."""
    return tuple(_flag_of(field) for field in dataclasses.fields(settings_of(driver)))


def _flag_of(field: dataclasses.Field) -> Flag:
    """Reads a field whose metadata are a declaration, or its parts."""
    declared = field.metadata.get("declaration")

    def part(name: str, default: Any) -> Any:
        if declared is None:
            return field.metadata.get(name) or default
        return getattr(declared, name, None) or default

    limits = getattr(declared, "limits", None)
    choices = getattr(limits, "choices", None) or part("choices", ())
    text = " ".join(str(part("help", "")).split())
    section = str(part("section", "Flags"))
    return Flag(field.name, field.default, text, section, tuple(choices), tuple(part("was", ())))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the driver is a module and no package
        return False


def pages() -> dict[str, str]:
    """Makes the pages: text by name, `index` among them."""
    found = {driver.replace(".", "_"): driver_page(driver) for driver in DRIVERS}
    lines = [
        "# Flags",
        "",
        "Every flag of every driver, written from the classes that define them. A flag is given as",
        "`--name=value`; one that is true or false also as `--name` and `--noname`. `--flagfile=FILE`",
        "reads a file of flags, such as a recipe; of two values for a flag the later counts.",
        "",
        "| command | what it does | flags |",
        "|---|---|---:|",
    ]
    for driver in DRIVERS:
        lines.append(
            f"| [`python -m {driver}`]({driver.replace('.', '_')}.md) | {_summary(driver)} | "
            f"{len(flags_of(driver))} |"
        )
    lines += ["", "```{toctree}\n:hidden:\n", *(d.replace(".", "_") for d in DRIVERS), "```", ""]
    return found | {"index": "\n".join(lines)}


def driver_page(driver: str) -> str:
    """Makes the page of a driver: its flags by section, in the order of the sections."""
    sections: dict[str, list[Flag]] = {}
    for flag in flags_of(driver):
        sections.setdefault(flag.section, []).append(flag)
    lines = [f"# `python -m {driver}`", "", _summary(driver), ""]
    for section in sorted(sections, key=_order):
        lines += [f"## {section}", ""]
        for flag in sections[section]:
            lines += [f"(flag-{driver.replace('.', '-')}-{flag.name})=", *_entry(flag), ""]
    return "\n".join(lines)


def _order(section: str) -> int:
    settings = importlib.import_module("experiments.flags.settings")
    names = list(getattr(settings, "SECTIONS", ()))
    return names.index(section) if section in names else len(names)


def _entry(flag: Flag) -> list[str]:
    text = _markdown(flag.help)
    if flag.choices:
        text += f" One of {', '.join(f'`{choice}`' for choice in flag.choices)}."
    if flag.was:
        text += f" Formerly {', '.join(f'`--{name}`' for name in flag.was)}."
    return [f"`--{flag.name}`{_default(flag.default)}", f": {text}"]


def _default(value: Any) -> str:
    if value is None or value == "" or value is dataclasses.MISSING:
        return ""
    return f" (default `{str(value).lower() if isinstance(value, bool) else value}`)"


def _markdown(text: str) -> str:
    """Escapes what Markdown reads; flags and paths stand as code."""
    text = re.sub(r"(?<![\w`-])(--\w+(?:=[\w./]+)?)", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if i % 2 else re.sub(r"([<*$\[\]|_])", r"\\\1", part) for i, part in enumerate(parts)
    )


def _summary(driver: str) -> str:
    first = (inspect.getdoc(module_of(driver)) or "").split("\n\n")[0]
    return _markdown(" ".join(first.split()))
