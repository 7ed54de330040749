"""Views: functions from the stored features of rows to the inputs of a task.

The view of images turns, augments and normalizes them on the device, so that a store holds each image once
as uint8.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.augment import AugmentFn
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.types import Array, Key, Tree

NUM_ROTATIONS = 4
"""Number of quarter turns of an image, including none."""


class HostImages(Protocol):
    """Labeled images on the host, sorted by class.

    `metajax.data.LabelledImages` keeps them in memory, in an attribute `images` [M, H, W, C] uint8;
    `metajax.data.StreamedImages` leaves them on disk and has no such attribute.
    """

    @property
    def counts(self) -> np.ndarray:
        """Number of images per class, [classes] int32."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        ...

    @property
    def num_images(self) -> int:
        """Number of images M of all classes."""
        ...

    def histogram(self) -> np.ndarray:
        """Counts the pixels of each value in each channel, [C, 256] int64."""
        ...


class Examples(NamedTuple):
    """Rows that a view turns into inputs: [N, K + Q] of N groups, or [B] of one.

    Attributes:
      features: Tree of arrays with these axes first, and the axes of a feature after them.
      variants: Variant of the rows along the first axis, int32; None if groups have a single variant.
    """

    features: Tree
    variants: Array | None = None


# (store, key, examples) -> inputs, with the axes of the examples first. The key is consumed.
View = Callable[[Rows, Key, Examples], Tree]


def plain_view(store: Rows, key: Key, examples: Examples) -> Tree:
    """Returns the features unchanged as inputs.

    Args:
      store: Store of the rows; ignored.
      key: Random key; ignored.
      examples: Rows to view.

    Returns:
      The features of the examples.

    Example:
      >>> from metajax.episodes.views import Examples
      >>> plain_view(None, None, Examples(jnp.ones((2, 3)))).shape
      (2, 3)
    """
    del store, key
    return examples.features


class PixelStatistics(NamedTuple):
    """Statistics that normalize images; the constants of an image store.

    Attributes:
      mean: Mean of the pixels scaled to [0, 1], [C] float32.
      scale: Divisor of the centered pixels, usually their standard deviation, [C] float32.
    """

    mean: Array
    scale: Array


@dataclasses.dataclass(frozen=True)
class ImageView:
    """Turns, augments and normalizes images; the variants of a group are its quarter turns.

    A `GroupSampler` with this view and `variants=4` treats each class, turned by 0, 90, 180 and 270 degrees,
    as four classes; `EpisodeSampler` is the same sampler with fewer words.

    Attributes:
      augment: Function (key, image [H, W, C] uint8) -> image, applied to each image with its own key; None
        for no augmentation.

    Example:
      >>> images = np.zeros((6, 8, 8, 1), np.uint8)
      >>> data = metajax.data.LabelledImages.from_labels(images, np.arange(6) // 3, ["a", "b"])
      >>> store = metajax.episodes.class_store(data)
      >>> sampler = metajax.GroupSampler(ways=2, shots=1, queries=2, view=ImageView())
      >>> jax.eval_shape(sampler, store, jax.random.key(0)).query.inputs.shape
      (4, 8, 8, 1)
    """

    augment: AugmentFn | None = None

    def __call__(self, store: Rows, key: Key, examples: Examples) -> Array:
        """Makes inputs of images.

        Args:
          store: Store whose constants are `PixelStatistics`.
          key: Random key, consumed.
          examples: Images [..., H, W, C] uint8, with their quarter turns as variants.

        Returns:
          Inputs [..., H, W, C] float32.
        """
        images, augment = examples.features, self.augment
        if examples.variants is not None:
            images = jax.vmap(turn)(images, examples.variants)
        if augment is not None:
            axes = images.shape[:-3]
            for _ in axes:
                augment = jax.vmap(augment)
            images = augment(jax.random.split(key, axes), images)
        return normalize(store.constants, images)


def turn(images: Array, quarter_turns: Array) -> Array:
    """Turns square images counterclockwise, all by the same number of quarter turns.

    Args:
      images: Images [..., H, W, C] with H equal to W.
      quarter_turns: Number of quarter turns in [0, 4), an int32 scalar.

    Returns:
      The turned images [..., H, W, C].

    Raises:
      DataError: If the images are not square.
    """
    height, width = images.shape[-3:-1]
    if height != width:
        raise DataError(
            f"Rotations need square images, and these are {height} x {width}; use rotations=False, or "
            "images of one side."
        )
    turned = [jnp.rot90(images, k, axes=(-3, -2)) for k in range(NUM_ROTATIONS)]
    return jnp.stack(turned)[quarter_turns]


def check_turns(data: HostImages, rotations: bool) -> None:
    """Checks that images are square if they are to be turned.

    Args:
      data: Images.
      rotations: Whether they are to be turned by quarters.

    Raises:
      DataError: If rotations are asked of images that are not square.
    """
    height, width, _ = data.shape
    if rotations and height != width:
        raise DataError(
            f"Rotations need square images, and these are {height} x {width}; leave rotations out, or use "
            "images of one side."
        )


def normalize(statistics: PixelStatistics, images: Array) -> Array:
    """Scales pixels to [0, 1], subtracts the mean and divides by the scale.

    Args:
      statistics: Mean and scale, [C] each.
      images: Pixels [..., C] in [0, 255].

    Returns:
      Normalized pixels [..., C] float32.
    """
    return (images.astype(jnp.float32) / 255 - statistics.mean) / statistics.scale


normalise = normalize  # the name in 0.1, until the next release
