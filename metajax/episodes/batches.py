"""Batches of single images with the number of their class: what supervised training reads."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.episodes.augment import AugmentFn
from metajax.episodes.images import DataError
from metajax.episodes.store import (
    NUM_ROTATIONS,
    ClassStore,
    check_turns,
    choose,
    look_up,
    normalise,
    turn,
)
from metajax.episodes.streamed import Images
from metajax.types import Array, Batch, Episode, Key


class BatchDraw(NamedTuple):
    """A batch before its pixels are looked up.

    Attributes:
      images: [B] int32, rows of `ClassStore.images`.
      rotations: [B] int32, their quarter turns.
    """

    images: Array
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

    def num_classes(self, store: ClassStore) -> int:
        """How many classes there are to tell apart."""
        return store.counts.shape[0] * (NUM_ROTATIONS if self.rotations else 1)

    def identify(self, store: ClassStore, key: Key) -> BatchDraw:
        """Chooses images and their quarter turns; the key is consumed."""
        rows_key, turns_key, _ = jax.random.split(key, 3)
        turns = NUM_ROTATIONS if self.rotations else 1
        num_images = store.starts[-1] + store.counts[-1]
        rows = choose(rows_key, num_images, self.images)
        return BatchDraw(rows, jax.random.randint(turns_key, (self.images,), 0, turns, jnp.int32))

    def __call__(self, store: ClassStore, key: Key, pixels: Array | None = None) -> Episode:
        """Draws a batch; inputs [B, H, W, C], targets [B].

        Args:
          store: what to draw from.
          key: consumed.
          pixels: [B, H, W, C] uint8, the images that `identify` names; None looks them up.
        """
        *_, augment_key = jax.random.split(key, 3)
        rows, turns = self.identify(store, key)
        images = look_up(store, rows) if pixels is None else pixels
        if self.rotations:
            images = jax.vmap(turn)(images, turns)
        if self.augment is not None:
            images = jax.vmap(self.augment)(jax.random.split(augment_key, self.images), images)
        classes = jnp.searchsorted(store.starts, rows, side="right") - 1
        labels = classes + turns * store.counts.shape[0]
        batch = Batch(normalise(store, images), labels.astype(jnp.int32))
        return Episode(batch, batch)
