"""Recipes by name: `--flagfile=omniglot_5way_1shot_maml`, from any folder and from an installed wheel."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from metajax.names import shown

from ..flags.settings import UsageError

RECIPES = Path(__file__).parents[1] / "recipes"
_DIRECTIVES = ("-flagfile", "--flagfile")


def with_recipes(argv: Sequence[str]) -> list[str]:
    """Replaces flag files that are not there by the recipes of their names.

    Args:
      argv: Program name and arguments.

    Returns:
      The arguments; `--flagfile=NAME` and `--flagfile=folder/NAME.flags` name the recipe's own file where
      the working directory has no such file. A file whose lines name a recipe is replaced by its lines.

    Raises:
      UsageError: If there is neither a file nor a recipe of that name.
    """
    found, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name not in _DIRECTIVES or not (equals or rest):
            found.append(argument)
        else:
            path = _file(value if equals else rest.pop(0))
            found += _lines(path, ()) or [f"{name}={path}"]
    return found


def _lines(path: str, within: Sequence[str]) -> list[str]:
    """Lists the flags of a file where it, or a file that it names, names a recipe; [] leaves it to absl."""
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError):  # which absl reports
        return []
    found, named = [], False
    for line in lines:
        name, equals, value = line.partition("=")
        if name not in _DIRECTIVES or not equals:
            found += [line] if line and not line.startswith(("#", "//")) else []
            continue
        inner = _file(value)
        if inner in (path, *within):  # a circle, which absl reports
            return []
        expanded = _lines(inner, (path, *within))
        named |= bool(expanded) or inner != value
        found += expanded or [f"--flagfile={inner}"]
    return found if named else []


def _file(path: str) -> str:
    """Finds a flag file, or the recipe of its name."""
    if Path(path).expanduser().exists():
        return path
    recipes = {recipe.stem: recipe for recipe in sorted(RECIPES.rglob("*.flags"))}
    name = Path(path).name.removesuffix(".flags")
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.5)
        rest = f"did you mean {' or '.join(near)}?" if near else f"recipes are in {RECIPES}."
        raise UsageError(f"--flagfile={shown(path)} is neither a file nor a recipe; {rest}")
    return str(recipes[name])
