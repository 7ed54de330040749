"""Tasks whose classes are groups of rows.

Which rows a task has depends on nothing but the sizes of groups, so that features may also stay on disk:
whoever reads those of a draw hands them to the sampler.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data.images import DataError
from metajax.episodes.changes import TaskFn
from metajax.episodes.choose import choose, choose_eligible
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.types import Array, Batch, Episode, Key, Tree


class GroupDraw(NamedTuple):
    """A task of groups before its features are looked up.

    Attributes:
      variants: Variant of each group, [N] int32.
      rows: Rows of each group, [N, K + Q] int32; the first K are the support set.
      weights: Zero for what only pads the task to its static shape, [N, K + Q] float32.
    """

    variants: Array
    rows: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class GroupSampler:
    """Draws tasks whose classes are groups; call it as `sampler(store, key) -> Episode`.

    Where features stay on disk, they are given too: `sampler(store, key, features)`.

    Where `min_ways < ways` or `min_shots < shots`, each task has its own number of ways and shots, uniform
    between the two. Its arrays keep the full shape: what is missing is filled by repeats of the task's own
    rows with weight zero, so that losses and metrics leave them out and batch statistics stay those of
    real examples. Unused classes are the last labels.

    The store must hold `ways` groups of `shots + queries` rows: sizes are traced here, so that what is too
    small cannot be refused, and would give rows of other groups. `check` refuses it.

    Attributes:
      ways: N.
      shots: K.
      queries: Q, per class.
      min_ways: Fewest ways; None means N.
      min_shots: Fewest shots; None means K.
      within: Whether the groups of a task belong to one parent. Parents are drawn uniformly among those with
        `min_ways` groups, and have no more ways than groups.
      own_targets: Whether targets are those of the store's rows, or the group's number where it has none;
        otherwise a group's label is its position in the task.
      variants: Number of classes that each group counts as; the view tells them apart.
      view: (store, key, examples [N, K + Q, ...]) -> inputs [N, K + Q, ...].
      changes: Changes of each whole task then, in order; see `episodes.tasks`. They count on labels that are
        positions, so that they do not go with `own_targets`.
    """

    ways: int
    shots: int
    queries: int
    min_ways: int | None = None
    min_shots: int | None = None
    within: bool = False
    own_targets: bool = False
    variants: int = 1
    view: View = plain_view
    changes: tuple[TaskFn, ...] = ()

    def __post_init__(self):
        for least, most in (("min_ways", "ways"), ("min_shots", "shots")):
            low, high = getattr(self, least), getattr(self, most)
            check_positive(self, most)
            if low is not None and not 1 <= low <= high:
                raise ValueError(f"{least} is {low}; use 1 to {high}, the number of {most}.")
        check_positive(self, "queries", "variants")
        if self.own_targets and self.changes:
            raise ValueError(
                "changes are of tasks whose labels are 0 to ways - 1; leave them out, or own_targets=True."
            )

    def check(self, store: Rows, *, name: str = "data", parents: Any = None) -> None:
        """Raises DataError if tasks of this size cannot be drawn from a store that is not traced.

        Args:
          store: Store to draw from.
          name: Name of the data in messages.
          parents: Parents that are given to `identify`, ints [E]; None where they are drawn.
        """
        sizes = np.asarray(store.parents.counts) if self.within else np.array([len(store.counts)])
        parent = critical(sizes, parents)
        ways, most = self._least_ways, int(sizes[parent]) * self.variants
        if most < ways:
            held = "any parent" if self.within else "the store"
            held = held if parents is None else f"parent {parent}"
            raise DataError(
                f"{ways} ways are more than the {most} groups of {held} of {name}; use fewer."
            )
        needed, fewest = self.shots + self.queries, int(store.counts.min())
        if fewest < needed:
            raise DataError(
                f"{self.shots} shots and {self.queries} queries need {needed} rows a group, but one of "
                f"{name} has {fewest}; use fewer, or leave out such groups."
            )

    def identify(self, store: Rows, key: Key, parent: Array | None = None) -> GroupDraw:
        """Chooses groups and rows without replacement: all that determines the task of `key` but its view.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          parent: Number of the parent of all groups, with `min_ways` groups or more, where they are within
            one; None draws it.
        """
        if parent is not None and not self.within:
            raise ValueError("A parent is given for groups of any parent; use within=True.")
        group_key, row_key, ways_key, shots_key, _ = jax.random.split(key, 5)
        first, size = 0, store.counts.shape[0]
        if self.within:
            group_key, parent_key = jax.random.split(group_key)
            if parent is None:
                enough = store.parents.counts * self.variants >= self._least_ways
                parent = choose_eligible(parent_key, enough)
            first, size = store.parents.starts[parent], store.parents.counts[parent]
        picked = choose(group_key, size * self.variants, self.ways)
        groups, per_class = first + picked % size, self.shots + self.queries
        rows = jax.vmap(lambda key, size: choose(key, size, per_class))(
            jax.random.split(row_key, self.ways), store.counts[groups]
        )
        rows += store.starts[groups][:, None]
        draw = GroupDraw(picked // size, rows, jnp.ones(rows.shape, jnp.float32))
        return self._vary(draw, size * self.variants, ways_key, shots_key)

    def __call__(self, store: Rows, key: Key, features: Tree = None) -> Episode:
        """Draws one task; support [N K, ...] and query [N Q, ...], sorted by group.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          features: Tree of arrays [N, K + Q, ...], features of the rows that `identify` names; None looks
            them up.
        """
        return self.episode(store, key, self.identify(store, key), features)

    def episode(self, store: Rows, key: Key, draw: GroupDraw, features: Tree = None) -> Episode:
        """Makes the task of a draw; the other arguments are those of a call."""
        *_, view_key = jax.random.split(key, 5)
        found = store.take(draw.rows) if features is None else features
        examples = Examples(found, draw.variants if self.variants > 1 else None)
        made = Batch(
            self.view(store, view_key, examples),
            self._targets(store, draw),
            draw.weights if self._varies else None,
        )

        def part(columns: slice) -> Batch:
            return jax.tree.map(lambda leaf: leaf[:, columns].reshape(-1, *leaf.shape[2:]), made)

        episode = Episode(part(slice(None, self.shots)), part(slice(self.shots, None)))
        for number, change in enumerate(self.changes):
            # Beside the keys of single examples, which a view splits from the same.
            episode = change(jax.random.fold_in(view_key, 2**31 + number), episode, self.ways)
        return episode

    def _targets(self, store: Rows, draw: GroupDraw) -> Tree:
        """Targets [N, K + Q, ...] of a draw."""
        if self.own_targets:
            return store.targets_of(draw.rows, draw.variants[:, None])
        labels = jnp.arange(self.ways, dtype=jnp.int32)[:, None]
        return jnp.broadcast_to(labels, draw.rows.shape)

    @property
    def _varies(self) -> bool:
        return self.min_ways is not None or self.min_shots is not None

    @property
    def _least_ways(self) -> int:
        return self.ways if self.min_ways is None else self.min_ways

    def _vary(self, draw: GroupDraw, most: Array | int, ways_key: Key, shots_key: Key) -> GroupDraw:
        """Shortens a draw to its task's own ways, `most` at most, and shots, by repeats at weight zero."""
        if not self._varies:
            return draw
        min_shots = self.shots if self.min_shots is None else self.min_shots
        ways = jax.random.randint(ways_key, (), self._least_ways, self.ways + 1, jnp.int32)
        shots = jax.random.randint(shots_key, (), min_shots, self.shots + 1, jnp.int32)
        ways = jnp.minimum(ways, most)
        rows, columns = (
            jnp.arange(length, dtype=jnp.int32) for length in (self.ways, self.shots + self.queries)
        )
        kept_columns = (columns < shots) | (columns >= self.shots)
        weights = (rows[:, None] < ways) & kept_columns
        rows = rows % ways
        columns = jnp.where(kept_columns, columns, columns % shots)
        return GroupDraw(
            draw.variants[rows], draw.rows[rows][:, columns], weights.astype(jnp.float32)
        )


def critical(sizes: np.ndarray, given: Any) -> int:
    """Finds the number whose size decides whether tasks fit.

    Args:
      sizes: Sizes of all parents, or groups, [P].
      given: Numbers of those that are given, ints [E]; None where they are drawn.

    Returns:
      The largest where they are drawn, the smallest of those that are given.

    Raises:
      DataError: A number is out of range.
    """
    if given is None:
        return int(np.argmax(sizes))
    given = np.asarray(given)
    outside = given[(given < 0) | (given >= len(sizes))]
    if len(outside):
        raise DataError(
            f"A task is of parent {outside[0]}, but there are 0 to {len(sizes) - 1}; use those."
        )
    return int(given[np.argmin(sizes[given])])


def check_positive(sampler: Any, *names: str) -> None:
    """Raises ValueError where one of these attributes is not 1 or more."""
    for name in names:
        if getattr(sampler, name) < 1:
            raise ValueError(f"{name} is {getattr(sampler, name)}; use 1 or more.")
