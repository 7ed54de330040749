"""Views: how the features of rows become inputs; of images, how they are turned, augmented and normalised."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.data.images import DataError
from metajax.episodes.augment import AugmentFn
from metajax.episodes.rows import Rows
from metajax.types import Array, Key, Tree

NUM_ROTATIONS = 4


class Examples(NamedTuple):
    """Rows that a view turns into inputs: [N, K + Q] of N groups, or [B] of one.

    Attributes:
      features: Tree of arrays, with these axes before the features' own.
      variants: Variants along the first axis, int32; None where groups have but one.
    """

    features: Tree
    variants: Array | None = None


# (store, key, examples) -> inputs, with the same axes before their own. The key is consumed.
View = Callable[[Rows, Key, Examples], Tree]


def plain_view(store: Rows, key: Key, examples: Examples) -> Tree:
    """Takes features for inputs as they are."""
    del store, key
    return examples.features


class PixelStatistics(NamedTuple):
    """Statistics that images are normalised by, the constants of an image store.

    Attributes:
      mean: Subtracted from pixels scaled to [0, 1], [C] float32.
      scale: Divisor of the difference, [C] float32.
    """

    mean: Array
    scale: Array


@dataclasses.dataclass(frozen=True)
class ImageView:
    """Turns, augments and normalises images; a group's variants are its quarter turns.

    Attributes:
      augment: (key, image [H, W, C] uint8) -> image, applied to each image by itself.
    """

    augment: AugmentFn | None = None

    def __call__(self, store: Rows, key: Key, examples: Examples) -> Array:
        """Makes inputs [..., H, W, C] float32 of images [..., H, W, C] uint8; the key is consumed."""
        images, augment = examples.features, self.augment
        if examples.variants is not None:
            images = jax.vmap(turn)(images, examples.variants)
        if augment is not None:
            axes = images.shape[:-3]
            for _ in axes:
                augment = jax.vmap(augment)
            images = augment(jax.random.split(key, axes), images)
        return normalise(store.constants, images)


def turn(images: Array, quarter_turns: Array) -> Array:
    """Turns square images [..., H, W, C], all by the same number of quarter turns; DataError for others."""
    height, width = images.shape[-3:-1]
    if height != width:
        raise DataError(f"Rotations need square images; these are {height} x {width}.")
    turned = [jnp.rot90(images, k, axes=(-3, -2)) for k in range(NUM_ROTATIONS)]
    return jnp.stack(turned)[quarter_turns]


def normalise(statistics: PixelStatistics, images: Array) -> Array:
    """Scales pixels [..., C] to [0, 1] and by statistics; float32."""
    return (images.astype(jnp.float32) / 255 - statistics.mean) / statistics.scale
