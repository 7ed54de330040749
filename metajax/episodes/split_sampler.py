"""Tasks that are one parent, or one group, whose rows are split into a support and a query set."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.choose import choose, choose_eligible, choose_within
from metajax.episodes.group_sampler import check_positive, critical
from metajax.episodes.rows import Ranges, Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.errors import DataError
from metajax.types import Array, Batch, Episode, Key, Tree


class SplitDraw(NamedTuple):
    """The rows of a task of one parent or group, before their features are looked up.

    Attributes:
      rows: Rows, [K + Q] int32; the first K are the support set.
      weights: Weights of the rows, [K + Q] float32; zero marks padding.
    """

    rows: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class SplitSampler:
    """Splits the rows of one parent, or of one group; call it as `sampler(store, key) -> Episode`.

    For tasks that are one user, assay or sensor, whose rows have targets. Parents, or groups, are drawn
    uniformly from those with at least two rows. Targets are the targets of the store's rows; if it has none,
    the label of a row is the number of its group within the parent.

    Small parents: a parent of n < K + Q rows has min(K, n - 1) support rows, and its other rows are queries.
    Arrays keep the full shape, padded by repeats with weight zero, which losses and metrics leave out. A
    parent of one row is never drawn; passed to `identify`, it has one query and a support set of weight zero.

    Attributes:
      support: Number K of support rows.
      queries: Number Q of query rows.
      order: Choice of the K + Q rows. `random` draws them uniformly without replacement. `first` takes the
        first K rows for the support set and the next Q for the queries, in the order in which rows of a group
        were given to `Rows.from_groups`, such as time; rows of a parent are sorted by group, so it needs
        `by_group`, or parents of a single group. `stratified` draws rows such that each group has the same
        share of the support set, and of the queries, that it has of the parent, up to rounding; a rare group
        has one support row at least, unless there are fewer support rows than groups.
      by_group: Whether a task is one group rather than one parent.
      view: Function (store, key, examples [K + Q, ...]) -> inputs [K + Q, ...].

    Example:
      A table of ratings by three users: a task is one user, earlier ratings are the support set.

      >>> users = np.array([0, 1, 0, 2, 1, 0, 2, 0])
      >>> films = np.arange(8)
      >>> stars = np.array([4, 1, 3, 5, 2, 5, 4, 1], np.float32)
      >>> store = metajax.Rows.from_groups(films, users, targets=stars)
      >>> sampler = SplitSampler(support=2, queries=1, order="first", by_group=True)
      >>> sampler.check(store)
      >>> key = jax.random.key(0)
      >>> episode = sampler.episode(store, key, sampler.identify(store, key, 0))
      >>> print(episode.support.inputs, episode.support.targets, episode.query.inputs)
      [0 2] [4. 3.] [5]

      User 1 has two ratings alone, so the second support row is a repeat of weight zero.

      >>> draw = sampler.identify(store, key, 1)
      >>> print(draw.weights)
      [1. 0. 1.]
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
        """Checks that a store has parents, or groups, that can be split, and targets to learn.

        Args:
          store: Store to draw from, not traced.
          name: Name of the data in messages.
          parents: Parents, or groups, that are passed to `identify`, ints [E]; None if they are drawn.

        Raises:
          DataError: If a parent has a single row, its rows have lost their order, or a group has no
            targets.
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
                "its rows are sorted by group; use another order, by_group=True, or one group per parent."
            )
        if self.by_group and store.targets is None:
            raise DataError(
                f"The rows of {name} have no targets, and all rows of a group have the same label; give "
                "targets, or use by_group=False."
            )

    def identify(self, store: Rows, key: Key, parent: Array | None = None) -> SplitDraw:
        """Chooses a parent, or group, and splits its rows.

        The draw and the key determine the task: the key also serves the view.

        Args:
          store: Store to draw from.
          key: Random key; a call of the sampler with the same key has the same rows.
          parent: Number of the parent, or group, to split; None draws it.

        Returns:
          The draw.
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
        # Slots beyond the support rows repeat them in turn. A parent of one row has no support row, and its
        # support set repeats the query.
        padded = jnp.concatenate([slots % jnp.maximum(support, 1), support + asked % queries])
        return SplitDraw(first + places[padded], kept.astype(jnp.float32))

    def __call__(self, store: Rows, key: Key, features: Tree = None) -> Episode:
        """Draws one task.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          features: Tree of arrays [K + Q, ...], the features of the rows that `identify` draws; None looks
            them up in the store.

        Returns:
          An episode of a support set [K, ...] and a query set [Q, ...], with weights.
        """
        return self.episode(store, key, self.identify(store, key), features)

    def episode(self, store: Rows, key: Key, draw: SplitDraw, features: Tree = None) -> Episode:
        """Makes the task of a draw.

        Args:
          store: Store of the draw.
          key: Random key of the view, consumed.
          draw: Draw, as `identify` returns it.
          features: Features of its rows [K + Q, ...]; None looks them up in the store.

        Returns:
          An episode of a support set [K, ...] and a query set [Q, ...], with weights.
        """
        *_, view_key = jax.random.split(key, 3)
        found = store.take(draw.rows) if features is None else features
        chex.assert_tree_shape_prefix(found, draw.rows.shape)
        inputs = self.view(store, view_key, Examples(found))
        chex.assert_tree_shape_prefix(inputs, draw.rows.shape)
        targets = store.targets_of(draw.rows)
        if store.targets is None:  # the targets are numbers of groups, counted over all parents
            parents = store.parents.starts
            own = jnp.searchsorted(parents, targets, side="right") - 1
            targets = targets - parents[own]
        made = Batch(inputs, targets, draw.weights)
        return Episode(
            jax.tree.map(lambda leaf: leaf[: self.support], made),
            jax.tree.map(lambda leaf: leaf[self.support :], made),
        )

    def _units(self, store: Rows) -> Ranges:
        """Finds the ranges of rows of the parents, or groups, that are split."""
        if self.by_group:
            return Ranges(store.starts, store.counts)
        first, last = store.parents.starts, store.parents.starts + store.parents.counts - 1
        starts = store.starts[first]
        return Ranges(starts, store.starts[last] + store.counts[last] - starts)


class _Split(NamedTuple):
    """A parent or group to split, and the sizes of its parts.

    Attributes:
      first: First row, an int32 scalar.
      size: Number of rows, an int32 scalar.
      support: Number of support rows, an int32 scalar.
      queries: Number of query rows, an int32 scalar.
    """

    first: Array
    size: Array
    support: Array
    queries: Array


def _random(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Draws `count` places in [0, size): first the support rows, then the queries."""
    del store
    return choose(key, split.size, count)


def _first(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Takes the first `count` places."""
    del store, key, split
    return jnp.arange(count, dtype=jnp.int32)


def _stratified(store: Rows, key: Key, split: _Split, count: int) -> Array:
    """Draws places such that every group has its share.

    Slots are spread evenly over the rows, which are sorted by group, once for the support set and once over
    the rows that it leaves. As many rows of a group are drawn, without replacement, as slots fell on it.
    """
    support_key, queries_key, draw_key = jax.random.split(key, 3)
    slots = jnp.arange(count, dtype=jnp.int32)
    support = _spread(support_key, slots, split.size, split.support)
    support = _with_every_group(store, split, slots, support)
    left = _spread(queries_key, slots - split.support, split.size - split.support, split.queries)
    # `left` numbers the places that the support set leaves. The n-th of them is n plus the number of support
    # places below it, which are those with at most n left places below them.
    below = (slots < split.support) & (support - slots <= left[:, None])
    places = jnp.where(slots < split.support, support, left + below.sum(1, dtype=jnp.int32))
    used = slots < split.support + split.queries
    groups = jnp.where(used, store.groups_of(split.first + places), len(store.starts))
    order = jnp.argsort(groups, stable=True)
    groups = groups[order]
    ranks = slots - jnp.searchsorted(groups, groups).astype(jnp.int32)
    starts, sizes = store.starts[groups] - split.first, store.counts[groups]
    return slots.at[order].set(choose_within(draw_key, starts, sizes, ranks))


def _with_every_group(store: Rows, split: _Split, slots: Array, places: Array) -> Array:
    """Moves support slots from the largest groups to groups without one, if there is a slot for each group.

    A class without a support row cannot be predicted: its queries would have the loss of an absent class.

    Args:
      store: Store of the rows.
      split: Parent to split.
      slots: Numbers of the slots, [n]; the first `split.support` are used.
      places: Place of each slot, [n], ascending.

    Returns:
      Places [n], of which those used ascend.
    """
    used, base = slots < split.support, store.groups_of(split.first)
    groups = store.groups_of(split.first + split.size - 1) - base + 1

    def taken(places: Array) -> tuple[Array, Array]:
        """Finds the group of each slot, and counts the slots of each group; there are at most n groups."""
        own = jnp.where(used, store.groups_of(split.first + places) - base, -1)
        return own, (own == slots[:, None]).sum(1, dtype=jnp.int32)

    def missing(places: Array) -> Array:
        return (taken(places)[1] == 0) & (slots < groups) & (groups <= split.support)

    def move(places: Array) -> Array:
        own, counts = taken(places)
        slot, group = jnp.argmax(own == jnp.argmax(counts)), jnp.argmax(missing(places))
        return places.at[slot].set(store.starts[base + group] - split.first)

    places = jax.lax.while_loop(lambda places: missing(places).any(), move, places)
    return jnp.sort(jnp.where(used, places, split.size))


def _spread(key: Key, slots: Array, size: Array, count: Array) -> Array:
    """Spreads slots 0 to count - 1 evenly over places [0, size), from a random offset."""
    count = jnp.maximum(count, 1)
    offset = jax.random.randint(key, (), 0, size, jnp.int32)
    # (slots * size + offset) // count, written so that int32 does not overflow.
    return slots * (size // count) + (slots * (size % count) + offset) // count


ORDERS = {"random": _random, "first": _first, "stratified": _stratified}
"""Functions (store, key, split, count) -> places [count] by the name of the order."""
