"""Rows in groups: one store for classes of images, users and what they rated, assays and their molecules.

A class store has one group a class. A user is a parent with one group, an assay a parent with two, an
alphabet or a domain a parent with many. Tasks are some groups (`group_sampler`), or one parent split in two
(`split_sampler`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.data.images import DataError
from metajax.types import Array, Tree


class Ranges(NamedTuple):
    """Ranges of integers, each from a start on.

    Attributes:
      starts: First integers, [P] int32.
      counts: Lengths, [P] int32.
    """

    starts: Array
    counts: Array


class Rows(NamedTuple):
    """Rows sorted by group, and groups sorted by parent; an argument of jitted functions, never a closure.

    Attributes:
      features: Tree of arrays [M, ...].
      targets: Tree of arrays [R, ...], or None where the group of a row is its label.
      rows: Index of each row's features, [R] int32; None where row i has features i, and R is M. Several
        rows may share features, as assays share molecules.
      starts: First row of each group, [G] int32. A group begins where the one before it ends.
      counts: Number of rows of each group, [G] int32.
      parents: Range of groups of each parent, [P]; a class store has one parent.
      constants: Tree of arrays that a view reads beside features, such as the mean of all pixels.
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
        """Sorts rows by group, and groups by parent; rows of a group stay in their order.

        Args:
          features: Tree of arrays [M, ...]. They are sorted too where `rows` is None.
          groups: Group of each row, ints [R] from 0 without gaps, as the inverse of `np.unique` has them.
          targets: Tree of arrays [R, ...], or None where the group of a row is its label.
          rows: Index of each row's features, ints [R]; None where row i has features i.
          parents: Parent of each group, ints [G] from 0 without gaps; None for one parent of all groups.
          constants: Tree of arrays that a view reads beside features.

        Returns:
          The store, its arrays on the default device.

        Raises:
          DataError: Lengths disagree, a group or parent is empty, an index is out of range, or features or
            targets are no numbers or integers too large for JAX's type.
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
            rows = None  # Neither memory nor a look-up for what is the identity.
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
          counts: Number of rows of each group, [G].
          targets: Tree of arrays [R, ...], or None.
          rows: Index of each row's features, [R], or None.
          parents: Number of groups of each parent, [P]; None for one of all.
          constants: Tree of arrays that a view reads beside features.
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
        """Looks up the features [..., ...] of rows [...]; ValueError where the store holds none."""
        if not trees.count(self.features):
            raise ValueError(
                "The store holds no pixels, for its images stay on disk; give the sampler those of the draw, "
                "as `metajax.data.streaming` does."
            )
        return trees.take(self.features, rows if self.rows is None else self.rows[rows])

    def targets_of(self, rows: Array, variants: Array | int = 0) -> Tree:
        """Looks up the targets of rows [...]; the group is the label where there are none.

        Args:
          rows: Row numbers, int32.
          variants: Variants of their groups, int32 that broadcasts; each is a label of its own.
        """
        if self.targets is not None:
            return trees.take(self.targets, rows)
        return self.groups_of(rows) + variants * self.starts.shape[0]

    def groups_of(self, rows: Array) -> Array:
        """Finds the group of each row; int32, of the shape of `rows`."""
        return (jnp.searchsorted(self.starts, rows, side="right") - 1).astype(jnp.int32)


def _ranges(counts: Any) -> Ranges:
    """Lays ranges of these lengths one behind another, from 0 on."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return Ranges(jnp.asarray(starts, jnp.int32), jnp.asarray(counts, jnp.int32))


def _ids(name: str, ids: Any) -> np.ndarray:
    """Checks that ids [n] are integers from 0 on, each of which occurs."""
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
        raise DataError(f"Nothing is of {name} {missing[0]}, but of {ids.max()}; {remedy}.")
    return ids


def _indices(rows: Any, size: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise DataError(f"The rows are {rows.dtype} of shape {rows.shape}; use integers [R].")
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= size:
        raise DataError(
            f"The rows are {rows.min()} to {rows.max()}, and there are features 0 to {size - 1}; use those."
        )
    return rows


def _arrays(tree: Tree) -> Tree:
    """Makes arrays of the leaves of a tree, and checks that they hold numbers."""
    tree = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree
    )
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        if leaf.dtype.kind in "OSUMm" or not leaf.ndim:
            raise DataError(
                f"{path or 'An array'} is {leaf.dtype} of shape {leaf.shape}; use numbers [n, ...], of words "
                "those that np.unique(..., return_inverse=True) gives."
            )
        _check_integers(path, leaf)
    return tree


def _check_integers(path: str, leaf: Any) -> None:
    """Raises DataError where integers would wrap around in the type that JAX keeps them in."""
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
    lengths = sorted({len(leaf) for leaf in jax.tree.leaves(tree)})
    if len(lengths) != 1:
        raise DataError(
            f"The {name} are arrays of {' and '.join(map(str, lengths)) or 'no'} rows; use as many in all."
        )
    return lengths[0]


def check_length(name: str, length: int, other: str, expected: int) -> None:
    """Raises DataError where there are not as many of one as of another."""
    if length != expected:
        raise DataError(f"There are {length} {name} and {expected} {other}; give as many of both.")


def _sorted(tree: Tree, order: np.ndarray) -> Tree:
    """Puts arrays [n, ...] in order, without a copy where they are already."""
    if np.array_equal(order, np.arange(len(order))):
        return tree
    return jax.tree.map(lambda leaf: leaf[order], tree)
