"""Augmentation of single images, composed by name."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metajax.types import Array, Key

AugmentFn = Callable[[Key, Array], Array]


def shift(key: Key, image: Array, *, most: int = 2) -> Array:
    """Moves an image [H, W, C] by up to `most` pixels each way; edge pixels fill what is uncovered."""
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 2 * most + 1, jnp.int32)
    return jax.lax.dynamic_slice(padded, (row, column, jnp.int32(0)), image.shape)


def flip(key: Key, image: Array) -> Array:
    """Mirrors an image [H, W, C] left to right, every other time. Not for characters."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


AUGMENTATIONS: dict[str, AugmentFn] = {"shift": shift, "flip": flip}


def compose(names: Sequence[str]) -> AugmentFn | None:
    """Chains augmentations by name, in order; none gives None. An unknown name is a ValueError."""
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
