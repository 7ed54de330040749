"""Cells of rows of a table, one number each, for learners that read tables cell by cell."""

from collections.abc import Sequence

import chex
import jax.numpy as jnp

from metajax.models import dense
from metajax.types import Array, Key, Model, Params, Tree


def cells_encoder(*, categories: Sequence[int] = (), outputs: int | None = None) -> Model:
    """Reads a row as its cells: numbers, then the codes of categories, with NaN where a cell is missing.

    It has no parameters without a head.

    Args:
      categories: Number of codes per column of categories, code 0 for unseen and missing ones included.
      outputs: Width of the linear layer `head`, for which a missing cell is zero; None leaves it out.

    Returns:
      A model from a dict of `numbers` [B, P] float, `missing` [B, P] bool and `categories` [B, C] int, each
      of which may be left out, or from an array of cells [B, D], to outputs [B, outputs], or to cells
      [B, P + C]. Code 0, and a code that the column does not have, is missing.

    Raises:
      ValueError: (from `init`) If the columns of categories are not as many as declared, or the row is empty.

    Example:
      >>> model = cells_encoder(categories=(3,))
      >>> row = {"numbers": jnp.array([[0.5, jnp.nan]]), "categories": jnp.array([[2]])}
      >>> print(model.apply(model.init(jax.random.key(0), row), row))
      [[0.5 nan 2. ]]
    """
    sizes = tuple(categories)

    def cells_of(inputs: Tree) -> Array:
        if not isinstance(inputs, dict):
            chex.assert_rank(inputs, 2)
            return inputs
        parts = []
        if "numbers" in inputs:
            numbers = inputs["numbers"]
            numbers = numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))
            missing = inputs.get("missing")
            if missing is not None:
                chex.assert_equal_shape([numbers, missing])
                numbers = jnp.where(missing.astype(bool), jnp.nan, numbers)
            parts.append(numbers)
        if sizes:
            codes = inputs["categories"]
            chex.assert_shape(codes, (None, len(sizes)))
            known = (codes > 0) & (codes < jnp.array(sizes))
            parts.append(jnp.where(known, codes, jnp.nan).astype(jnp.float32))
        return jnp.concatenate(parts, axis=1)

    def init(key: Key, inputs: Tree) -> Params:
        if isinstance(inputs, dict):
            columns = inputs["categories"].shape[1] if "categories" in inputs else 0
            if columns != len(sizes):
                raise ValueError(
                    f"Rows have {columns} columns of categories and {len(sizes)} numbers of codes are "
                    "declared; give one per column."
                )
            if not columns and not ("numbers" in inputs and inputs["numbers"].shape[1]):
                raise ValueError("Rows have neither numbers nor categories; choose some columns.")
        if outputs is None:
            return {}
        return {"head": dense.init_dense(key, cells_of(inputs).shape[1], outputs)}

    def apply(params: Params, inputs: Tree) -> Array:
        cells = cells_of(inputs)
        if outputs is None:
            return cells
        return dense.apply_dense(params["head"], jnp.nan_to_num(cells))

    return Model(init, apply)
