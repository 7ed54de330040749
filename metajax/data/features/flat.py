"""Features of rows as rows of numbers, for models and comparisons without an encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Array, Tree


def flat_rows(features: Tree, scaled: bool, *, sizes: Mapping[str, Sequence[int]]) -> Array:
    """Converts features to rows of numbers for models without an encoder.

    Args:
      features: Features of rows, dict of trees of arrays [B, ...]: counts (unsigned integers [B, D]),
        categories (integers [B, C], whose numbers of categories `sizes` has), and numbers.
      scaled: Whether counts become square roots of unit length, for linear models; else they stay counts.
      sizes: Numbers of categories of each column, by the name of a feature.

    Returns:
      Rows [B, D] float32, a NumPy array if the features are; each category is a column of zeros and ones.

    Example:
      >>> features = {"numbers": np.array([[0.5]]), "categories": np.array([[1]])}
      >>> flat_rows(features, True, sizes={"categories": (3,)}).tolist()
      [[0.0, 1.0, 0.0, 0.5]]
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

    Returns:
      False if a feature is of ids, such as ids of words.

    Example:
      >>> are_rows_of_numbers({"text": np.array([[4, 2]], np.int32)}, {})
      False
    """
    return all(name in sizes or leaf.dtype.kind in "bfu" for name, leaf in _named_leaves(features))


def _named_leaves(features: Tree) -> list[tuple[str, Any]]:
    """Lists the arrays of features, sorted, each with the name of its feature."""
    found = jax.tree_util.tree_flatten_with_path(features)[0]
    return [(path[0].key, leaf) for path, leaf in found]
