"""Pooling over the height and width of images, by strided slices.

The backward pass of `lax.reduce_window` (select-and-scatter) is some twenty times slower on a CPU
than that of slices and element-wise maxima.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def max_pool(inputs: Array, window: int = 2) -> Array:
    """Takes the largest value of each window x window tile; rows and columns left over are cropped.

    Where entries tie for the largest they share the gradient, as in `jnp.maximum`: two get a half
    each, all four of a 2 x 2 tile a quarter each. PyTorch and `lax.reduce_window` give all of it to
    one of them. Blank parts of an image tie, so there, and only there, gradients differ.

    Args:
      inputs: [B, H, W, C].
      window: side of the tiles, at least 1 and at most H and W.

    Returns:
      [B, H // window, W // window, C].
    """
    return _pool(jnp.maximum, inputs, window)


def avg_pool(inputs: Array, window: int = 2) -> Array:
    """Averages each window x window tile; rows and columns left over are cropped.

    Args:
      inputs: [B, H, W, C].
      window: side of the tiles, at least 1 and at most H and W.

    Returns:
      [B, H // window, W // window, C].
    """
    return _pool(jnp.add, inputs, window) / window**2


def global_avg_pool(inputs: Array) -> Array:
    """Averages images [B, H, W, C] over all positions to [B, C]."""
    _check_rank(inputs)
    return jnp.mean(inputs, axis=(1, 2))


def _pool(combine: Callable[[Array, Array], Array], inputs: Array, window: int) -> Array:
    _check_rank(inputs)
    if not 1 <= window <= min(inputs.shape[1:3]):
        raise ValueError(
            f"A pooling window of {window} does not fit in images of {inputs.shape[1:3]}; use one "
            f"from 1 to {min(inputs.shape[1:3])}, or larger images."
        )
    # One axis after the other combines in pairs, so that ties in a 2 x 2 tile share alike.
    for axis in (1, 2):
        end = inputs.shape[axis] // window * window
        slices = [
            lax.slice_in_dim(inputs, start, end, window, axis=axis) for start in range(window)
        ]
        inputs = functools.reduce(combine, slices)
    return inputs


def _check_rank(inputs: Array) -> None:
    if inputs.ndim != 4:
        raise ValueError(
            f"Pooling takes images [B, H, W, C], not {inputs.shape}; vmap over the extra axes."
        )
