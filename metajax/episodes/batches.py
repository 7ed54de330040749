"""Batches of single images with the number of their class: what supervised training reads."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.data.images import DataError
from metajax.data.streamed import Images
from metajax.episodes.augment import AugmentFn
from metajax.episodes.choose import choose
from metajax.episodes.rows import Rows
from metajax.episodes.store import check_turns
from metajax.episodes.views import NUM_ROTATIONS, Examples, ImageView
from metajax.types import Array, Batch, Episode, Key


class BatchDraw(NamedTuple):
    """A batch before its pixels are looked up.

    Attributes:
      rows: Rows of images, [B] int32.
      rotations: Their quarter turns, [B] int32.
    """

    rows: Array
    rotations: Array


@dataclasses.dataclass(frozen=True)
class BatchSampler:
    """Draws images of all classes alike; call it as `sampler(store, key) -> Episode`.

    Where the store holds no pixels, they are given too: `sampler(store, key, pixels)`.

    The episode is a batch twice, as support and as query set, so that whatever takes episodes takes it.

    Attributes:
      images: B, different ones, of any class.
      rotations: whether a class turned by 90, 180 and 270 degrees is three more classes.
      augment: (key, image [H, W, C] uint8) -> image, applied to each image by itself.
    """

    images: int
    rotations: bool = False
    augment: AugmentFn | None = None

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"images is {self.images}; use 1 or more.")

    def check(self, data: Images, *, name: str = "data") -> None:
        """Raises DataError where a batch has more images than there are, or rotations do not fit."""
        if self.images > data.num_images:
            raise DataError(
                f"A batch of {self.images} images is more than the {data.num_images} of the {name} split; "
                "ask for fewer."
            )
        check_turns(data, self.rotations)

    def num_classes(self, store: Rows) -> int:
        """How many classes there are to tell apart."""
        return store.counts.shape[0] * (NUM_ROTATIONS if self.rotations else 1)

    def identify(self, store: Rows, key: Key) -> BatchDraw:
        """Chooses images and their quarter turns; the key is consumed."""
        rows_key, turns_key, _ = jax.random.split(key, 3)
        turns = NUM_ROTATIONS if self.rotations else 1
        num_images = store.starts[-1] + store.counts[-1]
        rows = choose(rows_key, num_images, self.images)
        return BatchDraw(rows, jax.random.randint(turns_key, (self.images,), 0, turns, jnp.int32))

    def __call__(self, store: Rows, key: Key, pixels: Array | None = None) -> Episode:
        """Draws a batch; inputs [B, H, W, C], targets [B].

        Args:
          store: what to draw from.
          key: consumed.
          pixels: [B, H, W, C] uint8, the images that `identify` names; None looks them up.
        """
        *_, view_key = jax.random.split(key, 3)
        rows, turns = self.identify(store, key)
        images = store.take(rows) if pixels is None else pixels
        examples = Examples(images, turns if self.rotations else None)
        inputs = ImageView(self.augment)(store, view_key, examples)
        batch = Batch(inputs, store.targets_of(rows, turns))
        return Episode(batch, batch)
