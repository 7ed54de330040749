"""Tasks whose classes are groups of rows.

The rows of a task depend on the sizes of groups alone, so features may stay on disk: a caller can draw the
rows first with `identify`, read their features, and pass these to the sampler.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.changes import TaskFn
from metajax.episodes.choose import choose, choose_eligible
from metajax.episodes.rows import Rows
from metajax.episodes.views import Examples, View, plain_view
from metajax.errors import DataError
from metajax.types import Array, Batch, Episode, Key, Tree


class GroupDraw(NamedTuple):
    """The rows of a task of groups, before their features are looked up.

    Attributes:
      variants: Variant of each group, [N] int32.
      rows: Rows of each group, [N, K + Q] int32; the first K are the support set.
      weights: Weights of the rows, [N, K + Q] float32; zero marks padding.
    """

    variants: Array
    rows: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class GroupSampler:
    """Draws N-way K-shot tasks whose classes are groups; call it as `sampler(store, key) -> Episode`.

    Groups, and the rows of a group, are drawn uniformly without replacement. The label of a row is the
    position of its group in the task, 0 to N - 1, so that no label has a meaning across tasks; see
    `own_targets` for regression and for fixed labels.

    Tasks of different sizes: with `min_ways` or `min_shots`, each task has its own number of ways or shots,
    uniform between the two limits. Arrays keep the full shape, so that one compiled program serves all tasks:
    they are padded by repeats of the task's own rows with weight zero, which losses and metrics leave out,
    and which keep batch statistics close to the statistics of real examples. Unused classes are the last
    labels.

    The store must hold `ways` groups of `shots + queries` rows each. Sizes are traced under `jit`, so a call
    cannot refuse a smaller store, and would take rows of other groups. Call `check` once before.

    If features stay on disk, pass the features of the drawn rows as a third argument:
    `sampler(store, key, features)`.

    Attributes:
      ways: Number of classes N.
      shots: Number of support rows K per class.
      queries: Number of query rows Q per class.
      min_ways: Fewest ways; None means N.
      min_shots: Fewest shots; None means K.
      within: Whether all groups of a task belong to one parent. Parents are drawn uniformly from those with
        at least `min_ways` groups; a task has at most as many ways as its parent has groups.
      own_targets: Whether targets are the targets of the store's rows, or the number of the group if the
        store has none. By default a target is the position of the group in the task.
      variants: Number of classes that each group counts as; the view tells them apart, as quarter turns of
        images.
      view: Function (store, key, examples [N, K + Q, ...]) -> inputs [N, K + Q, ...].
      changes: Functions (key, episode, ways) -> episode, applied to each task in order; see
        `metajax.episodes.changes`. They need labels that are positions, and therefore exclude `own_targets`.

    Example:
      Twenty intents of eight sentences, each an embedding of sixteen numbers; a task has five intents.

      >>> rng = np.random.default_rng(0)
      >>> sentences = rng.normal(size=(160, 16)).astype(np.float32)
      >>> store = metajax.Rows.from_groups(sentences, np.repeat(np.arange(20), 8))
      >>> sampler = GroupSampler(ways=5, shots=1, queries=3)
      >>> sampler.check(store)
      >>> episode = jax.jit(sampler)(store, jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.inputs.shape
      ((5, 16), (15, 16))
      >>> print(episode.query.targets)
      [0 0 0 1 1 1 2 2 2 3 3 3 4 4 4]

      Intents in domains: all classes of a task are of one domain.

      >>> domains = np.repeat([0, 1], 10)
      >>> store = metajax.Rows.from_groups(sentences, np.repeat(np.arange(20), 8), parents=domains)
      >>> sampler = GroupSampler(ways=5, shots=1, queries=3, within=True)
      >>> groups = store.groups_of(jax.jit(sampler.identify)(store, jax.random.key(0)).rows)
      >>> len(set(domains[groups].ravel().tolist()))
      1
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
                "changes need tasks whose labels are 0 to ways - 1, and own_targets=True gives others; leave "
                "out one of the two."
            )

    def check(self, store: Rows, *, name: str = "data", parents: Any = None) -> None:
        """Checks that tasks of this size can be drawn from a store.

        Args:
          store: Store to draw from, not traced.
          name: Name of the data in messages.
          parents: Parents that are passed to `identify`, ints [E]; None if they are drawn.

        Raises:
          DataError: If the store, or a parent, has too few groups, or a group too few rows.
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
                f"{self.shots} shots and {self.queries} queries need {needed} rows per group, but a group of "
                f"{name} has {fewest}; use fewer, or leave out such groups."
            )

    def identify(self, store: Rows, key: Key, parent: Array | None = None) -> GroupDraw:
        """Chooses groups and rows without replacement.

        The draw and the key determine the task: the key also serves the view.

        Args:
          store: Store to draw from.
          key: Random key; a call of the sampler with the same key has the same rows.
          parent: Number of the parent of all groups, which must have at least `min_ways` groups; for
            `within=True` alone. None draws it.

        Returns:
          The draw.

        Raises:
          ValueError: If a parent is given and `within` is False.
        """
        if parent is not None and not self.within:
            raise ValueError(
                "A parent is given, but groups are drawn from all parents; use within=True."
            )
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
        """Draws one task, sorted by group.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          features: Tree of arrays [N, K + Q, ...], the features of the rows that `identify` draws; None looks
            them up in the store.

        Returns:
          An episode of a support set [N K, ...] and a query set [N Q, ...].
        """
        return self.episode(store, key, self.identify(store, key), features)

    def episode(self, store: Rows, key: Key, draw: GroupDraw, features: Tree = None) -> Episode:
        """Makes the task of a draw.

        Args:
          store: Store of the draw.
          key: Random key of the view and the changes, consumed.
          draw: Draw, as `identify` returns it.
          features: Features of its rows [N, K + Q, ...]; None looks them up in the store.

        Returns:
          An episode of a support set [N K, ...] and a query set [N Q, ...].
        """
        *_, view_key = jax.random.split(key, 5)
        found = store.take(draw.rows) if features is None else features
        # Two swapped axes would go through the reshape below, and mix the classes.
        chex.assert_tree_shape_prefix(found, draw.rows.shape)
        examples = Examples(found, draw.variants if self.variants > 1 else None)
        inputs = self.view(store, view_key, examples)
        chex.assert_tree_shape_prefix(inputs, draw.rows.shape)
        made = Batch(
            inputs,
            self._targets(store, draw),
            draw.weights if self._varies else None,
        )

        def part(columns: slice) -> Batch:
            return jax.tree.map(lambda leaf: leaf[:, columns].reshape(-1, *leaf.shape[2:]), made)

        episode = Episode(part(slice(None, self.shots)), part(slice(self.shots, None)))
        for number, change in enumerate(self.changes):
            # The view splits the same key into keys of single examples, whose numbers are smaller.
            episode = change(jax.random.fold_in(view_key, 2**31 + number), episode, self.ways)
        return episode

    def _targets(self, store: Rows, draw: GroupDraw) -> Tree:
        """Finds the targets [N, K + Q, ...] of a draw."""
        if self.own_targets:
            return store.targets_of(draw.rows, draw.variants[:, None])
        labels = jnp.arange(self.ways, dtype=jnp.int32)[:, None]
        return jnp.broadcast_to(labels, draw.rows.shape)

    @property
    def _varies(self) -> bool:
        """Whether tasks have different numbers of ways or shots."""
        return self.min_ways is not None or self.min_shots is not None

    @property
    def _least_ways(self) -> int:
        """Fewest ways of a task."""
        return self.ways if self.min_ways is None else self.min_ways

    def _vary(self, draw: GroupDraw, most: Array | int, ways_key: Key, shots_key: Key) -> GroupDraw:
        """Reduces a draw to a random number of ways, at most `most`, and of shots.

        The rows beyond them become repeats with weight zero.
        """
        if not self._varies:
            return draw
        min_shots = self.shots if self.min_shots is None else self.min_shots
        ways = jax.random.randint(ways_key, (), self._least_ways, self.ways + 1, jnp.int32)
        shots = jax.random.randint(shots_key, (), min_shots, self.shots + 1, jnp.int32)
        ways = jnp.minimum(ways, most)
        rows, columns = (
            jnp.arange(length, dtype=jnp.int32) for length in (self.ways, self.shots + self.queries)
        )
        # Columns [0, shots) and the queries stay; rows and columns beyond repeat earlier ones in turn.
        kept_columns = (columns < shots) | (columns >= self.shots)
        weights = (rows[:, None] < ways) & kept_columns
        rows = rows % ways
        columns = jnp.where(kept_columns, columns, columns % shots)
        return GroupDraw(
            draw.variants[rows], draw.rows[rows][:, columns], weights.astype(jnp.float32)
        )


def critical(sizes: np.ndarray, given: Any) -> int:
    """Finds the parent, or group, whose size decides if tasks fit.

    Args:
      sizes: Sizes of all parents, or groups, [P].
      given: Numbers of the parents of the tasks, ints [E]; None if they are drawn.

    Returns:
      The number of the largest if they are drawn, since small ones are not drawn; otherwise the number of the
      smallest given one.

    Raises:
      DataError: If a number is out of range.
    """
    if given is None:
        return int(np.argmax(sizes))
    given = np.asarray(given)
    outside = given[(given < 0) | (given >= len(sizes))]
    if len(outside):
        raise DataError(
            f"A task has parent {outside[0]}, but the parents are 0 to {len(sizes) - 1}; use one of these."
        )
    return int(given[np.argmin(sizes[given])])


def check_positive(sampler: Any, *names: str) -> None:
    """Checks that attributes of a sampler are at least 1.

    Args:
      sampler: Sampler.
      *names: Names of attributes that are ints.

    Raises:
      ValueError: If one is less.
    """
    for name in names:
        if getattr(sampler, name) < 1:
            raise ValueError(f"{name} is {getattr(sampler, name)}; use 1 or more.")
