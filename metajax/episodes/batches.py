"""Batches of single images with the number of their class: what supervised training reads."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.episodes.augment import AugmentFn
from metajax.episodes.images import DataError, LabelledImages
from metajax.episodes.store import NUM_ROTATIONS, ClassStore, choose, normalise, turn
from metajax.types import Array, Batch, Episode, Key


@dataclasses.dataclass(frozen=True)
class BatchSampler:
    """Draws images of all classes alike; call it as `sampler(store, key) -> Episode`.

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

    def check(self, data: LabelledImages, *, name: str = "data") -> None:
        """Raises DataError where a batch has more images than there are, or rotations do not fit."""
        if self.images > len(data.images):
            raise DataError(
                f"A batch of {self.images} images is more than the {len(data.images)} of the {name} split; "
                "ask for fewer."
            )
        if self.rotations and data.images.shape[1] != data.images.shape[2]:
            raise DataError(f"Rotations need square images; these are {data.images.shape[1:3]}.")

    def num_classes(self, store: ClassStore) -> int:
        """How many classes there are to tell apart."""
        return store.counts.shape[0] * (NUM_ROTATIONS if self.rotations else 1)

    def identify(self, store: ClassStore, key: Key) -> tuple[Array, Array]:
        """Chooses rows of the store's images and their quarter turns, [B] each; the key is consumed."""
        rows_key, turns_key, _ = jax.random.split(key, 3)
        turns = NUM_ROTATIONS if self.rotations else 1
        rows = choose(rows_key, store.images.shape[0], self.images)
        return rows, jax.random.randint(turns_key, (self.images,), 0, turns)

    def __call__(self, store: ClassStore, key: Key) -> Episode:
        """Draws a batch; inputs [B, H, W, C], targets [B]."""
        *_, augment_key = jax.random.split(key, 3)
        rows, turns = self.identify(store, key)
        images = store.images[rows]
        if self.rotations:
            images = jax.vmap(turn)(images, turns)
        if self.augment is not None:
            images = jax.vmap(self.augment)(jax.random.split(augment_key, self.images), images)
        classes = jnp.searchsorted(store.starts, rows, side="right") - 1
        labels = classes + turns * store.counts.shape[0]
        batch = Batch(normalise(store, images), labels.astype(jnp.int32))
        return Episode(batch, batch)
