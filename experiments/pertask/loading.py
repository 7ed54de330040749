"""From a table on disk to the data of a run: columns, kinds of targets, splits, strata and scales."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.flags.settings import UsageError
from experiments.pertask.data import SPLITS, TaskData, flat_rows
from experiments.pertask.options import PertaskSettings
from experiments.pertask.scores import DEFAULTS
from metajax.data import splits
from metajax.data.tables import Recipe, Table, TableStore, classes_of, fit, make_store, read_table
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.names import shown

MOST_CLASSES = 20  # words of a target that is no number
MOST_CATEGORIES = 1000


class Source(NamedTuple):
    """Tables of the splits, and what their columns are.

    Attributes:
      tables: Tables by split.
      recipe: Parts of their columns, with the task as the group.
      description: The data in words.
      order: Choice of support rows if none is given, one of `splits.ORDERS`; "" for that of the targets.
      metric: Metric if none is given; "" for that of the targets.
    """

    tables: Mapping[str, Table]
    recipe: Recipe
    description: str
    order: str = ""
    metric: str = ""


def load(settings: PertaskSettings) -> tuple[TaskData, dict[str, Any]]:
    """Reads the table of a run.

    Args:
      settings: Settings.

    Returns:
      The data, and the options that it settles: kind, metric and order.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If a column is not named that has to be.
    """
    source = own_table(settings)
    recipe = _with_kind(source, settings.kind)
    kind = "values" if not recipe.classes else "binary" if len(recipe.classes) == 2 else "classes"
    order = settings.order if settings.order != "auto" else source.order
    order = order or ("random" if kind == "values" else "stratified")
    if settings.windows and order != "first":
        raise UsageError(
            f"--windows={settings.windows} needs rows in their order; use --order=first."
        )
    if kind == "values" and order == "stratified":
        raise UsageError(
            "--order=stratified needs classes, and the target has values; use --order=random."
        )
    found = {
        "kind": kind,
        "order": order,
        "metric": settings.metric or source.metric or DEFAULTS[kind],
    }
    return _task_data(source._replace(recipe=recipe), order, featurizers(settings)), found


def featurizers(settings: PertaskSettings) -> dict[str, Callable[[list[str]], Any]]:
    """Finds the functions that make features of text and of molecules."""
    del settings
    return {}


def own_table(settings: PertaskSettings) -> Source:
    """Reads a user's file, and divides its tasks.

    Args:
      settings: Settings.

    Returns:
      The tables.

    Raises:
      DataError: If a column is missing, or there are too few tasks.
      UsageError: If a column is not named that has to be.
    """
    for name in ("data_dir", "group", "target"):
        if not getattr(settings, name):
            example = {"data_dir": "ratings.csv", "group": "user", "target": "rating"}[name]
            raise UsageError(f"--dataset=table needs --{name}, such as --{name}={example}.")
    table = read_table(settings.data_dir)
    recipe = _columns(table, settings)
    for column in recipe.columns():
        table.column(column)
    tables, how = _divided(table, settings)
    counts = ", ".join(f"{len(set(tables[s].text(settings.group)))} {s}" for s in SPLITS)
    description = (
        f"{table.source}, {len(table):,} rows; tasks of '{shown(settings.group)}': {counts} ({how})"
    )
    return Source(tables, recipe, description)


def _columns(table: Table, settings: PertaskSettings) -> Recipe:
    """Finds the columns of features and what they hold: those named, or all that have no other part."""
    parts = (settings.group, settings.target, settings.item, settings.time, settings.split_column)
    text = _listed(settings.text)
    asked = _listed(settings.features)
    if not (asked or text or settings.smiles):
        asked = tuple(name for name in table.columns if name not in parts)
    taken = [name for name in (*asked, *text) if name in (settings.target, settings.group)]
    if taken:
        raise UsageError(
            f"--features={taken[0]} is the {'target' if taken[0] == settings.target else 'group'}, which is "
            "no feature; leave it out."
        )
    numbers, categories = [], []
    for name in asked:
        (numbers if _is_number(table, name) else categories).append(name)
    for name in categories:
        values = len(set(table.text(name)))
        if values > MOST_CATEGORIES:
            raise DataError(
                f"Column '{shown(name)}' of {table.source} has {values:,} different values, and a category "
                f"at most {MOST_CATEGORIES:,}; name it in --text, or leave it out of --features."
            )
    return Recipe(
        text=text,
        smiles=settings.smiles,
        numbers=tuple(numbers),
        categories=tuple(categories),
        target=settings.target,
        group=settings.group,
        order=settings.time,
        item=settings.item,
    )


def _listed(asked: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in asked.split(",") if name.strip())


def _is_number(table: Table, column: str) -> bool:
    """Returns whether all values of a column are numbers or missing, and some are numbers."""
    try:
        return not np.isnan(table.floats(column)).all()
    except DataError:
        table.column(column)  # raised again if there is no such column
        return False


def _divided(table: Table, settings: PertaskSettings) -> tuple[dict[str, Table], str]:
    """Divides the tasks of a table by a column, or at random by the seed of the split."""
    if settings.split_column:
        words = table.text(settings.split_column)
        known = {"validation": "valid", "dev": "valid"}
        words = np.array([known.get(word, word) for word in words])
        for split in SPLITS:
            if split not in words:
                raise DataError(
                    f"Column '{shown(settings.split_column)}' of {table.source} has no row '{split}'; its "
                    "values have to be train, valid and test."
                )
        _check_apart(table, settings, words)
        return {s: table.select(words == s) for s in SPLITS}, f"by '{settings.split_column}'"
    names = np.array(table.text(settings.group))
    units, counts = np.unique(names[names != ""], return_counts=True)
    if len(units) < 3:
        raise DataError(
            f"Column '{shown(settings.group)}' of {table.source} has {len(units)} tasks; training, "
            "validation and test need one each, so use 3 or more."
        )
    classes = splits.Classes(tuple(units.tolist()), ("",) * len(units), counts)
    chosen = splits.random()(classes, settings.split_seed)
    how = f"at random by --split_seed={settings.split_seed}"
    return {s: table.select(np.isin(names, list(chosen[s]))) for s in SPLITS}, how


def _check_apart(table: Table, settings: PertaskSettings, words: np.ndarray) -> None:
    """Raises DataError if a task has rows of several splits, which would leak into its test."""
    first: dict[str, str] = {}
    for unit, split in zip(table.text(settings.group), words, strict=True):
        if first.setdefault(unit, split) != split:
            raise DataError(
                f"Task '{shown(unit)}' of {table.source} has rows of {first[unit]} and of {split}; put all "
                "rows of a task into one split."
            )


def _with_kind(source: Source, kind: str) -> Recipe:
    """Finds the classes of the target; none for values.

    Two values are two classes, numbers of more values are values, and other words are classes.
    """
    recipe, table = source.recipe, source.tables["train"]
    if recipe.classes or kind == "values":
        return recipe
    different = {word for word in table.text(recipe.target) if word}
    if kind == "auto" and len(different) > 2 and _is_number(table, recipe.target):
        return recipe
    classes = classes_of(table, recipe.target, most=MOST_CLASSES)
    if kind == "binary" and len(classes) != 2:
        raise DataError(
            f"Column '{shown(recipe.target)}' of {table.source} has {len(classes)} values, and --kind=binary "
            "has two; use --kind=classes or values."
        )
    return recipe._replace(classes=classes)


def _task_data(
    source: Source, order: str, featurize: Mapping[str, Callable[[list[str]], Any]]
) -> TaskData:
    """Makes the stores of all splits, encoded by the statistics of the training rows."""
    recipe, tables = source.recipe, source.tables
    if order == "stratified" and recipe.group:
        recipe = recipe._replace(group="", parent=recipe.group)
    if order == "first" and recipe.parent and not recipe.group:
        recipe = recipe._replace(group=recipe.parent, parent="")
    encoding = fit(tables["train"], recipe)
    stores = {
        split: make_store(tables[split], recipe, featurize=featurize, encoding=encoding)
        for split in SPLITS
    }
    test = stores["test"]
    notes = [f"{split}: {note}" for split in SPLITS for note in stores[split].notes]
    description = "; ".join([source.description, *notes])
    by_group = bool(recipe.group)
    return of_stores(
        {split: store.rows for split, store in stores.items()},
        test.groups if by_group else test.parents,
        by_group=by_group,
        labels=recipe.classes,
        order=order,
        description=description,
        fingerprint=".".join(tables[split].fingerprint() for split in SPLITS),
        items=_items(stores) if recipe.item else None,
        num_items=len(encoding.items),
        row_numbers=test.numbers,
        sizes={"categories": encoding.sizes} if recipe.categories else None,
    )


def _items(stores: Mapping[str, TableStore]) -> dict[str, np.ndarray]:
    """Returns the items of rows by split, -1 for those that no training row has."""
    return {split: np.asarray(store.items) - 1 for split, store in stores.items()}


def of_stores(
    stores: Mapping[str, Rows],
    names: Sequence[str],
    *,
    by_group: bool,
    labels: Sequence[str],
    order: str,
    description: str,
    fingerprint: str,
    items: Mapping[str, np.ndarray] | None = None,
    num_items: int = 0,
    row_numbers: np.ndarray | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> TaskData:
    """Prepares stores whose targets are labels or values.

    Args:
      stores: Stores by split, with targets.
      names: Names of the test units, in the order of the store.
      by_group: Whether a task is one group rather than one parent.
      labels: Names of the classes; empty for values.
      order: Choice of support rows, one of `splits.ORDERS`; for "stratified" tasks become parents whose
        groups are classes.
      description: The data in words.
      fingerprint: Hashes of the splits joined by dots.
      items: Item of each row by split.
      num_items: Number of items.
      row_numbers: Number of each test row in its table.
      sizes: Numbers of categories of each column, by the name of a feature of categories.

    Returns:
      The data: values are standardized by the training rows.

    Raises:
      DataError: If the training rows have a single class or value.
    """
    training = np.asarray(stores["train"].targets, np.float64).reshape(-1)
    ways, level, spread = (len(labels) or None), 0.0, 1.0
    seen = np.unique(training)
    if len(seen) < 2:
        only = labels[int(seen[0])] if labels else f"{seen[0]:g}"
        raise DataError(
            f"All {len(training):,} training rows have the target {only}; there is nothing to learn. Use "
            "another --target, or rows of other values."
        )
    if ways is None:
        level, spread = float(training.mean()), float(training.std())
    made, moved = {}, {}
    for split in SPLITS:
        made[split] = _with_targets(stores[split], ways, level, spread)
        moved[split] = np.arange(len(made[split].targets))
        if ways and order == "stratified" and by_group:
            made[split], moved[split] = _stratified(made[split])
    by_group = by_group and not (ways and order == "stratified")
    if items is not None:
        items = {split: np.asarray(items[split])[moved[split]] for split in SPLITS}
    numbers = np.arange(len(moved["test"])) if row_numbers is None else np.asarray(row_numbers)
    return TaskData(
        stores=made,
        names=names,
        by_group=by_group,
        ways=ways,
        labels=tuple(labels),
        level=level,
        spread=spread,
        items=items,
        num_items=num_items,
        row_numbers=numbers[moved["test"]],
        flat=functools.partial(flat_rows, sizes=sizes or {}),
        description=description,
        fingerprint=fingerprint,
    )


def _with_targets(store: Rows, ways: int | None, level: float, spread: float) -> Rows:
    """Converts targets to labels [R] int32, or to standardized values [R, 1] float32."""
    targets = np.asarray(store.targets).reshape(-1)
    if ways:
        return store._replace(targets=jnp.asarray(targets.astype(np.int32)))
    scaled = (targets.astype(np.float64) - level) / spread
    return store._replace(targets=jnp.asarray(scaled[:, None].astype(np.float32)))


def _stratified(store: Rows) -> tuple[Rows, np.ndarray]:
    """Makes each group a parent whose groups are the classes that it has.

    Returns:
      The store, and the former place of each of its rows.
    """
    counts, labels = np.asarray(store.counts), np.asarray(store.targets)
    parents = np.repeat(np.arange(len(counts)), counts)
    pairs, groups = np.unique(np.stack([parents, labels], 1), axis=0, return_inverse=True)
    order = np.argsort(groups.reshape(-1), kind="stable")
    rows = order if store.rows is None else np.asarray(store.rows)[order]
    made = Rows.of_sorted(
        store.features,
        np.bincount(groups.reshape(-1)),
        targets=labels[order],
        rows=rows,
        parents=np.bincount(pairs[:, 0]),
        constants=store.constants,
    )
    return made, order
