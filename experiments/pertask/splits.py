"""The list of test tasks: every test unit, split some times into a support set and all its other rows.

Splits are drawn on the host by a generator of (seed, unit, repeat), so that a task has the same rows whatever
else is tested, and rows are known before anything is compiled. Queries are padded to a power of two, one
program each.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from metajax.episodes import Listed
from metajax.episodes.listed import listed_rows
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitSampler
from metajax.episodes.views import View, plain_view
from metajax.errors import DataError

from ..setup.row_tests import BY_CLASS, digests, split
from .data import TaskData

LEAST_BUCKET = 16  # queries of the smallest program
FEW_ROWS = 1 << 17  # of padding, which takes less time than another program takes to compile


class Protocol(NamedTuple):
    """How test tasks are made.

    Attributes:
      order: Choice of support rows, one of `row_tests.ORDERS`.
      repeats: Number of splits of each unit.
      seed: Seed of the splits.
      queries: Largest number of queries of a task; 0 for all other rows.
      min_queries: Fewest queries of a unit that is tested.
      units: Largest number of units, spread evenly over all; 0 for all.
    """

    order: str
    repeats: int
    seed: int
    queries: int = 0
    min_queries: int = 1
    units: int = 0


class Tests(NamedTuple):
    """The test tasks of one support size; task i is unit `units[i // repeats]`.

    Attributes:
      support: Number K of support rows.
      units: Numbers of the tested units, [U].
      left_out: Number of units with too few rows.
      supports: Support rows of each task, int arrays [K] of rows of the store.
      queries: Query rows of each task, int arrays of any length.
      repeats: Number of tasks of each unit, one after another.
    """

    support: int
    units: np.ndarray
    left_out: int
    supports: list[np.ndarray]
    queries: list[np.ndarray]
    repeats: int

    def by_unit(self, values: np.ndarray) -> np.ndarray:
        """Averages numbers [E] over the repeats of each unit where they are defined, [U]."""
        table = np.asarray(values, np.float64).reshape(-1, self.repeats)
        defined = ~np.isnan(table)
        sums, counts = np.where(defined, table, 0).sum(1), defined.sum(1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def digests(self) -> np.ndarray:
        """Hashes the rows of each task, [E, 8] uint32."""
        return digests(zip(self.supports, self.queries, strict=True))


class Bucket(NamedTuple):
    """Test tasks of about the same number of queries.

    Attributes:
      tasks: Numbers of the tasks, [n].
      sampler: Sampler of their padded sizes.
      listed: The tasks as a list of that sampler.
    """

    tasks: np.ndarray
    sampler: SplitSampler
    listed: Listed


def list_tests(data: TaskData, support: int, protocol: Protocol) -> Tests:
    """Lists the test tasks of a support size.

    Args:
      data: The tables.
      support: Number of support rows K.
      protocol: Rules by which tasks are made.

    Returns:
      The tasks.

    Raises:
      DataError: If no unit has enough rows.
    """
    starts, counts = units_of(data.stores["test"], data.by_group)
    least = support + protocol.min_queries
    labels = _labels(data) if protocol.order in BY_CLASS else None
    fits = counts >= least
    if protocol.order == "balanced":
        check_divides(support, data.ways)
        fits &= _smallest_class(labels, starts, counts, data.ways) >= support // data.ways
        if not fits.any() and (counts >= least).any():
            most = int(_smallest_class(labels, starts, counts, data.ways).max())
            raise DataError(
                f"--support={support} needs {support // data.ways} rows of each of {data.ways} classes, and "
                f"no test task has more than {most}; use --support={most * data.ways} or less, or "
                "--order=stratified."
            )
    fit = np.flatnonzero(fits)
    if not len(fit):
        most = int(counts.max())
        remedy = f"--support={most - protocol.min_queries}" if most > protocol.min_queries else ""
        raise DataError(
            f"--support={support} and --min_queries={protocol.min_queries} need {least} rows of a test task, "
            f"and the largest of {len(counts):,} has {most:,}; use {remedy or 'other test tasks'}."
        )
    units = fit
    if protocol.units and protocol.units < len(fit):
        units = fit[np.linspace(0, len(fit) - 1, protocol.units).round().astype(int)]
    supports, queries = [], []
    for unit in units:
        first, size = int(starts[unit]), int(counts[unit])
        strata = None if labels is None else labels[first : first + size]
        for repeat in range(protocol.repeats):
            rng = np.random.default_rng([protocol.seed, int(unit), repeat])
            chosen, rest = split(rng, size, support, order=protocol.order, strata=strata)
            supports.append(first + chosen)
            queries.append(first + (rest[: protocol.queries] if protocol.queries else rest))
    return Tests(support, units, len(counts) - len(fit), supports, queries, protocol.repeats)


def check_divides(support: int, ways: int | None) -> None:
    """Raises DataError if support rows do not divide over the classes.

    Args:
      support: Number of support rows.
      ways: Number of classes; None for values.

    Raises:
      DataError: If there is a remainder.
    """
    if ways and support % ways:
        raise DataError(
            f"--support={support} does not divide over {ways} classes, and --order=balanced needs equally "
            f"many of each; use a multiple of {ways}."
        )


def buckets(tests: Tests, store: Rows, view: View = plain_view) -> Iterator[Bucket]:
    """Groups the tasks by the power of two to which their queries are padded; small groups join the next.

    Args:
      tests: The tasks.
      store: Their store.
      view: Function from the features of rows to inputs.

    Yields:
      A bucket for each power that is left, smallest first.
    """
    sizes = np.array([bucket_size(len(rows)) for rows in tests.queries])
    for small, large in itertools.pairwise(np.unique(sizes).tolist()):
        if (sizes == small).sum() * (large - small) < FEW_ROWS:
            sizes[sizes == small] = large
    for size in np.unique(sizes):
        tasks = np.flatnonzero(sizes == size)
        sampler = SplitSampler(tests.support, int(size), view=view)
        listed = listed_rows(
            sampler,
            store,
            support=[tests.supports[task] for task in tasks],
            queries=[tests.queries[task] for task in tasks],
        )
        yield Bucket(tasks, sampler, listed)


def bucket_size(queries: int) -> int:
    """Returns the number of queries that a task is padded to: a power of two, LEAST_BUCKET at least."""
    return max(LEAST_BUCKET, 1 << (queries - 1).bit_length())


def units_of(store: Rows, by_group: bool) -> tuple[np.ndarray, np.ndarray]:
    """Finds the first row and the number of rows of each unit: a group, or a parent.

    Args:
      store: Store.
      by_group: Whether a task is one group rather than one parent.

    Returns:
      First rows [U] and numbers of rows [U].
    """
    starts, counts = np.asarray(store.starts), np.asarray(store.counts)
    if by_group:
        return starts, counts
    parents = [np.asarray(leaf) for leaf in store.parents]
    first, last = parents[0], parents[0] + parents[1] - 1
    return starts[first], starts[last] + counts[last] - starts[first]


def _smallest_class(
    labels: np.ndarray, starts: np.ndarray, counts: np.ndarray, ways: int
) -> np.ndarray:
    """Counts the rows of the rarest class of each unit, [U]."""
    parts = zip(starts.tolist(), counts.tolist(), strict=True)
    return np.array(
        [np.bincount(labels[at : at + size], minlength=ways).min() for at, size in parts]
    )


def _labels(data: TaskData) -> np.ndarray:
    """Returns the labels of the test rows, which are their strata."""
    return np.asarray(data.stores["test"].targets).reshape(-1)
