"""Batches of single images with the numbers of their classes, for supervised training."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.episodes.augment import AugmentFn
from metajax.episodes.choose import choose
from metajax.episodes.rows import Rows
from metajax.episodes.views import (
    NUM_ROTATIONS,
    Examples,
    HostImages,
    ImageView,
    View,
    check_turns,
)
from metajax.errors import DataError
from metajax.types import Array, Batch, Episode, Key


class BatchDraw(NamedTuple):
    """The images of a batch, before their pixels are looked up.

    Attributes:
      rows: Rows of the images, [B] int32.
      rotations: Quarter turns of the images, [B] int32.
    """

    rows: Array
    rotations: Array


@dataclasses.dataclass(frozen=True)
class BatchSampler:
    """Draws a batch of images of all classes; call it as `sampler(store, key) -> Episode`.

    For supervised training, of a transfer baseline or a teacher. All images are equally likely, whatever
    their class. The episode holds the batch twice, as support and as query set, so every function of episodes
    reads it.

    If the store holds no pixels, pass the pixels of the draw as a third argument: `sampler(store, key,
    pixels)`.

    Attributes:
      images: Number B of different images.
      rotations: Whether each class, turned by 90, 180 and 270 degrees, makes three more classes.
      augment: Function (key, image [H, W, C] uint8) -> image, applied to each image with its own key; None
        for no augmentation.
      view: Function from the stored features of rows to inputs; None is the view of images, which `augment`
        changes.

    Example:
      >>> images = np.zeros((40, 28, 28, 1), np.uint8)
      >>> labels, names = np.repeat(np.arange(8), 5), [f"class {i}" for i in range(8)]
      >>> store = metajax.episodes.class_store(metajax.data.LabelledImages.from_labels(images, labels, names))
      >>> sampler = BatchSampler(images=16)
      >>> batch = jax.eval_shape(sampler, store, jax.random.key(0)).query
      >>> batch.inputs.shape, batch.targets.shape, int(sampler.num_classes(store))
      ((16, 28, 28, 1), (16,), 8)
    """

    images: int
    rotations: bool = False
    augment: AugmentFn | None = None
    view: View | None = None

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"images is {self.images}; use 1 or more.")

    def check(self, data: HostImages, *, name: str = "data") -> None:
        """Checks that the images suffice for a batch, and are square if they are to be turned.

        Args:
          data: Images to draw from.
          name: Name of the split in messages.

        Raises:
          DataError: If a batch has more images than there are, or images are to be turned and not square.
        """
        if self.images > data.num_images:
            raise DataError(
                f"A batch of {self.images} images is more than the {data.num_images} of the {name} split; "
                "use fewer."
            )
        check_turns(data, self.rotations)

    def num_classes(self, store: Rows) -> int:
        """Counts the classes, turned ones included.

        Args:
          store: Store to draw from.

        Returns:
          Number of different targets.
        """
        return store.counts.shape[0] * (NUM_ROTATIONS if self.rotations else 1)

    def identify(self, store: Rows, key: Key) -> BatchDraw:
        """Chooses images and their quarter turns.

        Args:
          store: Store to draw from.
          key: Random key; a call of the sampler with the same key has the same images.

        Returns:
          The draw.
        """
        rows_key, turns_key, _ = jax.random.split(key, 3)
        turns = NUM_ROTATIONS if self.rotations else 1
        num_images = store.starts[-1] + store.counts[-1]
        rows = choose(rows_key, num_images, self.images)
        return BatchDraw(rows, jax.random.randint(turns_key, (self.images,), 0, turns, jnp.int32))

    def __call__(self, store: Rows, key: Key, pixels: Array | None = None) -> Episode:
        """Draws a batch.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          pixels: Images that `identify` draws, [B, H, W, C] uint8; None looks them up in the store.

        Returns:
          An episode whose support and query set are the same batch: inputs [B, H, W, C] float32, and numbers
          of classes [B] int32 as targets.
        """
        *_, view_key = jax.random.split(key, 3)
        rows, turns = self.identify(store, key)
        images = store.take(rows) if pixels is None else pixels
        shapes = jax.tree.map(lambda leaf: (self.images, *leaf.shape[1:]), store.features)
        jax.tree.map(chex.assert_shape, images, shapes)
        examples = Examples(images, turns if self.rotations else None)
        view = ImageView(self.augment) if self.view is None else self.view
        inputs = view(store, view_key, examples)
        batch = Batch(inputs, store.targets_of(rows, turns))
        return Episode(batch, batch)
