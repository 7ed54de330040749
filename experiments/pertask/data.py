"""Tables as a driver's options name them: stores of rows whose units are tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.rows import Rows
from metajax.types import Array, Tree

SPLITS = ("train", "valid", "test")


class TaskData(NamedTuple):
    """Rows of each split, and what is known of them.

    Attributes:
      stores: Stores by split. Targets are labels [R] int32 in [0, N), or standardized values [R, 1] float32.
      names: Names of the units of the test store, in the order of the store.
      by_group: Whether a task is one group rather than one parent.
      ways: Number of classes N; None for values.
      labels: Names of the classes; () for values.
      level: Mean of the training values, which the stores have subtracted; 0 for classes.
      spread: Standard deviation of the training values, which the stores are divided by; 1 for classes.
      items: Item of each row by split, ints [R], -1 for an unknown one; None without items.
      num_items: Number of items.
      row_numbers: Number of each test row in its table, ints [R].
      flat: Function from features [B, ...] and whether to scale counts to rows of numbers [B, D].
      is_flat: Whether the features are such rows, and no ids of words or graphs.
      about: Arguments of networks that depend on the data, by kind of columns: "text", "smiles", "fields".
      description: The data in words.
      fingerprint: Hashes of the splits joined by dots, test data last.
    """

    stores: Mapping[str, Rows]
    names: Sequence[str]
    by_group: bool
    ways: int | None
    labels: tuple[str, ...]
    level: float
    spread: float
    items: Mapping[str, np.ndarray] | None
    num_items: int
    row_numbers: np.ndarray
    flat: Callable[[Tree, bool], Array]
    is_flat: bool
    about: Mapping[str, Mapping[str, Any]]
    description: str
    fingerprint: str

    @property
    def kind(self) -> str:
        """Kind of the targets: "binary", "classes" or "values"."""
        if self.ways is None:
            return "values"
        return "binary" if self.ways == 2 else "classes"


def flat_rows(features: Tree, scaled: bool, *, sizes: Mapping[str, Sequence[int]]) -> Array:
    """Converts features to rows of numbers for models without an encoder.

    Args:
      features: Features of rows, dict of trees of arrays [B, ...]: counts (unsigned integers [B, D]),
        categories (integers [B, C], whose numbers of categories `sizes` has), and numbers.
      scaled: Whether counts become square roots of unit length, for linear models; else they stay counts.
      sizes: Numbers of categories of each column, by the name of a feature.

    Returns:
      Rows [B, D] float32, a NumPy array if the features are; each category is a column of zeros and ones.
    """
    # On the host without JAX, which would compile an operation for each number of rows.
    leaves = _named_leaves(features)
    xp: Any = np if all(isinstance(leaf, np.ndarray) for _, leaf in leaves) else jnp
    parts = []
    for name, leaf in leaves:
        columns = leaf.reshape(len(leaf), -1)
        if name in sizes:
            parts += [
                (columns[:, place, None] == xp.arange(size)).astype(np.float32)
                for place, size in enumerate(sizes[name])
            ]
        elif scaled and np.issubdtype(leaf.dtype, np.unsignedinteger):
            roots = xp.sqrt(columns.astype(np.float32))
            norms = xp.linalg.norm(roots, axis=1, keepdims=True)
            parts.append(roots / xp.where(norms > 0, norms, 1))
        else:
            parts.append(columns.astype(np.float32))
    return xp.concatenate(parts, axis=1)


def are_rows_of_numbers(features: Tree, sizes: Mapping[str, Sequence[int]]) -> bool:
    """Returns whether `flat_rows` makes sense of features: of counts, categories and numbers, not of ids.

    Args:
      features: Features of rows.
      sizes: Numbers of categories of each column, by the name of a feature.
    """
    return all(name in sizes or leaf.dtype.kind in "bfu" for name, leaf in _named_leaves(features))


def _named_leaves(features: Tree) -> list[tuple[str, Any]]:
    """Lists the arrays of features, sorted, each with the name of its feature."""
    found = jax.tree_util.tree_flatten_with_path(features)[0]
    return [(path[0].key, leaf) for path, leaf in found]
