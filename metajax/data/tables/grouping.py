"""Groups, parents and targets of the rows of a table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.tables.recipe import Recipe, in_order
from metajax.data.tables.table import Table
from metajax.data.tables.values import parse_number
from metajax.errors import DataError
from metajax.names import listed, shown


class Tasks(NamedTuple):
    """The groups of rows.

    Attributes:
      kept: Row indices that are in tasks, [R] int64, in the order of the store within each group.
      groups: Group of each of these rows, [R] int64, numbered by parent.
      parents: Parent of each group, [G] int64.
      targets: Targets of these rows, [R] int32 or float32; None if the group of a row is its label.
      group_names: Name of each group.
      parent_names: Name of each parent.
      notes: Lines for people about groups that were left out.
    """

    kept: np.ndarray
    groups: np.ndarray
    parents: np.ndarray
    targets: np.ndarray | None
    group_names: tuple[str, ...]
    parent_names: tuple[str, ...]
    notes: tuple[str, ...]


def tasks_of(table: Table, recipe: Recipe, least: int, most: int | None) -> Tasks:
    """Groups the rows of a table.

    Args:
      table: Table without missing groups, parents or targets.
      recipe: Recipe with their columns.
      least: Fewest rows of a task, or of a class.
      most: Most rows of a task, or of a class; None for no limit.

    Returns:
      The groups, sorted by parent and by name.

    Raises:
      DataError: If a target is no class or number, nothing is left, or all rows have the same class.
    """
    targets = None
    if recipe.target:
        targets = targets_of(table, recipe)
    units = _units(table, recipe)
    kept, notes = _of_size(table, recipe, units, least, most)
    order = _order(table, recipe, kept)
    parents, groups = _keys(table, recipe, targets)
    pairs = [(parents[row], groups[row]) for row in order]
    by_class = () if recipe.group else recipe.classes
    names = _sorted_pairs(pairs, by_class)
    if not recipe.target and len(names) < 2:
        raise DataError(
            f"Column '{shown(recipe.group)}' of {table.source} has one value, '{shown(names[0][1])}'; tasks "
            "of classes need two or more."
        )
    number = {pair: place for place, pair in enumerate(names)}
    parent_names = list(dict.fromkeys(parent for parent, _ in names))
    place = {name: index for index, name in enumerate(parent_names)}
    return Tasks(
        kept=order,
        groups=np.array([number[pair] for pair in pairs], np.int64),
        parents=np.array([place[parent] for parent, _ in names], np.int64),
        targets=None if targets is None else targets[order],
        group_names=tuple(group for _, group in names),
        parent_names=tuple(parent_names),
        notes=(*notes, *_single_class(recipe, targets, units, order)),
    )


def targets_of(table: Table, recipe: Recipe) -> np.ndarray:
    """Reads the targets of rows.

    Args:
      table: Table without missing targets.
      recipe: Recipe with the target and its classes.

    Returns:
      Classes [R] int32, or numbers [R] float32.

    Raises:
      DataError: If a value is no class or number, or all rows have the same class.

    Example:
      >>> table = Table.of({"risk": ["bad", "good", "bad"]})
      >>> targets_of(table, Recipe(target="risk", classes=("good", "bad"))).tolist()
      [1, 0, 1]
    """
    if not recipe.classes:
        return table.floats(recipe.target).astype(np.float32)
    known = {name: place for place, name in enumerate(recipe.classes)}
    words = table.text(recipe.target)
    found = np.array([known.get(word, -1) for word in words], np.int32)
    for row in np.flatnonzero(found < 0).tolist():
        place = known.get(_plain(words[row]), -1)
        if place < 0:
            raise DataError(
                f"{table.where(row)}, column '{shown(recipe.target)}': '{shown(words[row], 40)}' is none of "
                f"the classes {listed(recipe.classes)}; mend the value, or add the class."
            )
        found[row] = place
    if len(present := np.unique(found)) == 1:
        only = recipe.classes[present[0]]
        raise DataError(
            f"All {len(found):,} rows of {table.source} have the class '{shown(only)}' in column "
            f"'{shown(recipe.target)}'; a target needs two classes."
        )
    return found


def _plain(word: str) -> str:
    """Writes a number such as 1.0 or 1e0 in the plain way; returns other words unchanged."""
    try:
        return f"{parse_number(word):.15g}"
    except ValueError:
        return word.strip()


def _units(table: Table, recipe: Recipe) -> list:
    """Finds the value of each row that has a size: its task, or its class within its parent."""
    parents = table.text(recipe.parent) if recipe.parent else [""] * len(table)
    if not recipe.group:
        return parents
    return list(zip(parents, table.text(recipe.group), strict=True))


def _of_size(
    table: Table, recipe: Recipe, units: Sequence, least: int, most: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Finds the rows of units of a size from `least` to `most`; raises DataError if there are none."""
    number: dict = {}
    ids = np.array([number.setdefault(unit, len(number)) for unit in units], np.int64)
    counts = np.bincount(ids)
    fits = (counts >= least) & (counts <= (most or counts.max()))
    word = f"values of '{shown(recipe.group or recipe.parent)}'" if recipe.task() else "tables"
    if not fits.any():
        raise DataError(
            f"None of {len(counts):,} {word} in {table.source} has {sizes(least, most)}: the largest has "
            f"{counts.max():,}, and {np.count_nonzero(counts >= max(1, least // 2)):,} have "
            f"{max(1, least // 2):,} or more; ask for fewer rows, or bring more."
        )
    if fits.all():
        return np.arange(len(ids)), ()
    note = (
        f"{np.count_nonzero(~fits):,} of {len(counts):,} {word} do not have {sizes(least, most)} and are "
        f"left out; {np.count_nonzero(fits):,} remain",
    )
    return np.flatnonzero(fits[ids]), note


def sizes(least: int, most: int | None) -> str:
    """Describes a range of sizes.

    Args:
      least: Fewest rows.
      most: Most rows; None for no limit.

    Returns:
      A phrase.

    Example:
      >>> sizes(2, None), sizes(2, 5)
      ('2 rows or more', '2 to 5 rows')
    """
    return f"{least:,} rows or more" if most is None else f"{least:,} to {most:,} rows"


def _order(table: Table, recipe: Recipe, kept: np.ndarray) -> np.ndarray:
    """Sorts rows by the column of the order: by number if it has numbers, else by text, such as dates."""
    if not recipe.order:
        return kept
    try:
        values = table.floats(recipe.order)
    except DataError:
        values = np.array(table.text(recipe.order))
    return kept[np.argsort(values[kept], kind="stable")]


def _keys(table: Table, recipe: Recipe, targets: np.ndarray | None) -> tuple[list, list]:
    """Finds the parent and the group of each row; see `Recipe`."""
    nothing = [""] * len(table)
    parents = table.text(recipe.parent) if recipe.parent else nothing
    if recipe.group:
        groups = table.text(recipe.group)
        return (parents if recipe.parent or not recipe.target else groups), groups
    if recipe.classes and targets is not None:
        return parents, [recipe.classes[target] for target in targets]
    return parents, parents


def _sorted_pairs(
    pairs: Sequence[tuple[str, str]], classes: Sequence[str]
) -> list[tuple[str, str]]:
    """Lists the different pairs of parent and group, by the classes, or by number where all are numbers."""
    different = set(pairs)
    groups = classes or in_order({group for _, group in different})
    groups = {name: place for place, name in enumerate(groups)}
    parents = {name: place for place, name in enumerate(in_order({pair[0] for pair in different}))}
    return sorted(different, key=lambda pair: (parents[pair[0]], groups[pair[1]]))


def _single_class(
    recipe: Recipe, targets: np.ndarray | None, units: Sequence, order: np.ndarray
) -> tuple[str, ...]:
    """Describes the tasks whose rows all have the same class, if there are any."""
    if targets is None or not recipe.classes:
        return ()
    first: dict = {}
    mixed = set()
    for row in order:
        if first.setdefault(units[row], targets[row]) != targets[row]:
            mixed.add(units[row])
    single = [unit for unit in first if unit not in mixed]
    if not single:
        return ()
    return (
        f"{len(single):,} of {len(first):,} tasks have rows of one class alone: "
        f"{listed(' '.join(unit).strip() if isinstance(unit, tuple) else unit for unit in single)}",
    )
