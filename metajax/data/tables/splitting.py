"""Policies that divide the rows of a table into training, validation and test tasks."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from metajax.data import splits
from metajax.data.tables.grouping import sizes
from metajax.data.tables.near import nearest
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.table import Table
from metajax.errors import DataError
from metajax.names import listed, shown

Parts = Mapping[str, np.ndarray]
"""Rows of each of `train`, `valid` and `test`, as indices [n] int64."""

Policy = Callable[[Table, Recipe, int], Parts]
"""Function (table, recipe, seed) -> rows by split."""

VALID_SHARE = 0.2  # of the training tasks, where a split column names no validation rows

# Names of splits in files of others.
_ALIASES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing", "te"), "test"),
}


def random(
    *, column: str | None = None, least: int = 1, most: int | None = None, min_tasks: int = 1
) -> Policy:
    """Makes a policy that draws tasks at random, by the same rule as `metajax.data.splits.random`.

    Args:
      column: Column whose values are divided; None is the recipe's parent, or else its group.
      least: Fewest rows of a task; smaller ones are in no split. Parents of classes may have any size.
      most: Most rows of a task; None for no limit.
      min_tasks: Fewest tasks of each split.

    Returns:
      The policy, which raises DataError if there are too few tasks.

    Example:
      >>> table = Table.of({"user": list("aabbccdd"), "x": range(8), "y": range(8)})
      >>> recipe = Recipe(numbers=("x",), group="user", target="y")
      >>> parts = random()(table, recipe, 0)
      >>> {split: table.select(rows).text("user") for split, rows in parts.items()}
      {'train': ['a', 'a', 'b', 'b'], 'valid': ['c', 'c'], 'test': ['d', 'd']}
    """

    def policy(table: Table, recipe: Recipe, seed: int) -> Parts:
        name = _task_column(table, recipe, column)
        sized = name == recipe.group or bool(recipe.target)
        units, rows = _units(table, name)
        fits = {
            unit: len(found)
            for unit, found in rows.items()
            if not sized or least <= len(found) <= (most or len(found))
        }
        if len(fits) < 3 * min_tasks:
            wanted = f" of {sizes(least, most)}" if sized else ""
            raise DataError(
                f"Column '{shown(name)}' of {table.source} has {len(fits):,} values{wanted}, and three "
                f"splits of {min_tasks} or more need {3 * min_tasks}; "
                f"{_what_fits(rows, 3 * min_tasks) if sized else ''}use the split 'all', in which every "
                "task is for test, or bring more."
            )
        return _by_policy(units, rows, fits, splits.random(least=min_tasks), seed)

    return policy


def by_column(name: str) -> Policy:
    """Makes a policy of a column that names the split of each row.

    Args:
      name: Name of the column, whose values are train, valid (or validation, val, dev) and test. Without
        validation rows, a fifth of the training tasks is drawn.

    Returns:
      The policy, which raises DataError if a value is no split, a split is empty, or two share a task.

    Example:
      >>> table = Table.of({"t": list("abc"), "label": list("xyz"), "fold": ["train", "dev", "test"]})
      >>> by_column("fold")(table, Recipe(text=("t",), group="label"), 0)["valid"].tolist()
      [1]
    """

    def policy(table: Table, recipe: Recipe, seed: int) -> Parts:
        words = [word.strip().lower() for word in table.text(name)]
        if unknown := [word for word in dict.fromkeys(words) if word not in _ALIASES]:
            raise DataError(
                f"Column '{shown(name)}' of {table.source} has the values {listed(unknown)}, which name no "
                "split; use train, valid and test."
            )
        found = {split: [] for split in splits.SPLITS}
        for row, word in enumerate(words):
            found[_ALIASES[word]].append(row)
        parts = {split: np.array(rows, np.int64) for split, rows in found.items()}
        for split in ("train", "test"):
            if not len(parts[split]):
                raise DataError(
                    f"Column '{shown(name)}' of {table.source} names no rows for {split}; use the split "
                    "'random'."
                )
        task = recipe.task()
        if task:
            _check_disjoint(table, task, parts)
        if not len(parts["valid"]):
            parts = _with_valid(table, task, parts, seed)
        return parts

    return policy


def by_names(names: Mapping[str, Sequence[str]], column: str | None = None) -> Policy:
    """Makes a policy of fixed lists of tasks, such as a published split.

    Args:
      names: Values of the column by split.
      column: Column of the values; None is the recipe's parent, or else its group.

    Returns:
      The policy, which raises DataError if a value is unknown, in two lists, or a list is empty.

    Example:
      >>> table = Table.of({"t": list("abc"), "label": list("xyz")})
      >>> policy = by_names({"train": ["y"], "valid": ["x"], "test": ["z"]})
      >>> policy(table, Recipe(text=("t",), group="label"), 0)["train"].tolist()
      [1]
    """

    def policy(table: Table, recipe: Recipe, seed: int) -> Parts:
        units, rows = _units(table, _task_column(table, recipe, column))
        counts = {unit: len(rows[unit]) for unit in units}
        return _by_policy(units, rows, counts, splits.by_name(names), seed)

    return policy


def from_file(path: str) -> Policy:
    """Makes a policy of a JSON file of lists of tasks.

    Args:
      path: File with {"train": [values], "valid": [...], "test": [...]}.

    Returns:
      The policy, which raises DataError if the file is broken, or its lists do not fit.
    """

    def policy(table: Table, recipe: Recipe, seed: int) -> Parts:
        units, rows = _units(table, _task_column(table, recipe, None))
        counts = {unit: len(rows[unit]) for unit in units}
        return _by_policy(units, rows, counts, splits.from_file(path), seed)

    return policy


def everything(table: Table, recipe: Recipe, seed: int) -> Parts:
    """Makes every row a test row.

    Args:
      table: Table.
      recipe: Recipe; ignored.
      seed: Seed; ignored.

    Returns:
      Rows by split; none for training and validation.

    Example:
      >>> everything(Table.of({"x": [1, 2]}), Recipe(), 0)["test"].tolist()
      [0, 1]
    """
    del recipe, seed
    none = np.zeros(0, np.int64)
    return {"train": none, "valid": none, "test": np.arange(len(table))}


def of_masks(masks: Mapping[str, Sequence[bool]]) -> Parts:
    """Makes parts of masks of rows.

    Args:
      masks: Whether each row is in a split, [R] bool, by split.

    Returns:
      Rows by split.

    Raises:
      DataError: If a split is empty.

    Example:
      >>> of_masks({"train": [True, False], "valid": [True, False], "test": [False, True]})["test"].tolist()
      [1]
    """
    parts = {split: np.flatnonzero(np.asarray(masks[split], bool)) for split in splits.SPLITS}
    for split in ("train", "valid", "test"):
        if not len(parts[split]):
            raise DataError(
                f"No rows are left for {split}; choose another split, or bring all files."
            )
    return parts


def find(
    split: str, policies: Mapping[str, Policy], source: str, *, split_file: str | None = None
) -> Policy:
    """Finds a policy by its name.

    Args:
      split: Name of one of the policies; or `column:NAME`, `file`, or `all`.
      policies: Policies of the data set by name.
      source: Name of the data set in the message.
      split_file: JSON file of the policy `file`.

    Returns:
      The policy.

    Raises:
      DataError: If there is no such policy, or `file` has no file.

    Example:
      >>> find("all", {}, "tickets.csv") is everything
      True
    """
    kind, _, rest = split.partition(":")
    if kind == "column" and rest:
        return by_column(rest)
    if split == "file":
        if not split_file:
            raise DataError("The split 'file' needs a split_file; give its path.")
        return from_file(split_file)
    if split == "all":
        return everything
    if split not in policies:
        known = [*policies, "column:NAME", "file", "all"]
        raise DataError(
            f"The split '{shown(split)}' does not fit {source}; {nearest(split, known)}"
        )
    return policies[split]


def _task_column(table: Table, recipe: Recipe, column: str | None) -> str:
    """Finds the column whose values are divided; raises DataError if there is none."""
    name = column or recipe.task()
    if not name:
        raise DataError(
            f"{table.source} is a single task, as it has neither a group nor a parent; name the column of "
            "one, or use the split 'all'."
        )
    return name


def _units(table: Table, name: str) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Finds the values of a column, sorted, and the rows of each; rows without a value are in none."""
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(table.text(name)):
        if unit:
            rows.setdefault(unit, []).append(row)
    return tuple(sorted(rows)), rows


def _what_fits(rows: Mapping[str, list[int]], wanted: int) -> str:
    """Describes the number of rows that would leave as many tasks as are wanted."""
    found = sorted((len(each) for each in rows.values()), reverse=True)
    return f"{found[wanted - 1]:,} rows would leave as many; " if len(found) >= wanted else ""


def _by_policy(
    units: Sequence[str],
    rows: Mapping[str, list[int]],
    counts: Mapping[str, int],
    policy: splits.Policy,
    seed: int,
) -> Parts:
    """Divides the units that have counts by a policy of classes."""
    names = tuple(unit for unit in units if unit in counts)
    sizes = np.array([counts[name] for name in names], np.int64)
    classes = splits.Classes(names, ("",) * len(names), sizes)
    chosen = splits.split_classes(classes, policy, seed=seed)
    return {
        split: np.sort(np.concatenate([rows[names[i]] for i in chosen[split]]).astype(np.int64))
        for split in splits.SPLITS
    }


def _check_disjoint(table: Table, task: str, parts: Parts) -> None:
    """Raises DataError if two splits share a task."""
    words = table.text(task)
    holders = {split: {words[row] for row in rows} - {""} for split, rows in parts.items()}
    times = Counter(word for held in holders.values() for word in held)
    if shared := sorted(word for word in times if times[word] > 1):
        where = " and ".join(split for split in splits.SPLITS if shared[0] in holders[split])
        raise DataError(
            f"{len(shared):,} values of '{shown(task)}' are in two splits: {listed(shared)}, the first of "
            f"them in {where}. Test tasks must not be trained on; use the split 'random', which divides "
            "the values."
        )


def _with_valid(table: Table, task: str, parts: Parts, seed: int) -> Parts:
    """Moves a share of the training tasks to validation."""
    units, rows = _units(table.select(parts["train"]), task) if task else ((), {})
    if len(units) < 2:
        raise DataError(
            f"{table.source} has no validation rows, and its training rows have {len(units)} tasks to draw "
            "some from; use the split 'random'."
        )
    drawn = splits.shuffled(units, seed)[: max(1, round(VALID_SHARE * len(units)))]
    held = np.sort(np.concatenate([rows[unit] for unit in drawn]).astype(np.int64))
    kept = np.setdiff1d(np.arange(len(parts["train"])), held)
    return {**parts, "train": parts["train"][kept], "valid": parts["train"][held]}
