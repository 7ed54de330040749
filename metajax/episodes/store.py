"""Stores of labeled images, and the sampler of N-way K-shot episodes of them.

Images may stay on disk: the store then holds no pixels, and the caller of the sampler passes the pixels of
each draw, as `metajax.data.streaming` does.
"""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np

from metajax.episodes.augment import AugmentFn
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.episodes.views import (
    NUM_ROTATIONS,
    HostImages,
    ImageView,
    PixelStatistics,
    View,
    check_turns,
)
from metajax.errors import DataError

__all__ = ["EpisodeSampler", "check_turns", "class_store", "pixel_statistics"]


def pixel_statistics(data: HostImages) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and the standard deviation of each channel, of pixels scaled to [0, 1].

    Both are exact: they are computed in float64 from the histogram of the 256 values.

    Args:
      data: Images, in memory or on disk.

    Returns:
      Mean and standard deviation, [C] float32 each; the deviation of a constant channel is 1, so that it can
      divide.

    Example:
      >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
      >>> data = metajax.data.LabelledImages.from_labels(images, np.array([0, 1]), ["black", "white"])
      >>> print(*pixel_statistics(data))
      [0.5] [0.5]
    """
    channels = data.histogram()
    levels = np.arange(256) / 255
    mean = np.array([counts @ levels / counts.sum() for counts in channels])
    square = np.array([counts @ levels**2 / counts.sum() for counts in channels])
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def class_store(
    data: HostImages, *, statistics: tuple[np.ndarray, np.ndarray] | None = None
) -> Rows:
    """Puts labeled images on the device, as a store whose groups are the classes.

    Args:
      data: Images sorted by class, such as `metajax.data.load(...).train`. The pixels of images that stay on
        disk are left there.
      statistics: Mean and standard deviation [C] that normalize the images, usually
        `pixel_statistics` of the training split; None computes them from `data`.

    Returns:
      A store whose features are images [M, H, W, C] uint8, with M = 0 if they stay on disk, whose groups are
      classes, and whose constants are `PixelStatistics`.

    Raises:
      DataError: If the sizes of the classes do not sum to the number of images.

    Example:
      >>> images = np.zeros((6, 8, 8, 1), np.uint8)
      >>> data = metajax.data.LabelledImages.from_labels(images, np.arange(6) // 3, ["a", "b"])
      >>> store = class_store(data)
      >>> store.features.shape, store.counts.tolist()
      ((6, 8, 8, 1), [3, 3])
    """
    mean, scale = pixel_statistics(data) if statistics is None else statistics
    chex.assert_shape([mean, scale], (data.shape[-1],))
    images = getattr(data, "images", None)
    if images is None:
        images = np.zeros((0, *data.shape), np.uint8)
    elif len(images) != (total := int(np.sum(data.counts))):
        raise DataError(
            f"The classes have {total} images in all, but there are {len(images)}; give the counts of these "
            "images, as LabelledImages.from_labels does."
        )
    constants = PixelStatistics(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))
    return Rows.of_sorted(images, data.counts, constants=constants)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeSampler(GroupSampler):
    """Draws N-way K-shot episodes of images; call it as `sampler(store, key) -> Episode`.

    A `GroupSampler` whose groups are classes and whose view is an `ImageView`. It has the options of a
    `GroupSampler`, except `variants` and `view`, which `rotations` and `augment` set.

    If the store holds no pixels, pass the pixels of the draw as a third argument: `sampler(store, key,
    pixels)`.

    Attributes:
      rotations: Whether each class, turned by 90, 180 and 270 degrees, makes three more classes.
      augment: Function (key, image [H, W, C] uint8) -> image, applied to each image with its own key; None
        for no augmentation. `metajax.episodes.augment.compose` makes one by name.

    Example:
      >>> images = np.zeros((40, 28, 28, 1), np.uint8)
      >>> labels, names = np.repeat(np.arange(8), 5), [f"class {i}" for i in range(8)]
      >>> store = metajax.episodes.class_store(metajax.data.LabelledImages.from_labels(images, labels, names))
      >>> sampler = EpisodeSampler(ways=5, shots=1, queries=3)
      >>> episode = jax.eval_shape(sampler, store, jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.inputs.shape
      ((5, 28, 28, 1), (15, 28, 28, 1))
    """

    rotations: bool = False
    augment: AugmentFn | None = None
    variants: int = dataclasses.field(init=False, repr=False)
    view: View = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "variants", NUM_ROTATIONS if self.rotations else 1)
        object.__setattr__(self, "view", ImageView(self.augment))
        super().__post_init__()
