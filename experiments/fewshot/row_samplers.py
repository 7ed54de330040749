"""Samplers of episodes of rows, and the sizes that fit."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.episodes.batches import BatchSampler
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View
from metajax.errors import DataError
from metajax.types import Key, Tree

from .episodes import task_changes, training_sizes
from .options import IMAGES, FewshotPlan
from .row_data import OWN, RowData
from .row_scores import PairedSampler

Samplers = Mapping[str, GroupSampler | BatchSampler | PairedSampler]  # by split


class Counts(NamedTuple):
    """Rows of each class, [classes]."""

    counts: np.ndarray


class Training(NamedTuple):
    """The part of a data set that sizes of training tasks are found by."""

    train: Counts


def trained_on(data: RowData) -> Training:
    """Sizes the classes that a training task may have: of the domain with fewest, or all of them."""
    store = data.stores["train"]
    counts, parents = np.asarray(store.counts), jax.tree.map(np.asarray, store.parents)
    if data.within:
        # Rows have to suffice in every domain.
        counts = np.full(int(parents.counts.min()), counts.min())
    return Training(Counts(counts))


def make_samplers(plan: FewshotPlan, data: RowData) -> dict[str, Any]:
    """Makes the samplers of the episodes of each split.

    Args:
      plan: The run.
      data: The table.

    Returns:
      Sampler by split; the samplers of validation and test make `Paired` tasks.

    Raises:
      UsageError: If sizes do not fit together.
    """
    episodes, sequence = plan.episodes, plan.episodes.protocol == "sequence"
    ways, shots = training_sizes(episodes)
    inputs = inputs_of(plan, data)
    test = GroupSampler(
        episodes.ways,
        episodes.shots,
        1 if sequence else episodes.test_queries,
        within=data.within,
        view=_view(inputs),
    )
    tests = PairedSampler(test, dataclasses.replace(test, view=_view(data.flat)))
    if plan.supervised:

        def batch_view(store: Rows, key: Key, examples: Examples) -> Tree:
            del store, key
            return inputs(examples.features)

        train: Any = BatchSampler(images=episodes.images or IMAGES, view=batch_view)
    else:
        train = GroupSampler(
            ways,
            shots,
            1 if sequence else episodes.queries,
            min_ways=episodes.min_ways,
            min_shots=episodes.min_shots,
            within=data.within,
            view=_view(inputs),
            changes=task_changes(plan),
        )
    return {"train": train, "valid": tests, "test": tests}


def inputs_of(plan: FewshotPlan, data: RowData) -> Callable[[Tree], Tree]:
    """Makes the function from features [B, ...] to the inputs of the network."""
    if plan.network.model == "mlp":
        return data.flat

    def own(features: Tree) -> Tree:
        return {n: leaf[OWN] if n in data.parted else leaf for n, leaf in features.items()}

    return own


def _view(inputs: Callable[[Tree], Tree]) -> View:
    """Makes a view of features [N, K + Q, ...]."""

    def view(store: Rows, key: Key, examples: Examples) -> Tree:
        del store, key
        return jax.vmap(inputs)(examples.features)

    return view


def check_sizes(samplers: Samplers, data: RowData) -> None:
    """Raises DataError where episodes do not fit, with the flags that would fit.

    Args:
      samplers: Sampler by split.
      data: The table.

    Raises:
      DataError: If there are too few classes, or rows of a class.
    """
    for split, sampler in samplers.items():
        store = data.stores[split]
        if isinstance(sampler, BatchSampler):
            if sampler.images > (rows := int(store.counts.sum())):
                raise DataError(
                    f"A batch of {sampler.images} rows is more than the {rows:,} of {split}; use "
                    f"--images={rows}."
                )
            continue
        drawn = sampler.own if isinstance(sampler, PairedSampler) else sampler
        _check_classes(split, drawn, store)
        _check_rows(split, drawn, store)


def _check_classes(split: str, drawn: GroupSampler, store: Rows) -> None:
    """Raises DataError if a task has more classes than there are, or than the largest domain has."""
    least = drawn.ways if drawn.min_ways is None else drawn.min_ways
    held = int(np.max(store.parents.counts)) if drawn.within else len(store.counts)
    if least > held:
        flag = "train_ways" if split == "train" else "ways"
        where = f"the largest domain of {split}" if drawn.within else split
        raise DataError(
            f"{least} ways are more than the {held} classes of {where}; use --{flag}={held} or less, or "
            "divide the classes in another way (--split, --min_rows)."
        )


def _check_rows(split: str, drawn: GroupSampler, store: Rows) -> None:
    """Raises DataError if a class has fewer rows than a task needs."""
    counts, needed = np.asarray(store.counts), drawn.shots + drawn.queries
    fewest, fits = int(counts.min()), int((counts >= needed).sum())
    if fewest >= needed:
        return
    remedies = [f"--min_rows={needed}, which leaves {fits} classes"] if fits >= drawn.ways else []
    if fewest > drawn.shots:
        name = "queries" if split == "train" else "test_queries"
        remedies.append(f"--{name}={fewest - drawn.shots}")
    raise DataError(
        f"{drawn.shots} shots and {drawn.queries} queries need {needed} rows per class, and "
        f"{len(counts) - fits} of the {len(counts)} classes of {split} have fewer, the smallest {fewest}; "
        f"use {' or '.join(remedies) or 'fewer --shots'}."
    )
