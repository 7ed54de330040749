"""Pages of every driver's flags, from the settings classes that define them."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

# Command -> module of the settings, class. A driver's docstring is that of this module.
DRIVERS = {
    "experiments.fewshot": ("experiments.fewshot.driver", "FewshotSettings"),
    "experiments.regression": ("experiments.regression.driver", "RegressionSettings"),
    "experiments.completion": ("experiments.completion.driver", "CompletionSettings"),
    "experiments.learn_to_reweight": ("experiments.learn_to_reweight", "ReweightSettings"),
    "experiments.learn_to_regularise": ("experiments.learn_to_regularise", "RegulariseSettings"),
    "experiments.pod.check": ("experiments.pod.check", "PodSettings"),
}


def settings_of(driver: str) -> type:
    """Finds the settings class of a driver."""
    module, name = DRIVERS[driver]
    return getattr(importlib.import_module(module), name)


def fields_of(driver: str) -> list[dataclasses.Field]:
    """Lists the flags of a driver, as fields whose metadata has `help` and mostly `section`."""
    return [f for f in dataclasses.fields(settings_of(driver)) if f.metadata.get("help")]


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
            f"{len(fields_of(driver))} |"
        )
    lines += ["", "```{toctree}\n:hidden:\n", *(d.replace(".", "_") for d in DRIVERS), "```", ""]
    return found | {"index": "\n".join(lines)}


def driver_page(driver: str) -> str:
    """Makes the page of a driver: its flags by section, in the order of the sections."""
    sections: dict[str, list[dataclasses.Field]] = {}
    for field in fields_of(driver):
        sections.setdefault(str(field.metadata.get("section") or "Flags"), []).append(field)
    lines = [f"# `python -m {driver}`", "", _summary(driver), ""]
    for section in sorted(sections, key=_order):
        lines += [f"## {section}", ""]
        for field in sections[section]:
            lines += [f"(flag-{driver.replace('.', '-')}-{field.name})=", *_flag(field), ""]
    return "\n".join(lines)


def _order(section: str) -> int:
    names = list(getattr(importlib.import_module("experiments.flags.settings"), "SECTIONS", ()))
    return names.index(section) if section in names else len(names)


def _flag(field: dataclasses.Field) -> list[str]:
    text = _markdown(" ".join(str(field.metadata["help"]).split()))
    if choices := field.metadata.get("choices"):
        text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return [f"`--{field.name}`{_default(field.default)}", f": {text}"]


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
    module = importlib.import_module(DRIVERS[driver][0])
    first = (inspect.getdoc(module) or "").split("\n\n")[0]
    return _markdown(" ".join(first.split()))
