"""Encoder of rows of a table: numbers, of which some are missing, and categories."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from metajax.models import dense
from metajax.types import Array, Key, Model, Params


def fields_encoder(
    *,
    categories: Sequence[int] = (),
    width: int = 8,
    hidden: Sequence[int] = (64, 64),
    outputs: int | None = None,
) -> Model:
    """Encodes standardized numbers with a flag where they are missing, and embedded categories, by an MLP.

    Args:
      categories: Number of codes per column of categories, code 0 for unseen and missing ones included.
      width: Width of a category's vector.
      hidden: Widths of the hidden layers, each with a rectifier.
      outputs: Width of the layer `head`; None leaves it out.

    Returns:
      A model from a dict of `numbers` [B, P] float, `missing` [B, P] bool and `categories` [B, C] int, each
      of which may be left out, to outputs [B, outputs], or to features. A number that is NaN is missing too;
      a code that the column does not have is 0.

    Raises:
      ValueError: (from `init`) If the columns of categories are not as many as declared, or the row is empty.

    Example:
      >>> model = fields_encoder(categories=(3,), hidden=(16,))
      >>> row = {"numbers": jnp.array([[0.5, jnp.nan]]), "categories": jnp.array([[2]])}
      >>> model.apply(model.init(jax.random.key(0), row), row).shape
      (1, 16)
    """
    sizes = tuple(categories)

    def init(key: Key, inputs: dict[str, Array]) -> Params:
        table_key, layer_key = jax.random.split(key)
        columns = inputs["categories"].shape[1] if "categories" in inputs else 0
        if columns != len(sizes):
            raise ValueError(
                f"Rows have {columns} columns of categories and {len(sizes)} numbers of codes are declared; "
                "give one per column."
            )
        numbers = inputs["numbers"].shape[1] if "numbers" in inputs else 0
        if not numbers + columns:
            raise ValueError("Rows have neither numbers nor categories; choose some columns.")
        params: dict[str, Any] = dense.init_layers(
            layer_key, 2 * numbers + columns * width, hidden, outputs
        )
        if sizes:
            table = jax.random.normal(table_key, (sum(sizes), width)) / width**0.5
            params["categories"] = {"table": table}
        return params

    def apply(params: Params, inputs: dict[str, Array]) -> Array:
        parts, dtype = [], dense.dtype_of(params)
        if "numbers" in inputs:
            numbers = inputs["numbers"].astype(dtype)
            chex.assert_rank(numbers, 2)
            missing = jnp.isnan(numbers)
            if "missing" in inputs:
                chex.assert_equal_shape([numbers, inputs["missing"]])
                missing = missing | inputs["missing"].astype(bool)
            # Zero is the mean of a standardized column.
            parts += [jnp.where(missing, 0, numbers), missing.astype(dtype)]
        if sizes:
            codes = inputs["categories"]
            chex.assert_shape(codes, (None, len(sizes)))
            limits = jnp.array(sizes)
            codes = jnp.where((codes >= 0) & (codes < limits), codes, 0).astype(jnp.int32)
            # One table of all columns, in which each column's codes follow the previous one's.
            embedded = params["categories"]["table"][codes + jnp.cumsum(limits) - limits]
            parts.append(embedded.reshape(len(codes), -1))
        return dense.apply_layers(params, jnp.concatenate(parts, axis=-1))

    return Model(init, apply)
