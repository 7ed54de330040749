"""Views: how the features of rows become inputs; of images, how they are turned, augmented and normalised."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.episodes.augment import AugmentFn
from metajax.episodes.rows import Rows
from metajax.types import Array, Key, Tree

NUM_ROTATIONS = 4


class Examples(NamedTuple):
    """Rows that a view turns into inputs.

    Attributes:
      features: Tree of arrays [B, ...].
      variants: Variant of each row's group, [B] int32; None where groups have but one.
    """

    features: Tree
    variants: Array | None = None


# (store, key, examples [B, ...]) -> inputs [B, ...].
View = Callable[[Rows, Key, Examples], Tree]


def plain_view(store: Rows, key: Key, examples: Examples) -> Tree:
    """Takes features for inputs as they are."""
    del store, key
    return examples.features


def apply_view(
    view: View,
    store: Rows,
    key: Key,
    rows: Array,
    *,
    variants: Array | None = None,
    features: Tree = None,
) -> Tree:
    """Turns rows [...] into inputs [B, ...], B rows in their order.

    Args:
      view: View that makes the inputs.
      store: Store of the rows.
      key: Random key, consumed.
      rows: Row numbers, int32 of any shape.
      variants: Variants of their groups, of a shape that broadcasts to that of `rows`; None without any.
      features: Tree of arrays, of the shape of `rows` and then the features'; None looks them up.
    """
    found = store.take(rows) if features is None else features
    flat = jax.tree.map(lambda leaf: leaf.reshape(rows.size, *leaf.shape[rows.ndim :]), found)
    if variants is not None:
        variants = jnp.broadcast_to(variants, rows.shape).reshape(-1)
    return view(store, key, Examples(flat, variants))


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
        """Makes inputs [B, H, W, C] float32 of images [B, H, W, C] uint8; the key is consumed."""
        images = examples.features
        if examples.variants is not None:
            images = jax.vmap(turn)(images, examples.variants)
        if self.augment is not None:
            images = jax.vmap(self.augment)(jax.random.split(key, len(images)), images)
        return normalise(store.constants, images)


def turn(image: Array, quarter_turns: Array) -> Array:
    """Turns a square image [H, W, C] by a number of quarter turns."""
    turned = [jnp.rot90(image, k) for k in range(NUM_ROTATIONS)]
    return jnp.stack(turned)[quarter_turns]


def normalise(statistics: PixelStatistics, images: Array) -> Array:
    """Scales pixels [..., C] to [0, 1] and by statistics; float32."""
    return (images.astype(jnp.float32) / 255 - statistics.mean) / statistics.scale
