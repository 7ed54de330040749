"""Tasks that are the rows of one parent, or of one group, split into support and query sets."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data.images import DataError
from metajax.episodes.choose import choose, choose_eligible, choose_within
from metajax.episodes.group_sampler import check_positive, critical
from metajax.episodes.rows import Ranges, Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.types import Array, Batch, Episode, Key, Tree


class SplitDraw(NamedTuple):
    """A task of one parent or group before its features are looked up.

    Attributes:
      rows: Rows, [K + Q] int32; the first K are the support set.
      weights: Zero for what only pads the task to its static shape, [K + Q] float32.
    """

    rows: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class SplitSampler:
    """Splits the rows of one parent, or of one group; call it as `sampler(store, key) -> Episode`.

    Parents, or groups, are drawn uniformly among those of two rows or more. Targets are those of the store's
    rows; where it has none, the label of a parent's row is its group's number within the parent.

    A parent of n < `support + queries` rows has min(`support`, n - 1) support examples, and its other rows
    are queries. Arrays keep the full shape: they are filled by repeats with weight zero. A parent of one row
    is never drawn; given to `identify`, it has one query and a support set of weight zero.

    Attributes:
      support: K, support examples.
      queries: Q, queries.
      order: Way to choose the K + Q rows, one of ORDERS. `random` draws them uniformly without replacement.
        `first` takes the first K rows for the support set and the next Q for queries: the order in which rows
        of a group were given, such as time. Rows of a parent are sorted by group, so that it needs `by_group`
        or parents of one group. `stratified` draws them so that each group has the same share of the support
        set, and of the queries, as of the parent, up to rounding.
      by_group: Whether a task is one group rather than one parent.
      view: (store, key, examples [K + Q, ...]) -> inputs [K + Q, ...].
    """

    support: int
    queries: int
    order: str = "random"
    by_group: bool = False
    view: View = plain_view

    def __post_init__(self):
        check_positive(self, "support", "queries")
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; use {', '.join(ORDERS)}.")
        if self.by_group and self.order == "stratified":
            raise ValueError("A single group has no strata; use order='random', or by_group=False.")

    def check(self, store: Rows, *, name: str = "data", parents: Any = None) -> None:
        """Raises DataError if a store that is not traced has nothing to split, or to learn.

        Args:
          store: Store to draw from.
          name: Name of the data in messages.
          parents: Parents, or groups, that are given to `identify`, ints [E]; None where they are drawn.
        """
        sizes = np.asarray(self._units(store).counts)
        parent = critical(sizes, parents)
        if sizes[parent] < 2:
            unit = "group" if self.by_group else "parent"
            held = f"The largest {unit}" if parents is None else f"{unit.capitalize()} {parent}"
            raise DataError(
                f"{held} of {name} has one row, and a split needs two; make it larger, or leave it out."
            )
        if self.order == "first" and not self.by_group and (most := store.parents.counts.max()) > 1:
            raise DataError(
                f"order='first' needs rows in their own order, but a parent of {name} has {most} groups, and "
                "its rows are sorted by group; use another order, by_group=True, or one group a parent."
            )
        if self.by_group and store.targets is None:
            raise DataError(
                f"The rows of {name} have no targets, and a group has one label; give targets."
            )

    def identify(self, store: Rows, key: Key, parent: Array | None = None) -> SplitDraw:
        """Chooses a parent and splits its rows: all that determines the task of `key` but its view.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          parent: Number of the parent, or group, to split; None draws it.
        """
        parent_key, rows_key, _ = jax.random.split(key, 3)
        units = self._units(store)
        if parent is None:
            parent = choose_eligible(parent_key, units.counts >= 2)
        first, size = units.starts[parent], units.counts[parent]
        support = jnp.minimum(self.support, size - 1)
        queries = jnp.minimum(self.queries, size - support)
        split = _Split(first, size, support, queries)
        places = ORDERS[self.order](store, rows_key, split, self.support + self.queries)
        slots, asked = (jnp.arange(n, dtype=jnp.int32) for n in (self.support, self.queries))
        kept = jnp.concatenate([slots < support, asked < queries])
        # Without a second row the support set is a repeat too, of weight zero.
        padded = jnp.concatenate([slots % jnp.maximum(support, 1), support + asked % queries])
        return SplitDraw(first + places[padded], kept.astype(jnp.float32))

    def __call__(self, store: Rows, key: Key, features: Tree = None) -> Episode:
        """Draws one task; support [K, ...] and query [Q, ...].

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          features: Tree of arrays [K + Q, ...], features of the rows that `identify` names; None looks
            them up.
        """
        return self.episode(store, key, self.identify(store, key), features)

    def episode(self, store: Rows, key: Key, draw: SplitDraw, features: Tree = None) -> Episode:
        """Makes the task of a draw; the other arguments are those of a call."""
        *_, view_key = jax.random.split(key, 3)
        found = store.take(draw.rows) if features is None else features
        inputs = self.view(store, view_key, Examples(found))
        targets = store.targets_of(draw.rows)
        if store.targets is None:
            parents = store.parents.starts
            own = jnp.searchsorted(parents, targets, side="right") - 1
            targets = targets - parents[own]
        made = Batch(inputs, targets, draw.weights)
        return Episode(
            jax.tree.map(lambda leaf: leaf[: self.support], made),
            jax.tree.map(lambda leaf: leaf[self.support :], made),
        )

    def _units(self, store: Rows) -> Ranges:
        """Ranges of rows of what is split."""
        if self.by_group:
            return Ranges(store.starts, store.counts)
        first, last = store.parents.starts, store.parents.starts + store.parents.counts - 1
        starts = store.starts[first]
        return Ranges(starts, store.starts[last] + store.counts[last] - starts)


class _Split(NamedTuple):
    """What is to be split, the sizes as far as there are rows.

    Attributes:
      first: First row, an int32 scalar.
      size: Number of rows, an int32 scalar.
      support: Support examples, an int32 scalar.
      queries: Queries, an int32 scalar.
    """

    first: Array
    size: Array
    support: Array
    queries: Array


def _random(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Draws `count` places of those that are split; the support set's come first, then the queries'."""
    del store
    return choose(key, split.size, count)


def _first(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Takes the first places."""
    del store, key, split
    return jnp.arange(count, dtype=jnp.int32)


def _stratified(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Draws places such that every group has its share.

    Slots are spread evenly over the rows, which lie sorted by group, once for the support set and once over
    what it leaves: so many of a group are drawn as slots fell on it, without replacement.
    """
    support_key, queries_key, draw_key = jax.random.split(key, 3)
    slots = jnp.arange(count, dtype=jnp.int32)
    support = _spread(support_key, slots, split.size, split.support)
    left = _spread(queries_key, slots - split.support, split.size - split.support, split.queries)
    # The n-th place left lies above those of the support set that have n left below them, or fewer.
    below = (slots < split.support) & (support - slots <= left[:, None])
    places = jnp.where(slots < split.support, support, left + below.sum(1, dtype=jnp.int32))
    used = slots < split.support + split.queries
    groups = jnp.where(used, store.groups_of(split.first + places), len(store.starts))
    order = jnp.argsort(groups, stable=True)
    groups = groups[order]
    ranks = slots - jnp.searchsorted(groups, groups).astype(jnp.int32)
    starts, sizes = store.starts[groups] - split.first, store.counts[groups]
    return slots.at[order].set(choose_within(draw_key, starts, sizes, ranks))


def _spread(key: Key, slots: Array, size: Array, count: Array) -> Array:
    """Spreads slots 0 to count - 1 evenly over places [0, size), from an offset drawn at random."""
    count = jnp.maximum(count, 1)
    offset = jax.random.randint(key, (), 0, size, jnp.int32)
    # (slots * size + offset) // count, of smaller numbers.
    return slots * (size // count) + (slots * (size % count) + offset) // count


ORDERS = {"random": _random, "first": _first, "stratified": _stratified}
