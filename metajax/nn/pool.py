"""Pooling over the height and width of images.

On a CPU, the backward pass of `lax.reduce_window` (select-and-scatter) is some twenty times slower than the
comparisons and sums here, and the derivative that JAX finds for slices is three times slower than a
comparison with the index of the largest entry.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

Array = jax.Array


def max_pool(inputs: Array, window: int = 2) -> Array:
    """Takes the largest value of each window x window tile; rows and columns left over are cropped.

    If entries of a tile are equally large, the first of them (row by row) gets all of the gradient, as in
    PyTorch and `lax.reduce_window`. Derivatives of any order and mode are the derivatives of selecting that
    entry.

    Args:
      inputs: Float images [B, H, W, C].
      window: Side of the tiles, an int of at least 1 and at most H and W.

    Returns:
      Float images [B, H // window, W // window, C].

    Raises:
      ValueError: If inputs are not images, or the window does not fit in them.

    Example:
      >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
      [[[[3.0]]]]
    """
    _check(inputs, window)
    return _max_pool(inputs, window) if window > 1 else inputs


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(inputs: Array, window: int) -> Array:
    """Takes the largest value of each tile."""
    return functools.reduce(jnp.maximum, _entries(inputs, window))


@_max_pool.defjvp
def _max_pool_jvp(window, primals, tangents):
    """Selects the tangents of the largest entries."""
    (inputs,), (direction,) = primals, tangents
    largest = _max_pool(inputs, window)
    # Entries are compared with each other, not with `largest`: a compiler may recompute the inputs for either
    # and round them differently, and then no entry would equal it. The first of equal entries stays.
    so_far, *others = _entries(jax.lax.stop_gradient(inputs), window)
    place = jnp.zeros(largest.shape, _place_dtype(window))
    for index, entry in enumerate(others, 1):
        place = jnp.where(entry > so_far, index, place).astype(place.dtype)
        so_far = jnp.maximum(so_far, entry)
    # With the checkpoint, the backward pass stores the index and not one comparison with it for each entry. A
    # compiler that finds the comparison in both passes may still store it, if it knows that to be cheaper.
    pick = jax.checkpoint(_pick, static_argnums=2, prevent_cse=False)
    return largest, pick(direction, place, window)


def _pick(inputs: Array, place: Array, window: int) -> Array:
    """Takes the entry of each tile whose index is `place`; linear in the inputs.

    The tiles are axes of a reshaped image, whose transpose is a broadcast comparison.
    """
    batch, height, width, channels = place.shape
    cropped = inputs[:, : height * window, : width * window]
    tiles = cropped.reshape(batch, height, window, width, window, channels)
    number = jnp.arange(window**2, dtype=place.dtype).reshape(1, 1, window, 1, window, 1)
    return jnp.where(place[:, :, None, :, None] == number, tiles, 0).sum((2, 4))


def _entries(inputs: Array, window: int) -> list[Array]:
    """Slices out the first entry of each tile, the second, and so on row by row."""
    height, width = (n // window * window for n in inputs.shape[1:3])
    return [
        inputs[:, top:height:window, left:width:window]
        for top in range(window)
        for left in range(window)
    ]


def _place_dtype(window: int) -> type:
    """Chooses the smallest dtype of an index in a tile, which the backward pass stores."""
    return jnp.int8 if window**2 <= 127 else jnp.int32


def avg_pool(inputs: Array, window: int = 2) -> Array:
    """Averages each window x window tile; rows and columns left over are cropped.

    Args:
      inputs: Float images [B, H, W, C].
      window: Side of the tiles, an int of at least 1 and at most H and W.

    Returns:
      Float images [B, H // window, W // window, C].

    Raises:
      ValueError: If inputs are not images, or the window does not fit in them.

    Example:
      >>> avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
      [[[[1.5]]]]
    """
    _check(inputs, window)
    return cast(Array, sum(_entries(inputs, window))) / window**2


def global_avg_pool(inputs: Array) -> Array:
    """Averages images over all positions.

    Args:
      inputs: Float images [B, H, W, C].

    Returns:
      Features [B, C].

    Raises:
      ValueError: If inputs are not images.

    Example:
      >>> global_avg_pool(jnp.ones((2, 5, 5, 3))).shape
      (2, 3)
    """
    _check_rank(inputs)
    return jnp.mean(inputs, axis=(1, 2))


def _check(inputs: Array, window: int) -> None:
    """Raises a ValueError unless inputs are images in which the window fits."""
    _check_rank(inputs)
    if not 1 <= window <= min(inputs.shape[1:3]):
        raise ValueError(
            f"A pooling window of {window} does not fit in images of {inputs.shape[1:3]}; use one "
            f"from 1 to {min(inputs.shape[1:3])}, or larger images."
        )


def _check_rank(inputs: Array) -> None:
    """Raises a ValueError unless inputs are images."""
    if inputs.ndim != 4:
        raise ValueError(
            f"Pooling takes images [B, H, W, C], not {inputs.shape}; vmap over the extra axes."
        )
