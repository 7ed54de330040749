"""Pooling over the height and width of images.

The backward pass of `lax.reduce_window` (select-and-scatter) is some twenty times slower on a CPU than that
of comparisons and sums, and what JAX derives for slices three times slower than a comparison with the place
of the largest entry.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def max_pool(inputs: Array, window: int = 2) -> Array:
    """Takes the largest value of each window x window tile; rows and columns left over are cropped.

    Where entries tie for the largest, the first of them (row by row) gets all of the gradient, as in
    PyTorch and `lax.reduce_window`. Derivatives of any order and mode are those of picking that entry.

    Args:
      inputs: [B, H, W, C].
      window: side of the tiles, at least 1 and at most H and W.

    Returns:
      [B, H // window, W // window, C].
    """
    _check(inputs, window)
    return _max_pool(inputs, window) if window > 1 else inputs


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(inputs: Array, window: int) -> Array:
    return functools.reduce(jnp.maximum, _entries(inputs, window))


@_max_pool.defjvp
def _max_pool_jvp(window, primals, tangents):
    (inputs,), (direction,) = primals, tangents
    largest = _max_pool(inputs, window)
    # Not by comparison with `largest`: a compiler may compute the inputs anew for either, and round them
    # otherwise, and then none would be equal to it. The first of equals stays.
    so_far, *others = _entries(jax.lax.stop_gradient(inputs), window)
    place = jnp.zeros(largest.shape, _place_dtype(window))
    for index, entry in enumerate(others, 1):
        place = jnp.where(entry > so_far, index, place).astype(place.dtype)
        so_far = jnp.maximum(so_far, entry)
    # Kept for the backward pass is then the place, and not a comparison with it for every entry. A compiler
    # that finds the comparison in both passes may still keep it, where it knows that to be cheaper.
    pick = jax.checkpoint(_pick, static_argnums=2, prevent_cse=False)
    return largest, pick(direction, place, window)


def _pick(inputs: Array, place: Array, window: int) -> Array:
    """Takes of each tile the entry whose number is `place`; linear in the inputs.

    The tiles are axes of a reshaped image, whose transposition is a broadcast comparison.
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
    return jnp.int8 if window**2 <= 127 else jnp.int32


def avg_pool(inputs: Array, window: int = 2) -> Array:
    """Averages each window x window tile; rows and columns left over are cropped.

    Args:
      inputs: [B, H, W, C].
      window: side of the tiles, at least 1 and at most H and W.

    Returns:
      [B, H // window, W // window, C].
    """
    _check(inputs, window)
    return sum(_entries(inputs, window)) / window**2


def global_avg_pool(inputs: Array) -> Array:
    """Averages images [B, H, W, C] over all positions to [B, C]."""
    _check_rank(inputs)
    return jnp.mean(inputs, axis=(1, 2))


def _check(inputs: Array, window: int) -> None:
    _check_rank(inputs)
    if not 1 <= window <= min(inputs.shape[1:3]):
        raise ValueError(
            f"A pooling window of {window} does not fit in images of {inputs.shape[1:3]}; use one "
            f"from 1 to {min(inputs.shape[1:3])}, or larger images."
        )


def _check_rank(inputs: Array) -> None:
    if inputs.ndim != 4:
        raise ValueError(
            f"Pooling takes images [B, H, W, C], not {inputs.shape}; vmap over the extra axes."
        )
