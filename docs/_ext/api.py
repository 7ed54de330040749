"""Pages of the API reference, as MyST Markdown, from what the rooms of metajax export.

Docstrings are Markdown with sections of Google's style, and are rendered as such, whatever is in them.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

# Page by page, in the order of the index; those that do not exist are left out, and modules that define other
# names of `metajax.__all__` come last. Modules without `__all__` give what they define.
_ORDER = (
    *("learners", "rules", "inner", "objectives", "metagrads", "train", "evaluate", "episodes"),
    *(
        "metrics",
        "losses",
        "models",
        "nn",
        "data",
        "sharding",
        "zoo",
        "types",
        "trees",
        "cost",
        "rl",
        "deploy",
        "explain",
        "toys",
    ),
)
SECTIONS = (
    *("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples"),
    *("Reference", "References", "Note", "Notes"),
)
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):[ \t]*(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}[\w.` ,*]+?):\s+(.*)$", re.DOTALL)


def module_of(room: str) -> types.ModuleType:
    """Imports a room; `metajax.rules` is an attribute of metajax and no module of its name."""
    package, _, name = room.partition(".")
    return getattr(importlib.import_module(package), name, None) or importlib.import_module(room)


@functools.cache
def rooms() -> tuple[str, ...]:
    """Lists the rooms that have a page."""
    metajax = importlib.import_module("metajax")
    known = {module.name for module in pkgutil.iter_modules(metajax.__path__)}
    known |= set(getattr(metajax, "_ROOMS", ()))
    found = [f"metajax.{name}" for name in _ORDER if name in known]
    exported = {name for room in found for name in exports(room)}
    others = [getattr(metajax, name).__module__ for name in metajax.__all__ if name not in exported]
    return *found, *dict.fromkeys(others)


def exports(room: str) -> list[str]:
    """Lists the names that a room exports, or that a plain module defines for others."""
    module = module_of(room)
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=lambda name: (name.lower(), name))
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    return sorted(names, key=lambda name: (name.lower(), name))


def homes() -> dict[str, str]:
    """Maps each name of `metajax.__all__` to the full name under which it is documented."""
    metajax = importlib.import_module("metajax")
    found = {}
    for name in metajax.__all__:
        value = getattr(metajax, name)
        for room in rooms():
            if name in exports(room) and getattr(module_of(room), name) is value:
                found[name] = f"{room}.{name}"
                break
        else:
            raise LookupError(f"metajax.{name} is in no room of {', '.join(rooms())}.")
    return found


def pages() -> dict[str, str]:
    """Makes the pages: text by name, `index` among them."""
    found = {room.replace(".", "_"): room_page(room) for room in rooms()}
    found["index"] = _index()
    return found


def room_page(room: str) -> str:
    """Makes the page of a room; names in directives are those within the module."""
    module = module_of(room)
    parts = [f"# `{room}`", markdown(inspect.getdoc(module) or ""), ""]
    parts += [f"```{{py:module}} {room}\n```", ""]
    for name in exports(room):
        parts += [f"## {name}", "", *_entry(name, getattr(module, name)), ""]
    return "\n".join(parts) + "\n"


def first_sentence(text: str) -> str:
    """Returns the first paragraph of a docstring in one line, for tables."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return _escaped(paragraph).replace("|", "\\|")


def markdown(docstring: str) -> str:
    """Renders a docstring of Google's style as Markdown."""
    blocks, lines = [], inspect.cleandoc(docstring).split("\n")
    while lines:
        match = _SECTION.match(lines[0])
        if match:
            lines.pop(0)
            inside = [match[2]] if match[2] else []
            while lines and (not lines[0].strip() or lines[0].startswith(" ")):
                ends = match[2] or (len(lines) > 1 and not lines[1].startswith(" "))
                if not lines[0].strip() and ends:
                    break
                inside.append(lines.pop(0))
            # Text behind the colon goes on without indentation up to a blank line.
            while match[2] and lines and lines[0].strip():
                inside.append(lines.pop(0))
            blocks.append(_section(match[1], inside))
            continue
        text = [lines.pop(0)]
        while lines and not _SECTION.match(lines[0]):
            text.append(lines.pop(0))
        blocks.append(_prose("\n".join(text)))
    return "\n\n".join(block for block in blocks if block.strip())


def _section(title: str, lines: list[str]) -> str:
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    heading = f"**{title}**"
    if title in ("Args", "Attributes", "Raises", "References"):
        return f"{heading}\n\n" + "\n".join(_entries(body))
    if title in ("Reference", "Note"):
        return f"{heading}: {_prose(' '.join(body.split()))}"
    return f"{heading}\n\n{_prose(body)}"


def _entries(body: str) -> Iterator[str]:
    """Makes list items of `name: text` entries, whose further lines are indented."""
    entries: list[list[str]] = []
    for line in body.split("\n"):
        if line.startswith(" ") or not line.strip():
            if entries:
                entries[-1].append(line.strip())
        else:
            entries.append([line.strip()])
    for entry in entries:
        text = " ".join(filter(None, entry))
        match = _ENTRY.match(text)
        if match:
            yield f"- **`{match[1].strip('` ')}`**: {_prose(match[2])}"
        else:
            yield f"- {_prose(text)}"


def _prose(text: str) -> str:
    """Fences code: lines of `>>>` up to a blank one, and blocks that are indented behind a blank line."""
    out, lines, index = [], text.split("\n"), 0
    while index < len(lines):
        line = lines[index]
        before_blank = not out or not out[-1].strip()
        if line.lstrip().startswith(">>>"):
            block = []
            while index < len(lines) and lines[index].strip():
                block.append(lines[index])
                index += 1
            out += ["", "```pycon", *textwrap.dedent("\n".join(block)).split("\n"), "```", ""]
            continue
        if before_blank and line.startswith("    ") and line.strip():
            block = []
            while index < len(lines) and (
                lines[index].startswith("    ") or not lines[index].strip()
            ):
                block.append(lines[index])
                index += 1
            body = textwrap.dedent("\n".join(block)).strip("\n")
            out += ["```python", *body.split("\n"), "```", ""]
            continue
        out.append(_escaped(line))
        index += 1
    return "\n".join(out).strip("\n")


def _escaped(line: str) -> str:
    """Escapes what Markdown would take for HTML, mathematics, emphasis or a target, outside of code spans."""
    parts = re.split(r"(`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\\)([<*$\[\]])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(https?://[^\s)>,]+[^\s)>,.;])", r"<\1>", parts[i])
    return "".join(parts)


def signature_of(value: Any) -> str:
    """Writes a signature without annotations, with defaults; "()" where there is none to be had."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "()"
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        default = parameter.default
        if default is not inspect.Parameter.empty:
            default = _Shown(_default(default))
        parameters.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


class _Shown(str):
    """Text that is its own representation."""

    def __repr__(self) -> str:
        return str(self)


def _default(value: Any) -> str:
    text = repr(value)
    if inspect.isfunction(value) or inspect.isclass(value):
        text = value.__qualname__  # those with "<locals>" or "<lambda>" in it are left out below
    if len(text) > 40 or "<" in text or " at 0x" in text:
        return "..."
    return text


def _entry(name: str, value: Any) -> list[str]:
    """Writes the directive of an exported name, with the methods of a class in it."""
    if inspect.isclass(value):
        return _class(name, value)
    if inspect.isfunction(inspect.unwrap(value)) if callable(value) else False:
        return _directive("function", f"{name}{signature_of(value)}", inspect.getdoc(value) or "")
    return _data(name, value)


def _class(name: str, value: type) -> list[str]:
    protocol = getattr(value, "_is_protocol", False)
    head = name if protocol else f"{name}{signature_of(value)}"
    members = []
    for member, function in vars(value).items():
        if member.startswith("_") and not (protocol and member == "__call__"):
            continue
        if inspect.isfunction(function) and function.__doc__:
            members += _directive(
                "method", f"{member}{signature_of(function)}", inspect.getdoc(function) or "", 4
            )
        elif isinstance(function, property) and function.__doc__:
            members += _directive("property", member, function.__doc__, 4)
    text = value.__doc__ or ""
    if text.startswith(f"{value.__name__}("):  # what NamedTuple and dataclass write themselves
        text = ""
    return _directive("class", head, text, 6, members)


def _data(name: str, value: Any) -> list[str]:
    kind = type(value).__name__
    if isinstance(value, dict | types.MappingProxyType):
        names = ", ".join(f"`{key}`" for key in value)
        return _directive("data", name, f"A table by name: {names}.")
    text = inspect.getdoc(value) if not isinstance(value, str | int | float | tuple) else ""
    if typing.get_origin(value) is not None or kind == "UnionType":
        text = f"Alias of `{value}`."
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        text = f"An instance of `{kind}`."
    return _directive("data", name, text or f"A value of type `{kind}`.")


def _directive(
    kind: str, head: str, text: str, ticks: int = 5, inside: list[str] | None = None
) -> list[str]:
    fence = ":" * ticks
    return [f"{fence}{{py:{kind}}} {head}", "", markdown(text), "", *(inside or []), fence, ""]


def _index() -> str:
    lines = [
        "# API",
        "",
        "Names that most programs need are in `metajax` itself; the rest is in rooms, which load when first",
        "used. Each name is documented in its room.",
        "",
        "```{toctree}\n:hidden:\n",
        *(room.replace(".", "_") for room in rooms()),
        "```",
        "",
        "## Rooms",
        "",
        "| room | what is there |",
        "|---|---|",
    ]
    for room in rooms():
        what = first_sentence(inspect.getdoc(module_of(room)) or "")
        lines.append(f"| [`{room}`]({room.replace('.', '_')}.md) | {what} |")
    lines += ["", "## Names in `metajax`", "", "| name | what it does |", "|---|---|"]
    metajax = importlib.import_module("metajax")
    for name, home in sorted(homes().items(), key=lambda item: item[0].lower()):
        value = getattr(metajax, name)
        described = callable(value) or dataclasses.is_dataclass(value)
        what = (
            first_sentence(inspect.getdoc(value) or "")
            if described
            else "Ways to differentiate, by name."
        )
        lines.append(f"| `{home}` | {what} |")
    return "\n".join(lines) + "\n"
