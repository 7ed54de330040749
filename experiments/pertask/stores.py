"""Stores of a table's rows as a run needs them: labels or standardized values, and strata of classes."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from metajax.data.features import are_rows_of_numbers, flat_rows
from metajax.episodes.rows import Rows
from metajax.errors import DataError

from ..setup.row_tests import BY_CLASS
from .data import TaskData


def of_stores(
    stores: Mapping[str, Rows],
    names: Sequence[str],
    *,
    by_group: bool,
    labels: Sequence[str],
    order: str,
    description: str,
    fingerprint: str,
    notes: Sequence[str] = (),
    items: Mapping[str, np.ndarray] | None = None,
    num_items: int = 0,
    row_numbers: np.ndarray | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> TaskData:
    """Prepares stores whose targets are labels or values.

    Args:
      stores: Stores by split, with targets; that of the test alone is enough for most baselines.
      names: Names of the test units, in the order of the store.
      by_group: Whether a task is one group rather than one parent.
      labels: Names of the classes; empty for values.
      order: Choice of support rows, one of `row_tests.ORDERS`; for those by class, tasks become parents whose
        groups are classes.
      description: The data in words.
      fingerprint: Hashes of the splits joined by dots.
      notes: Lines for people about rows and tasks that are left out or cut.
      items: Item of each row by split.
      num_items: Number of items.
      row_numbers: Number of each test row in its table.
      sizes: Numbers of categories of each column, by the name of a feature of categories.
      about: Arguments of networks that depend on the data, by kind of columns.

    Returns:
      The data: values are standardized by the training rows.

    Raises:
      DataError: If the training rows have a single class or value.
    """
    learned_from = stores.get("train", stores["test"])
    training = np.asarray(learned_from.targets, np.float64).reshape(-1)
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
    for split, store in stores.items():
        made[split] = _with_targets(store, ways, level, spread)
        moved[split] = np.arange(len(made[split].targets))
        if ways and order in BY_CLASS and by_group:
            made[split], moved[split] = _stratified(made[split])
    by_group = by_group and not (ways and order in BY_CLASS)
    if items is not None:
        items = {split: np.asarray(items[split])[order] for split, order in moved.items()}
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
        is_flat=are_rows_of_numbers(made["test"].features, sizes or {}),
        about=about or {},
        description=description,
        notes=tuple(notes),
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
