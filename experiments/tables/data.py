"""Real tables as cells, and the fixed list of their splits into a support set and queries."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax import trees
from metajax.data.tables import Recipe, Table, classes_of, load_table, make_store
from metajax.errors import DataError

from ..flags.columns import FieldOptions
from ..setup.columns import check_words, is_number, read_columns, recipe_of_features
from ..setup.row_tests import split

OF_SKLEARN = ("breast_cancer", "wine", "iris")
ON_DISK = ("diabetes", "blood", "creditg", "taiwan", "bank")
NAMES = (*OF_SKLEARN, *ON_DISK, "table")
# Most classes of a target: numbers of more values are no classes.
_MOST_WORDS, _MOST_NUMBERS = 100, 20


class RealTable(NamedTuple):
    """A table with a class for each row.

    Attributes:
      name: Name of the table.
      cells: Cells [R, D] float32: numbers, then the codes of categories from 1 on; NaN is missing. Numbers
        are standardized in 64 bits, as 32 round a Unix time to two minutes. Learner and baselines standardize
        by the support rows, which undoes this: no statistic of queries reaches them.
      labels: Classes [R] int32 in [0, N).
      classes: Names of the classes.
      categories: Number of categories of each column, 0 for numbers.
      numbers: Numbers of the rows in the file, or from 1 on, [R].
      notes: Lines for people about rows that are left out.
    """

    name: str
    cells: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    numbers: np.ndarray
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Hashes cells and labels."""
        digest = hashlib.sha256(self.name.encode())
        for array in (self.cells.astype("<f4"), self.labels.astype("<i4")):
            digest.update(f"{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()


class Splits(NamedTuple):
    """Splits of a table for one support size.

    Attributes:
      supports: Support rows [S, K] of each split.
      queries: Query rows [S, Q] of each split.
    """

    supports: np.ndarray
    queries: np.ndarray


def read_real(name: str, data_dir: str, target: str, columns: FieldOptions) -> RealTable:
    """Reads a table by its name.

    Args:
      name: One of NAMES.
      data_dir: Folder of the tables on disk, or the file of "table".
      target: Column to predict of "table".
      columns: Columns of features of "table".

    Returns:
      The table. Rows without a class are left out, with a note.

    Raises:
      DataError: If files are missing or broken, or the target has no classes.
      ImportError: If scikit-learn is not installed.
      UsageError: If the target is named as a feature.
    """
    if name in OF_SKLEARN:
        return of_table(name, *_of_sklearn(name))
    if name != "table":
        splits = load_table(name, data_dir=data_dir or None, split="whole")
        return of_table(name, splits.test, splits.recipe, splits.notes)
    if not data_dir:
        raise DataError(
            "--test_dataset=table is a file of yours; name it, such as --data_dir=loans.csv."
        )
    table = read_columns(data_dir, columns, (target,))
    check_words(table, target, remedy="write every class as a word, such as c1")
    numeric = is_number(table, target)
    classes = classes_of(
        table,
        target,
        most=_MOST_NUMBERS if numeric else _MOST_WORDS,
        remedy="make a column of a few bands of them, as the learner predicts classes"
        if numeric
        else "join some of them, or use another --target",
    )
    recipe = recipe_of_features(table, columns, parts={"target": target})
    return of_table(name, table, recipe._replace(target=target, classes=classes))


def _of_sklearn(name: str) -> tuple[Table, Recipe]:
    """Loads a table that comes with scikit-learn."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"--test_dataset={name} comes with scikit-learn; pip install 'metajax[baselines]' brings it."
        ) from error
    found: Any = getattr(datasets, f"load_{name}")()
    names, classes = (tuple(map(str, each)) for each in (found.feature_names, found.target_names))
    columns = dict(zip(names, np.asarray(found.data, np.float64).T, strict=True))
    words = [classes[label] for label in found.target]
    table = Table.of({**columns, "class": words}, source=f"{name} of scikit-learn")
    return table, Recipe(numbers=names, target="class", classes=classes)


def of_table(name: str, table: Table, recipe: Recipe, notes: Sequence[str] = ()) -> RealTable:
    """Makes cells of the numbers and categories of a table.

    Args:
      name: Name of the table.
      table: The rows.
      recipe: Parts of its columns, with a target of classes.
      notes: Lines for people about the table.

    Returns:
      The table, whose rows keep their order.

    Raises:
      DataError: If there are no features, no rows with a class, or all rows have the same.
    """
    store = make_store(table, recipe._replace(group="", parent=""))
    order = np.argsort(store.numbers)  # a store sorts rows by their class
    found = trees.take(store.rows.take(np.arange(len(order))), order)
    parts, sizes = [], [0] * len(recipe.numbers)
    if recipe.numbers:
        parts.append(np.where(found["missing"], np.nan, found["numbers"]))
    if recipe.categories:
        parts.append(np.where(found["categories"] > 0, found["categories"], np.nan))
        sizes += [len(words) for words in store.encoding.vocabularies]
    return RealTable(
        name,
        np.concatenate(parts, axis=1).astype(np.float32),
        np.asarray(store.rows.targets)[order],
        tuple(recipe.classes),
        tuple(sizes),
        store.numbers[order],
        (*notes, *store.notes),
    )


def list_splits(table: RealTable, support: int, *, repeats: int, queries: int, seed: int) -> Splits:
    """Splits a table several times, by a generator of the seed, the support size and the repeat.

    Every class has the share of the support set that it has of the table, and one row at least.

    Args:
      table: Table of R rows.
      support: Support rows K of a split.
      repeats: Number of splits S.
      queries: Largest number of query rows; 0 for all others.
      seed: Seed of the splits.

    Returns:
      The splits.

    Raises:
      DataError: If the support set would leave no queries, or has fewer rows than there are classes.
    """
    rows, ways = len(table.labels), len(table.classes)
    if not ways <= support < rows:
        raise DataError(
            f"--support={support} does not fit {table.name} of {rows:,} rows and {ways} classes; use {ways} "
            f"to {rows - 1:,} rows."
        )
    found = [
        split(
            np.random.default_rng([seed, support, repeat]),
            rows,
            support,
            order="stratified",
            strata=table.labels,
        )
        for repeat in range(repeats)
    ]
    supports, rest = (np.stack(part).astype(np.int32) for part in zip(*found, strict=True))
    return Splits(supports, rest[:, :queries] if queries else rest)
