"""Rows in groups: one store for images in classes, ratings of users, molecules of assays.

A `Rows` store has rows in groups, and groups in parents. A group is a class of images, or a user with
ratings; a parent is a domain with classes, an alphabet with letters, an assay with a group of active and a
group of inactive molecules. Tasks are made of N groups (`group_sampler`), or of one parent or group split in
two (`split_sampler`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.errors import DataError
from metajax.types import Array, Tree


class Ranges(NamedTuple):
    """Ranges of integers, each given by its first integer and its length.

    Attributes:
      starts: First integers, [P] int32.
      counts: Lengths, [P] int32.
    """

    starts: Array
    counts: Array


class Rows(NamedTuple):
    """A store of rows, sorted by group, whose groups are sorted by parent.

    Make one with `Rows.from_groups` from arrays of any order, or with `metajax.episodes.class_store` from
    labeled images. Pass it to jitted functions as an argument: closed over, it would become a constant of the
    compiled program.

    | data | row | group | parent | sampler |
    |---|---|---|---|---|
    | pictures in folders | picture | class | none (a single one) | `EpisodeSampler` |
    | sentences with intents | sentence | intent | domain | `GroupSampler(within=True)` |
    | table of ratings | rating | user | none | `SplitSampler(by_group=True)` |
    | molecules in assays | measurement | active or inactive | assay | `SplitSampler(order="stratified")` |

    Attributes:
      features: Tree of arrays [M, ...].
      targets: Tree of arrays [R, ...]; None if the group of a row is its label.
      rows: Index into the features per row, [R] int32; None if row i has features i, and R is M. Several
        rows may share features, as assays share molecules.
      starts: First row of each group, [G] int32. A group begins where the previous one ends.
      counts: Number of rows per group, [G] int32.
      parents: Range of groups per parent, [P]; a class store has a single parent.
      constants: Tree of arrays that a view reads besides the features, such as the mean of all pixels.

    Example:
      A table of ratings: the features of a row are its film and its year, its target is the stars.

      >>> users = ["ann", "bob", "ann", "cem", "bob", "ann"]
      >>> films = ["Heat", "Heat", "Tron", "Tron", "Up", "Up"]
      >>> stars = np.array([4.0, 1.0, 3.0, 5.0, 2.0, 5.0], np.float32)
      >>> names, groups = np.unique(users, return_inverse=True)
      >>> titles, film = np.unique(films, return_inverse=True)
      >>> store = Rows.from_groups({"film": film, "year": np.arange(2001, 2007)}, groups, targets=stars)
      >>> print(names, store.counts, store.targets)  # sorted by user
      ['ann' 'bob' 'cem'] [3 2 1] [4. 3. 5. 1. 2. 5.]

      A task is one user: two ratings to adapt to, and one to predict.

      >>> sampler = metajax.SplitSampler(support=2, queries=1, by_group=True)
      >>> episode = jax.eval_shape(sampler, store, jax.random.key(0))
      >>> episode.support.inputs["film"].shape, episode.query.targets.shape
      ((2,), (1,))
    """

    features: Tree
    targets: Tree
    rows: Array | None
    starts: Array
    counts: Array
    parents: Ranges
    constants: Tree = ()

    @classmethod
    def from_groups(
        cls,
        features: Tree,
        groups: Any,
        *,
        targets: Tree = None,
        rows: Any = None,
        parents: Any = None,
        constants: Tree = (),
    ) -> "Rows":
        """Makes a store of rows in any order, by sorting them by group and groups by parent.

        The sort is stable: rows of a group keep their order, which `SplitSampler(order="first")` treats as
        time.

        Args:
          features: Tree of arrays [M, ...] of numbers. They are sorted too if `rows` is None.
          groups: Group of each row, ints [R] from 0 without gaps. `np.unique(column, return_inverse=True)`
            gives them for a column of any values.
          targets: Tree of arrays [R, ...] of numbers; None if the group of a row is its label.
          rows: Index into the features per row, ints [R]; None if row i has features i.
          parents: Parent of each group, ints [G] from 0 without gaps; None for one parent of all groups.
          constants: Tree of arrays that a view reads besides the features.

        Returns:
          The store, with its arrays on the default device.

        Raises:
          DataError: If lengths disagree, a group or parent is empty, an index is out of range, or features or
            targets are not numbers, or are integers that JAX's integer type cannot hold.

        Example:
          >>> store = metajax.Rows.from_groups(np.array([1.0, 2.0, 3.0]), [1, 0, 1], parents=[0, 0])
          >>> print(store.features, store.counts)
          [2. 1. 3.] [1 2]
        """
        groups, features, targets = _ids("group", groups), _arrays(features), _arrays(targets)
        counts = np.bincount(groups)
        parents = np.zeros(len(counts), int) if parents is None else _ids("parent", parents)
        check_length("parents", len(parents), "groups", len(counts))
        if rows is None:
            check_length("groups", len(groups), "features", _count("features", features))
        else:
            rows = _indices(rows, _count("features", features))
            check_length("groups", len(groups), "rows", len(rows))
        if targets is not None:
            check_length("targets", _count("targets", targets), "groups", len(groups))
        by_parent = np.argsort(parents, kind="stable")
        order = np.argsort(np.argsort(by_parent)[groups], kind="stable")
        if rows is None:
            features = _sorted(features, order)
        elif np.array_equal(rows := rows[order], np.arange(_count("features", features))):
            rows = None  # The identity needs neither memory nor a look-up.
        return cls.of_sorted(
            features,
            counts[by_parent],
            targets=_sorted(targets, order),
            rows=rows,
            parents=np.bincount(parents),
            constants=constants,
        )

    @classmethod
    def of_sorted(
        cls,
        features: Tree,
        counts: np.ndarray,
        *,
        targets: Tree = None,
        rows: np.ndarray | None = None,
        parents: np.ndarray | None = None,
        constants: Tree = (),
    ) -> "Rows":
        """Makes a store of rows that are sorted already; nothing is checked.

        Args:
          features: Tree of arrays [M, ...].
          counts: Number of rows per group, [G].
          targets: Tree of arrays [R, ...], or None.
          rows: Index into the features per row, [R], or None.
          parents: Number of groups per parent, [P]; None for one parent of all groups.
          constants: Tree of arrays that a view reads besides the features.

        Returns:
          The store, with its arrays on the default device.
        """
        return cls(
            jax.tree.map(jnp.asarray, features),
            jax.tree.map(jnp.asarray, targets),
            None if rows is None else jnp.asarray(rows, jnp.int32),
            *_ranges(counts),
            _ranges([len(counts)] if parents is None else parents),
            jax.tree.map(jnp.asarray, constants),
        )

    def take(self, rows: Array) -> Tree:
        """Looks up the features of rows.

        Args:
          rows: Row numbers, int32 of any shape [...].

        Returns:
          Features, a tree of arrays [..., ...].

        Raises:
          ValueError: If the store holds no features because its images stay on disk.
        """
        if not trees.count(self.features):
            raise ValueError(
                "The store holds no pixels, because its images stay on disk; pass the pixels of the draw to "
                "the sampler, as `metajax.data.streaming` does."
            )
        return trees.take(self.features, rows if self.rows is None else self.rows[rows])

    def targets_of(self, rows: Array, variants: Array | int = 0) -> Tree:
        """Looks up the targets of rows; a store without targets labels rows by group.

        Args:
          rows: Row numbers, int32 of any shape [...].
          variants: Variants of their groups, int32 that broadcast to [...]; each variant of a group is a
            separate label.

        Returns:
          Targets, a tree of arrays [..., ...], or labels [...] int32 in [0, variants * G).
        """
        if self.targets is not None:
            return trees.take(self.targets, rows)
        return self.groups_of(rows) + variants * self.starts.shape[0]

    def groups_of(self, rows: Array) -> Array:
        """Finds the groups of rows.

        Args:
          rows: Row numbers, int32 of any shape [...].

        Returns:
          Group numbers [...] int32.
        """
        return (jnp.searchsorted(self.starts, rows, side="right") - 1).astype(jnp.int32)


def _ranges(counts: Any) -> Ranges:
    """Makes adjacent ranges of these lengths, the first of which starts at 0."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return Ranges(jnp.asarray(starts, jnp.int32), jnp.asarray(counts, jnp.int32))


def _ids(name: str, ids: Any) -> np.ndarray:
    """Checks that ids [n] are integers from 0 without gaps, and returns them as an array."""
    ids = np.asarray(ids)
    remedy = "number them from 0 without gaps, as np.unique(..., return_inverse=True) does"
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise DataError(
            f"The {name}s are {ids.dtype} of shape {ids.shape}, not integers [n]; {remedy}."
        )
    if ids.min() < 0:
        raise DataError(f"A {name} is {ids.min()}; {remedy}.")
    missing = np.setdiff1d(np.arange(len(ids)), ids)
    if ids.max() >= len(ids) or (missing < ids.max()).any():
        raise DataError(
            f"There is a {name} {ids.max()}, but nothing is in {name} {missing[0]}; {remedy}."
        )
    return ids


def _indices(rows: Any, size: int) -> np.ndarray:
    """Checks that rows [R] are integers in [0, size), and returns them as an array."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise DataError(f"The rows are {rows.dtype} of shape {rows.shape}; use integers [R].")
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= size:
        raise DataError(
            f"The rows are {rows.min()} to {rows.max()}, and the features are 0 to {size - 1}; use numbers "
            "of features."
        )
    return rows


def _arrays(tree: Tree) -> Tree:
    """Converts the leaves of a tree to arrays, and checks that they hold numbers."""
    tree = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree
    )
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        if leaf.dtype.kind in "OSUMm" or not leaf.ndim:
            raise DataError(
                f"{path or 'An array'} is {leaf.dtype} of shape {leaf.shape}; use numbers [n, ...], and for "
                "words their indices, as np.unique(..., return_inverse=True) gives them."
            )
        _check_integers(path, leaf)
    return tree


def _check_integers(path: str, leaf: Any) -> None:
    """Raises DataError if integers would wrap around in JAX's integer type."""
    if leaf.dtype.kind not in "iu" or not leaf.size:
        return
    kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
    low, high, limits = int(leaf.min()), int(leaf.max()), jnp.iinfo(kept)
    if low < limits.min or high > limits.max:
        raise DataError(
            f"{path or 'An array'} has integers from {low} to {high}, beyond {kept}; number them with "
            "np.unique(..., return_inverse=True), or set JAX's option jax_enable_x64."
        )


def _count(name: str, tree: Tree) -> int:
    """Counts the rows of a tree of arrays [n, ...]; raises DataError if its leaves disagree."""
    lengths = sorted({len(leaf) for leaf in jax.tree.leaves(tree)})
    if len(lengths) != 1:
        raise DataError(
            f"The {name} are arrays of {' and '.join(map(str, lengths)) or 'no'} rows; give all leaves the "
            "same number of rows."
        )
    return lengths[0]


def check_length(name: str, length: int, other: str, expected: int) -> None:
    """Raises DataError if two numbers that must agree differ.

    Args:
      name: Plural name of the first things, for the message.
      length: Number of the first things.
      other: Plural name of the second things.
      expected: Number of the second things.

    Raises:
      DataError: If the numbers differ.
    """
    if length != expected:
        raise DataError(
            f"There are {length} {name} and {expected} {other}; give the same number of both."
        )


def _sorted(tree: Tree, order: np.ndarray) -> Tree:
    """Sorts arrays [n, ...] by an order [n], without a copy if they are in order already."""
    if np.array_equal(order, np.arange(len(order))):
        return tree
    return jax.tree.map(lambda leaf: leaf[order], tree)
