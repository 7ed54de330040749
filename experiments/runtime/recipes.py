"""Recipes by name: `--flagfile=omniglot_5way_1shot_maml`, from any folder and from an installed wheel."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from metajax.names import shown

from ..flags.settings import UsageError

RECIPES = Path(__file__).parents[1] / "recipes"


def with_recipes(argv: Sequence[str]) -> list[str]:
    """Replaces flag files that are not there by the recipes of their names.

    Args:
      argv: Program name and arguments.

    Returns:
      The arguments; `--flagfile=NAME` and `--flagfile=folder/NAME.flags` name the recipe's own file where
      the working directory has no such file.

    Raises:
      UsageError: If there is neither a file nor a recipe of that name.
    """
    found = list(argv)
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in ("-flagfile", "--flagfile"):
            continue
        if equals:
            found[i] = f"{name}={_file(value)}"
        elif i + 1 < len(found):
            found[i + 1] = _file(argv[i + 1])
    return found


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
