"""Stores of labelled images, and N-way K-shot episodes drawn from them under `jit`.

Images may stay on disk: the store holds no pixels then, and whoever reads those of a draw hands them to the
sampler.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from metajax.data.images import DataError, LabelledImages
from metajax.data.streamed import Images
from metajax.episodes.augment import AugmentFn
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.rows import Rows
from metajax.episodes.views import NUM_ROTATIONS, ImageView, PixelStatistics, View


def pixel_statistics(data: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] of each channel, of pixels scaled to [0, 1]."""
    channels = data.histogram()  # exact
    levels = np.arange(256) / 255
    mean = np.array([counts @ levels / counts.sum() for counts in channels])
    square = np.array([counts @ levels**2 / counts.sum() for counts in channels])
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def class_store(data: Images, *, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Rows:
    """Puts labelled images on the device; of those that stay on disk, all but the pixels.

    Args:
      data: Images, sorted by class.
      statistics: Mean and deviation [C] to normalise by, those of the training split as a rule; None takes
        the data's own.

    Returns:
      A store whose features are images [M, H, W, C] uint8, M being 0 where they stay on disk, whose groups
      are classes, and whose constants are `PixelStatistics`.
    """
    mean, scale = pixel_statistics(data) if statistics is None else statistics
    resident = isinstance(data, LabelledImages)
    images = data.images if resident else np.zeros((0, *data.shape), np.uint8)
    constants = PixelStatistics(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))
    return Rows.of_sorted(images, data.counts, constants=constants)


def check_turns(data: Images, rotations: bool) -> None:
    """Raises DataError where images that are not square are to be turned."""
    if rotations and data.shape[0] != data.shape[1]:
        raise DataError(f"Rotations need square images; these are {data.shape[:2]}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeSampler(GroupSampler):
    """Draws episodes of images: a `GroupSampler` of classes, with an `ImageView`.

    Where the store holds no pixels, they are given too: `sampler(store, key, pixels)`.

    Attributes:
      rotations: Whether a class turned by 90, 180 and 270 degrees is three more classes.
      augment: (key, image [H, W, C] uint8) -> image, applied to each image by itself.
    """

    rotations: bool = False
    augment: AugmentFn | None = None
    variants: int = dataclasses.field(init=False, repr=False)
    view: View = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "variants", NUM_ROTATIONS if self.rotations else 1)
        object.__setattr__(self, "view", ImageView(self.augment))
        super().__post_init__()
