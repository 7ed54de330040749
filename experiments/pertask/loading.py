"""From a table on disk to the data of a run: columns, kinds of targets, splits, strata and scales."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.data.features import Featurizer
from metajax.data.tables import (
    Recipe,
    Table,
    TableSplits,
    TableStore,
    classes_of,
    load_table,
    split_table,
)
from metajax.data.tables.values import missing_among
from metajax.errors import DataError
from metajax.names import shown
from metajax.zoo.row_models import ROW_MODELS

from ..flags.columns import model_options, usual_model
from ..flags.settings import PACKAGE, UsageError
from ..setup import tables as setup_tables
from ..setup.columns import MOSTLY, check_words, is_number, read_columns, recipe_of_features
from ..setup.row_tests import BY_CLASS
from ..setup.tables import SPLITS
from .data import TaskData
from .options import CELLS, FLAT, PertaskSettings
from .scores import DEFAULTS
from .stores import of_stores

# Order of support rows and metric of the published protocols.
PROTOCOLS = {
    "fsmol": ("stratified", "delta_auprc"),
    **dict.fromkeys(("tox21", "muv", "toxcast", "sider"), ("balanced", "auroc")),
    "assist": ("first", "auroc"),
}
MOST_CLASSES = 20  # words of a target that is no number


class Source(NamedTuple):
    """A table whose tasks are divided, and the protocol of its data set.

    Attributes:
      splits: Tables of the splits and the recipe.
      order: Choice of support rows if none is given, one of `row_tests.ORDERS`; "" for that of the targets.
      metric: Metric if none is given; "" for that of the targets.
    """

    splits: TableSplits
    order: str = ""
    metric: str = ""


def load(settings: PertaskSettings) -> tuple[TaskData, dict[str, Any]]:
    """Reads the table of a run.

    Args:
      settings: Settings.

    Returns:
      The data, and the options that it settles: kind, metric, order and model.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If a column is not named that has to be.
    """
    source = own_table(settings) if settings.dataset == "table" else named_table(settings)
    for split in SPLITS:
        needed = split == "test" or not settings.baselines_only
        if needed and not len(getattr(source.splits, split)):
            raise DataError(
                f"{source.splits.description}: there are no {split} rows; use another --split, or "
                "--baselines_only, which needs none but for the test."
            )
    recipe = _with_kind(source.splits, settings.kind)
    kind = "values" if not recipe.classes else "binary" if len(recipe.classes) == 2 else "classes"
    order = settings.order if settings.order != "auto" else source.order
    order = order or ("random" if kind == "values" else "stratified")
    if settings.windows and order != "first":
        raise UsageError(
            f"--windows={settings.windows} needs rows in their order; use --order=first."
        )
    if kind == "values" and order in BY_CLASS:
        raise UsageError(
            f"--order={order} needs classes, and the target has values; use --order=random."
        )
    model = settings.model if settings.model != "auto" else _model_for(recipe, settings.learner)
    found = {
        "kind": kind,
        "order": order,
        "metric": settings.metric or source.metric or DEFAULTS[kind],
        "model": model,
    }
    tables = source.splits._replace(recipe=_in_order(recipe, order))
    encoders = featurizers(tables, dataclasses.replace(settings, model=model))
    return _task_data(tables, order, encoders), found


def _model_for(recipe: Recipe, learner: str) -> str:
    """Chooses the network by the columns: one for each kind, and an MLP on several kinds."""
    if learner in FLAT:
        return "mlp"
    fields = bool(recipe.numbers or recipe.categories)
    if learner == CELLS and fields and not (recipe.text or recipe.smiles):
        return "cells"
    return usual_model(text=bool(recipe.text), smiles=bool(recipe.smiles), fields=fields)


def featurizers(tables: TableSplits, settings: PertaskSettings) -> dict[str, Featurizer]:
    """Fits the functions that make features of text and of molecules to the training rows.

    Args:
      tables: Tables of the splits.
      settings: Settings; the model, and its options.

    Returns:
      Featurizers by kind of columns, "text" and "smiles".

    Raises:
      UsageError: If the model reads columns that the table has not.
    """
    entry = ROW_MODELS.get(settings.model)
    if entry and settings.learner in FLAT and not settings.baselines_only:
        raise UsageError(
            f"--model={settings.model} does not go with --learner={settings.learner}, which reads rows of "
            "numbers; use --model=mlp."
        )
    options = model_options(settings.model, settings.model_options)
    train = _learned_from(tables)
    return setup_tables.fit_featurizers(tables.recipe, train, settings.model, options)


def named_table(settings: PertaskSettings) -> Source:
    """Reads a data set by its name, with the published split and protocol."""
    columns = ("group", "target", "features", "categories", "text", "smiles", "item", "time")
    for name in (*columns, "split_column"):
        if getattr(settings, name):
            raise UsageError(
                f"--{name} is for --dataset=table, and the columns of {settings.dataset} are known; leave it "
                "out."
            )
    splits = load_table(
        settings.dataset,
        data_dir=settings.data_dir or None,
        split=settings.split or None,
        split_file=settings.split_file or None,
        seed=settings.split_seed,
    )
    if not splits.recipe.target:
        raise UsageError(
            f"--dataset={settings.dataset} has classes as groups and no target; use python -m "
            f"{PACKAGE}.fewshot."
        )
    return Source(splits, *PROTOCOLS.get(settings.dataset, ("", "")))


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
    parts = {"group": settings.group, "target": settings.target}
    apart = (settings.item, settings.time, settings.split_column)
    for name in ("group", "item", "time", "split_column"):
        if getattr(settings, name) == settings.target:
            raise UsageError(
                f"--{name}={shown(settings.target)} is the target, which is what is predicted; name another "
                "column."
            )
    table = read_columns(settings.data_dir, settings, (*parts.values(), *apart))
    recipe = recipe_of_features(table, settings, parts=parts, apart=apart)
    if settings.kind in ("auto", "values"):
        share = MOSTLY if settings.kind == "auto" else 0
        check_words(table, settings.target, remedy="use --kind=classes", share=share)
    recipe = recipe._replace(**parts, order=settings.time, item=settings.item)
    split = f"column:{settings.split_column}" if settings.split_column else settings.split or None
    return Source(
        split_table(
            table,
            recipe,
            split=split,
            split_file=settings.split_file or None,
            seed=settings.split_seed,
        )
    )


def _with_kind(tables: TableSplits, kind: str) -> Recipe:
    """Finds the classes of the target; none for values.

    Two values are two classes, numbers of more values are values, and other words are classes.
    """
    recipe, table = tables.recipe, _learned_from(tables)
    if recipe.classes or kind == "values":
        return recipe._replace(classes=() if kind == "values" else recipe.classes)
    words, numeric = set(table.text(recipe.target)), is_number(table, recipe.target)
    missing = missing_among(words)
    different = {word for word in words if word.strip().lower() not in missing}
    if kind == "auto" and len(different) > 2 and numeric:
        return recipe
    remedy = "use --kind=values" if numeric else "use another --target, or join some of them"
    classes = classes_of(table, recipe.target, most=MOST_CLASSES, remedy=remedy)
    if kind == "binary" and len(classes) != 2:
        raise DataError(
            f"Column '{shown(recipe.target)}' of {table.source} has {len(classes)} values, and --kind=binary "
            "has two; use --kind=classes or values."
        )
    return recipe._replace(classes=classes)


def _learned_from(tables: TableSplits) -> Table:
    """Returns the training rows, or the test rows without any."""
    return tables.train if len(tables.train) else tables.test


def _in_order(recipe: Recipe, order: str) -> Recipe:
    """Makes a task a parent of classes if support sets are drawn by class, else a group of rows in order."""
    if order in BY_CLASS:
        return recipe._replace(group="", parent=recipe.task())
    return recipe._replace(group=recipe.task(), parent="")


def _task_data(tables: TableSplits, order: str, encoders: Mapping[str, Featurizer]) -> TaskData:
    """Makes the stores of all splits, encoded by the statistics of the training rows."""
    recipe = tables.recipe
    functions = {kind: encoder.encode for kind, encoder in encoders.items()}
    stores = {s: store for s, store in tables.stores(featurize=functions).items() if store}
    test = stores["test"]
    encoding = test.encoding
    notes = [f"{split}: {note}" for split, store in stores.items() for note in store.notes]
    by_group = bool(recipe.group)
    about = {kind: dict(encoder.about) for kind, encoder in encoders.items()}
    about["fields"] = {"categories": encoding.sizes} if recipe.categories else {}
    return of_stores(
        {split: store.rows for split, store in stores.items()},
        test.groups if by_group else test.parents,
        by_group=by_group,
        labels=recipe.classes,
        order=order,
        description=tables.description,
        notes=[*tables.notes, *notes],
        fingerprint=".".join(
            setup_tables.fingerprint(tables, names) for names in (("train", "valid"), ("test",))
        ),
        items=_items(stores) if recipe.item else None,
        num_items=len(encoding.items),
        row_numbers=test.numbers,
        sizes={"categories": encoding.sizes} if recipe.categories else None,
        about=about,
    )


def _items(stores: Mapping[str, TableStore]) -> dict[str, np.ndarray]:
    """Returns the items of rows by split, -1 for those that no training row has."""
    return {split: np.asarray(store.items) - 1 for split, store in stores.items()}
