"""Data sets of tables: their rows, recipe and splits."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from metajax.data.tables import encoding as encodings
from metajax.data.tables import splitting, store
from metajax.data.tables.grouping import sizes
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.store import Featurizer, TableStore
from metajax.data.tables.table import Table
from metajax.errors import DataError
from metajax.names import shown

_NONE: Mapping[str, Table] = MappingProxyType({})


class Source(NamedTuple):
    """A data set that has been read, and the policies that split it.

    Attributes:
      title: Name for people.
      table: All rows.
      recipe: Parts of the columns.
      policies: Policies by name; the first is the default.
      notes: Lines for people about the data.
      least: Fewest rows of a task in the published protocol.
      most: Most rows of a task in the published protocol; None for no limit.
      unknown: Rows of no class, by split, to test whether a learner knows what it does not know.
    """

    title: str
    table: Table
    recipe: Recipe
    policies: Mapping[str, splitting.Policy]
    notes: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None
    unknown: Mapping[str, Table] = _NONE


class TableSplits(NamedTuple):
    """A table whose tasks are split; `load_table` makes it.

    Attributes:
      train: Training rows; none if every task is for test.
      valid: Rows of the tasks that choose hyper-parameters and checkpoints.
      test: Rows of the tasks of reported scores.
      recipe: Parts of the columns.
      description: Line for people: data set, split, numbers of tasks and rows.
      notes: Lines for people about the data.
      least: Fewest rows of a task.
      most: Most rows of a task; None for no limit.
      unknown: Rows of no class by split, such as out-of-scope questions; empty for most data sets.

    Example:
      >>> from metajax.data.tables import Recipe, Table, split_table
      >>> columns = {"user": list("aabbcc"), "year": range(6), "stars": range(6)}
      >>> recipe = Recipe(numbers=("year",), group="user", target="stars")
      >>> splits = split_table(Table.of(columns), recipe)
      >>> splits.description
      'the table, split random (seed 0): 1 train, 1 valid, 1 test values of user; 2, 2, 2 rows'
      >>> stores = splits.stores()
      >>> stores["test"].rows.counts.tolist(), stores["train"].groups
      ([2], ('a',))
    """

    train: Table
    valid: Table
    test: Table
    recipe: Recipe
    description: str
    notes: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None
    unknown: Mapping[str, Table] = _NONE

    def stores(
        self, *, featurize: Mapping[str, Featurizer] | None = None
    ) -> dict[str, TableStore | None]:
        """Makes the stores of all splits, with the statistics of the training rows.

        Args:
          featurize: Featurizers of `text` and `smiles`, by these names.

        Returns:
          Stores by split; None for a split without rows. Without training rows, the statistics are of the
          test rows, whose targets they do not use.

        Raises:
          DataError: As in `make_store`.
        """
        encoding = encodings.fit(self.train if len(self.train) else self.test, self.recipe)
        make = functools.partial(
            store.make_store,
            recipe=self.recipe,
            featurize=featurize,
            encoding=encoding,
            least=self.least,
            most=self.most,
        )
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: make(table) if len(table) else None for split, table in parts.items()}

    def fingerprint(self) -> str:
        """Hashes the recipe and the rows of all splits.

        Returns:
          SHA-256 in hexadecimal.
        """
        parts = [self.train, self.valid, self.test, *self.unknown.values()]
        names = self.recipe.columns()
        used = [
            Table({n: t.columns[n] for n in names if n in t.columns}, "", t.numbers) for t in parts
        ]
        words = [repr(tuple(self.recipe)), *(table.fingerprint() for table in used)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


def split_table(
    table: Table,
    recipe: Recipe,
    *,
    split: str | None = None,
    split_file: str | None = None,
    seed: int = 0,
    least: int = 1,
    most: int | None = None,
    min_tasks: int = 1,
) -> TableSplits:
    """Splits the tasks of a table of one's own.

    Args:
      table: Table.
      recipe: Parts of its columns.
      split: `random`, which divides the parents, or the groups if there are none; `column:NAME`, where the
        column names the split of each row; `file`; or `all`, in which every row is for test. None is `file`
        with a split file, `all` for a single task, and else `random`.
      split_file: JSON file {"train": [values], "valid": [...], "test": [...]}.
      seed: Seed of the split `random`.
      least: Fewest rows of a task, or of a class.
      most: Most rows of a task, or of a class; None for no limit.
      min_tasks: Fewest tasks of each split of `random`.

    Returns:
      The splits.

    Raises:
      DataError: If a column is missing, the split is unknown, or there are too few tasks.

    Example:
      >>> from metajax.data.tables import Recipe, Table
      >>> table = Table.of({"message": ["hi", "lost", "bye"], "topic": ["greet", "card", "leave"]})
      >>> found = split_table(table, Recipe(text=("message",), group="topic"))
      >>> found.train.text("topic"), found.valid.text("topic"), found.test.text("topic")
      (['card'], ['greet'], ['leave'])
    """
    policies = {"random": splitting.random(least=least, most=most, min_tasks=min_tasks)}
    source = Source(table.source, table, recipe, policies, (), least, most)
    if split is None:
        split = "file" if split_file else "random" if recipe.task() else "all"
    return divided(source, split, split_file=split_file, seed=seed)


def divided(
    source: Source, split: str | None, *, split_file: str | None = None, seed: int = 0
) -> TableSplits:
    """Splits the tasks of a data set.

    Args:
      source: Data set.
      split: Name of a policy, as in `splitting.find`; None is the first of the data set.
      split_file: JSON file of the policy `file`.
      seed: Seed of policies that draw.

    Returns:
      The splits.

    Raises:
      DataError: If the policy is unknown, or does not fit.
    """
    source.recipe.check(source.table)
    if split is None:
        split = "file" if split_file else next(iter(source.policies))
    elif split_file and split != "file":
        raise DataError(f"The split {shown(split)} takes no split_file; leave out one of the two.")
    policy = splitting.find(split, source.policies, source.title, split_file=split_file)
    parts = policy(source.table, source.recipe, seed)
    tables = {name: source.table.select(rows) for name, rows in parts.items()}
    notes = (*source.notes, *_in_no_split(source, tables))
    return TableSplits(
        **tables,
        recipe=source.recipe,
        description=_description(source, split, tables, seed),
        notes=notes,
        least=source.least,
        most=source.most,
        unknown=source.unknown,
    )


def _in_no_split(source: Source, tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Describes the tasks that are in no split, and the rows without a task."""
    task = source.recipe.task()
    if not task:
        return ()
    words = source.table.text(task)
    every = set(words) - {""}
    left_out = every.difference(*(table.text(task) for table in tables.values()))
    notes: tuple[str, ...] = ()
    if left_out:
        sized = source.least > 1 or source.most is not None
        why = f", such as those without {sizes(source.least, source.most)}" if sized else ""
        notes += (f"{len(left_out):,} of {len(every):,} values of '{task}' are in no split{why}",)
    if empty := words.count(""):
        notes += (f"{empty:,} of {len(words):,} rows have no '{task}' and are in no split",)
    return notes


def _description(source: Source, split: str, tables: Mapping[str, Table], seed: int) -> str:
    """Describes a split data set in a line."""
    rows = ", ".join(f"{len(table):,}" for table in tables.values())
    task = source.recipe.task()
    counts = ""
    if task:
        numbers = {name: len(set(table.text(task)) - {""}) for name, table in tables.items()}
        counts = ", ".join(f"{number:,} {name}" for name, number in numbers.items())
        counts += f" values of {task}; "
    drawn = f" (seed {seed})" if split == "random" else ""
    return f"{source.title}, split {split}{drawn}: {counts}{rows} rows"


def find_file(data_dir: str | Path | None, name: str, *options: str) -> Path:
    """Finds a file or folder of a data set.

    Args:
      data_dir: Folder of the data set.
      name: Name of the data set in the message.
      *options: Paths within the folder at which it may lie.

    Returns:
      The first path that exists.

    Raises:
      DataError: If there is none.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Path(folder, "full.jsonl").touch()
      ...     find_file(folder, "banking77", "BANKING77/full.jsonl", "full.jsonl").name
      'full.jsonl'
    """
    if not data_dir:
        raise DataError(
            f"{name} is read from your disk; set data_dir to the folder that holds {options[0]}."
        )
    root = Path(os.path.expanduser(data_dir))
    for option in options:
        if (root / option).exists():
            return root / option
    raise DataError(
        f"{name} is not in {shown(root)}: there is no {' and no '.join(options)}; set data_dir to its folder."
    )


Reader = Callable[[str | Path | None], Source]
"""Function from the folder of the data to the data set."""
