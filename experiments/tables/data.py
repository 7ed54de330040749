"""Real tables as cells, and the fixed list of their splits into a support set and queries."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from metajax.data.tables import Recipe, Table, classes_of, load_table, read_table
from metajax.errors import DataError

from ..setup.tables import numbers_and_categories

OF_SKLEARN = ("breast_cancer", "wine", "iris")
ON_DISK = ("diabetes", "blood", "creditg", "taiwan", "bank")
NAMES = (*OF_SKLEARN, *ON_DISK, "table")


class RealTable(NamedTuple):
    """A table with a class for each row.

    Attributes:
      name: Name of the table.
      cells: Cells [R, D] float32: numbers, and the codes of categories from 1 on; NaN is missing.
      labels: Classes [R] int32 in [0, N).
      classes: Names of the classes.
      categories: Number of categories of each column, 0 for numbers.
      numbers: Numbers of the rows in the file, or from 1 on, [R].
    """

    name: str
    cells: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    numbers: np.ndarray

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


def read_real(name: str, data_dir: str, target: str) -> RealTable:
    """Reads a table by its name.

    Args:
      name: One of NAMES.
      data_dir: Folder of the tables on disk, or the file of "table".
      target: Column to predict of "table".

    Returns:
      The table. Rows without a class are left out.

    Raises:
      DataError: If files are missing or broken, or the target has no classes.
      ImportError: If scikit-learn is not installed.
    """
    if name in OF_SKLEARN:
        return _of_sklearn(name)
    if name != "table":
        splits = load_table(name, data_dir=data_dir or None, split="whole")
        return _of_columns(name, splits.test, splits.recipe)
    if not data_dir:
        raise DataError(
            "--test_dataset=table is a file of yours; name it, such as --data_dir=loans.csv."
        )
    table = read_table(data_dir)
    classes = classes_of(table, target)
    numbers, categories = numbers_and_categories(
        table, [column for column in table.columns if column != target]
    )
    recipe = Recipe(numbers=numbers, categories=categories, target=target, classes=classes)
    return _of_columns("table", table, recipe)


def _of_sklearn(name: str) -> RealTable:
    """Loads a table that comes with scikit-learn."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"--test_dataset={name} comes with scikit-learn; pip install 'metajax[baselines]' brings it."
        ) from error
    found: Any = getattr(datasets, f"load_{name}")()
    cells = np.asarray(found.data, np.float32)
    classes = tuple(map(str, found.target_names))
    labels, numbers = np.asarray(found.target, np.int32), np.arange(1, len(cells) + 1)
    return RealTable(name, cells, labels, classes, (0,) * cells.shape[1], numbers)


def _of_columns(name: str, table: Table, recipe: Recipe) -> RealTable:
    """Makes cells of the columns of numbers and categories of a recipe."""
    columns = [np.asarray(table.floats(column), np.float64) for column in recipe.numbers]
    sizes = [0] * len(columns)
    for column in recipe.categories:
        words = table.text(column)
        codes = {word: code for code, word in enumerate(sorted({*words} - {""}), 1)}
        columns.append(np.array([codes.get(word, np.nan) for word in words], np.float64))
        sizes.append(len(codes))
    if not columns:
        raise DataError(f"{table.source} has no column besides '{recipe.target}'; add features.")
    places = {word: place for place, word in enumerate(recipe.classes)}
    labels = np.array([places.get(word, -1) for word in table.text(recipe.target)], np.int32)
    kept, cells = labels >= 0, np.stack(columns, 1).astype(np.float32)
    numbers = np.asarray(table.numbers)[kept]
    return RealTable(name, cells[kept], labels[kept], tuple(recipe.classes), tuple(sizes), numbers)


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
        _split(np.random.default_rng([seed, support, repeat]), table, support)
        for repeat in range(repeats)
    ]
    supports, rest = (np.stack(part).astype(np.int32) for part in zip(*found, strict=True))
    return Splits(supports, rest[:, :queries] if queries else rest)


def _split(
    rng: np.random.Generator, table: RealTable, support: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a stratified support set [K]; returns it and all other rows, both in a random order."""
    order = rng.permutation(len(table.labels))
    labels, ways = table.labels[order], len(table.classes)
    exact = np.bincount(labels, minlength=ways) * support / len(labels)
    taken = np.maximum(np.floor(exact).astype(int), 1)
    while (
        taken.sum() != support
    ):  # the largest remainder gets the next row, or the smallest gives one
        change = 1 if taken.sum() < support else -1
        able = np.where((change > 0) | (taken > 1), change * (exact - taken), -np.inf)
        taken[np.argmax(able)] += change
    ranks = np.empty(len(labels), int)
    for label in range(ways):
        ranks[labels == label] = np.arange((labels == label).sum())
    chosen = ranks < taken[labels]
    return order[chosen], order[~chosen]
