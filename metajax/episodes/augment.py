"""Random changes of single images, composed by name."""

import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from metajax.types import Array, Key

# (key, image [H, W, C]) -> image of the same shape; the key is consumed.
AugmentFn = Callable[[Key, Array], Array]


def shift(key: Key, image: Array, *, most: int = 2) -> Array:
    """Moves an image by up to `most` pixels along each axis; edge pixels fill the uncovered border.

    Args:
      key: Random key, consumed.
      image: Image [H, W, C] of any dtype.
      most: Largest distance in pixels.

    Returns:
      The moved image [H, W, C].

    Example:
      >>> shift(jax.random.key(0), jnp.zeros((28, 28, 1))).shape
      (28, 28, 1)
    """
    chex.assert_rank(image, 3)
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 2 * most + 1, jnp.int32)
    return jax.lax.dynamic_slice(padded, (row, column, jnp.int32(0)), image.shape)


def flip(key: Key, image: Array) -> Array:
    """Mirrors an image left to right with probability one half.

    Not for characters: a mirrored letter is another letter, or none.

    Args:
      key: Random key, consumed.
      image: Image [H, W, C] of any dtype.

    Returns:
      The image [H, W, C], mirrored or unchanged.

    Example:
      >>> flip(jax.random.key(0), jnp.zeros((28, 28, 1))).shape
      (28, 28, 1)
    """
    chex.assert_rank(image, 3)
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


AUGMENTATIONS: dict[str, AugmentFn] = {"shift": shift, "flip": flip}
"""Augmentations by name."""


def compose(names: Sequence[str]) -> AugmentFn | None:
    """Chains augmentations by name, in the given order.

    Args:
      names: Keys of `AUGMENTATIONS`.

    Returns:
      The chain, a function (key, image [H, W, C]) -> image; None without names.

    Raises:
      ValueError: If a name is not in `AUGMENTATIONS`.

    Example:
      >>> augment = compose(["shift", "flip"])
      >>> augment(jax.random.key(0), jnp.zeros((28, 28, 1))).shape
      (28, 28, 1)
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"No augmentation is named {name!r}; use {', '.join(AUGMENTATIONS)}.")
    if not names:
        return None

    def augment(key: Key, image: Array) -> Array:
        keys = jax.random.split(key, len(names))
        steps = zip(keys, names, strict=True)
        return functools.reduce(
            lambda out, step: AUGMENTATIONS[step[1]](step[0], out), steps, image
        )

    return augment
