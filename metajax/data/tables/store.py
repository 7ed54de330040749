"""Stores of tasks, made of a table by a recipe."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.data.tables import encoding as encodings
from metajax.data.tables.encoding import Encoding
from metajax.data.tables.grouping import Tasks, tasks_of
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.table import Table
from metajax.data.tables.values import missing_among
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.names import listed, shown

FEW_ROWS = 3  # rows that a note names
UNUSED = (
    0.1  # share of features without rows that is kept, as dropping them needs as much memory again
)


class Featurized(NamedTuple):
    """Features of texts, some of which have none; a featurizer may return it in place of the features.

    Attributes:
      values: Tree of arrays [M, ...].
      valid: Whether each text has features, [M] bool, such as a molecule that parses.
      notes: Lines for people; where some texts have no features, the first is about them.

    Example:
      >>> Featurized(np.ones((2, 3)), np.array([True, False])).valid.tolist()
      [True, False]
    """

    values: Any
    valid: np.ndarray
    notes: tuple[str, ...] = ()


Featurizer = Callable[[list[str]], Any]
"""Function from texts [M] to a tree of arrays [M, ...], or to an object like `Featurized`."""


class TableStore(NamedTuple):
    """A store of tasks that knows which row of the table is where.

    Attributes:
      rows: Store of G groups in P parents. Features are a dict with some of `text`, `smiles`, `numbers`,
        `missing` and `categories`; targets are None, classes [R] int32, or numbers [R] float32.
      groups: Name of each group.
      parents: Name of each parent; ("",) if there is one without a name.
      numbers: Number of each row of the store in the table's source, [R] int64.
      items: Number of each row's item among the training items, [R] int32, 0 for an unseen one; None
        without items.
      encoding: Statistics of the training rows.
      notes: Lines for people about rows and groups that were left out.
    """

    rows: Rows
    groups: tuple[str, ...]
    parents: tuple[str, ...]
    numbers: np.ndarray
    items: np.ndarray | None
    encoding: Encoding
    notes: tuple[str, ...]


def make_store(
    table: Table,
    recipe: Recipe,
    *,
    featurize: Mapping[str, Featurizer] | None = None,
    encoding: Encoding | None = None,
    least: int = 1,
    most: int | None = None,
) -> TableStore:
    """Makes a store of tasks of a table.

    Rows without text, molecule, target or group are left out, with a note. Rows whose features are equal
    share them, as assays share molecules, so each text is featurized and kept once.

    Args:
      table: Table.
      recipe: Parts of its columns.
      featurize: Featurizers of `text` and `smiles`, by these names.
      encoding: Statistics of the training rows; None computes them of these rows.
      least: Fewest rows of a task, or of a class.
      most: Most rows of a task, or of a class; None for no limit.

    Returns:
      The store, with its names and row numbers.

    Raises:
      DataError: If a column is missing, a target is no number or no class, no row or task is left, or all
        rows have the same class.

    Example:
      A store of tasks: each user rates films, and keeps the order of the ratings.

      >>> from metajax.data.tables import Recipe, Table
      >>> columns = {"user": ["ann", "bob", "ann"], "year": [1995, 1982, 2009], "stars": [4, 1, 3]}
      >>> recipe = Recipe(numbers=("year",), group="user", target="stars")
      >>> store = make_store(Table.of(columns), recipe)
      >>> store.groups, store.rows.targets.tolist(), store.numbers.tolist()
      (('ann', 'bob'), [4.0, 3.0, 1.0], [1, 3, 2])
    """
    recipe.check(table)
    table, notes = _filled(table, recipe)
    encoding = encoding or encodings.fit(table, recipe)
    features, rows, valid, more = _features(table, recipe, featurize or {}, encoding)
    notes += more
    table, rows = table.select(valid), rows[valid]
    tasks = tasks_of(table, recipe, least, most)
    table, rows = table.select(tasks.kept), rows[tasks.kept]
    features, rows = _compact(features, rows)
    items = encodings.codes(table.text(recipe.item), encoding.items) if recipe.item else None
    store = Rows.from_groups(
        features, tasks.groups, targets=tasks.targets, rows=rows, parents=tasks.parents
    )
    return _named(store, table, tasks, items, encoding, (*notes, *tasks.notes))


def _named(
    store: Rows,
    table: Table,
    tasks: Tasks,
    items: np.ndarray | None,
    encoding: Encoding,
    notes: tuple[str, ...],
) -> TableStore:
    """Sorts the names and numbers of rows as the store has sorted them."""
    order = np.argsort(tasks.groups, kind="stable")  # groups are numbered by parent already
    return TableStore(
        store,
        tasks.group_names,
        tasks.parent_names,
        table.numbers[order],
        None if items is None else items[order],
        encoding,
        notes,
    )


def _filled(table: Table, recipe: Recipe) -> tuple[Table, tuple[str, ...]]:
    """Leaves out rows without text, molecule, target, group or parent."""
    notes: tuple[str, ...] = ()
    parts = {
        name: table.text(name) for name in (recipe.smiles, recipe.group, recipe.parent) if name
    }
    if recipe.text:
        parts[" and ".join(recipe.text)] = recipe.texts(table)
    full = {name: np.array([bool(word.strip()) for word in words]) for name, words in parts.items()}
    if recipe.target and recipe.classes:
        words, missing = table.text(recipe.target), missing_among(recipe.classes)
        full[recipe.target] = np.array(
            [word in recipe.classes or word.strip().lower() not in missing for word in words]
        )
    if recipe.target and not recipe.classes:
        full[recipe.target] = ~np.isnan(table.floats(recipe.target))
    kept = np.ones(len(table), bool)
    for name, filled in full.items():
        empty = np.flatnonzero(~filled)
        if len(empty) == len(table):
            raise DataError(
                f"Column '{shown(name)}' of {table.source} is empty in all {len(table):,} rows; name another."
            )
        if len(empty):
            first = ", ".join(f"{number:,}" for number in table.numbers[empty[:FEW_ROWS]])
            more = " and others" if len(empty) > FEW_ROWS else ""
            notes += (
                f"{len(empty):,} of {len(table):,} rows have no '{shown(name)}' and are left out: rows "
                f"{first}{more}",
            )
        kept &= filled
    if not kept.any():
        raise DataError(f"No row of {table.source} is complete; {'; '.join(notes)}.")
    return (table if kept.all() else table.select(kept)), notes


def _features(
    table: Table, recipe: Recipe, featurize: Mapping[str, Featurizer], encoding: Encoding
) -> tuple[dict, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Makes the features of distinct rows.

    Returns:
      Features [M, ...] by name, index into them per row [R], whether a row has features [R] bool, and notes.
    """
    words = {"text": recipe.texts(table)} if recipe.text else {}
    if recipe.smiles:
        words["smiles"] = table.text(recipe.smiles)
    numbers = encodings.fields(table, recipe, encoding)
    keys = [*words.values(), *(_bytes(values) for values in numbers.values())]
    seen: dict[Any, int] = {}
    distinct = zip(*keys, strict=True) if len(keys) > 1 else iter(keys[0])
    rows = np.array([seen.setdefault(key, len(seen)) for key in distinct], np.int32)
    first = np.full(len(seen), len(rows), np.int64)
    np.minimum.at(first, rows, np.arange(len(rows)))
    features: dict = {name: values[first] for name, values in numbers.items()}
    valid, notes = np.ones(len(rows), bool), ()
    for name, texts in words.items():
        if name not in featurize:
            column = recipe.smiles if name == "smiles" else " and ".join(recipe.text)
            raise DataError(
                f"Column '{shown(column)}' has no featurizer; pass featurize={{'{name}': function}}, which "
                "maps a list of texts to an array."
            )
        mine = [texts[row] for row in first]
        made = featurize[name](mine)
        if hasattr(made, "valid"):
            bad = [text for text, good in zip(mine, made.valid, strict=True) if not good]
            if bad:
                notes += (
                    f"{len(bad):,} of {len(mine):,} different values of '{name}' have no features, and their "
                    f"rows are left out: {listed(bad, few=3)}",
                )
            valid &= np.asarray(made.valid)[rows]
            # The line above names the values, of which the featurizer does not know the rows.
            notes += tuple(getattr(made, "notes", ())[bool(bad) :])
            made = made.values
        features[name] = made
    if not valid.any():
        raise DataError(f"No row of {table.source} is left: {'; '.join(notes)}.")
    return features, rows, valid, notes


def _bytes(values: np.ndarray) -> Sequence[bytes]:
    """Makes a hashable key of each row of an array."""
    return [row.tobytes() for row in values]


def _compact(features: dict, rows: np.ndarray) -> tuple[dict, np.ndarray | None]:
    """Drops features that no row has, if they are many; rows without shared features need no index."""
    used, compact = np.unique(rows, return_inverse=True)
    count = len(next(iter(jax.tree.leaves(features))))
    if len(used) == len(rows):
        in_place = count == len(rows) and np.array_equal(rows, np.arange(count))
        return features if in_place else jax.tree.map(lambda leaf: leaf[rows], features), None
    if len(used) >= (1 - UNUSED) * count:
        return features, rows
    return jax.tree.map(lambda leaf: leaf[used], features), compact
