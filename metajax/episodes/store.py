"""Stores of labelled images, and N-way K-shot episodes drawn from them under `jit`.

Images may stay on disk: the store holds no pixels then, and whoever reads those of a draw hands them to the
sampler.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.episodes.augment import AugmentFn
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.images import DataError, LabelledImages
from metajax.episodes.rows import Rows
from metajax.episodes.streamed import Images
from metajax.episodes.tasks import TaskFn
from metajax.episodes.views import NUM_ROTATIONS, ImageView, PixelStatistics


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


class Room(NamedTuple):
    """How large the episodes of a split can be.

    Attributes:
      ways: Most classes; a turned class counts as one of its own.
      images: Most images of each class, shots and queries together.
    """

    ways: int
    images: int


def room(counts: np.ndarray, *, rotations: bool = False) -> Room:
    """Sizes episodes by the images of each class [classes]."""
    turns = NUM_ROTATIONS if rotations else 1
    return Room(len(counts) * turns, int(min(counts, default=0)))


def check_episodes(
    data: Images,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool = False,
    name: str = "data",
) -> None:
    """Raises DataError where episodes of this size cannot be drawn without replacement."""
    most, found = room(data.counts, rotations=rotations), []
    if ways > most.ways:
        found.append(f"{ways} ways are more than the {most.ways} classes of the {name} split")
    if shots + queries > most.images:
        few = np.count_nonzero(data.counts < shots + queries)
        found.append(
            f"{shots} shots and {queries} queries need {shots + queries} images a class, but {few} of the"
            f" {len(data.counts)} classes of the {name} split have fewer"
        )
    if found:
        raise DataError(
            f"{'; '.join(found)}; use at most {most.ways} ways, and {most.images} shots and queries together."
        )
    check_turns(data, rotations)


def check_turns(data: Images, rotations: bool) -> None:
    """Raises DataError where images that are not square are to be turned."""
    if rotations and data.shape[0] != data.shape[1]:
        raise DataError(f"Rotations need square images; these are {data.shape[:2]}.")


class EpisodeSampler(GroupSampler):
    """Draws episodes of images: a `GroupSampler` of classes, with an `ImageView`.

    Where the store holds no pixels, they are given too: `sampler(store, key, pixels)`.

    Args:
      ways: N.
      shots: K.
      queries: Q, per class.
      rotations: Whether a class turned by 90, 180 and 270 degrees is three more classes.
      min_ways: Fewest ways; None means N.
      min_shots: Fewest shots; None means K.
      augment: (key, image [H, W, C] uint8) -> image, applied to each image by itself.
      changes: Changes of each whole task then, in order; see `episodes.tasks`.
    """

    def __init__(
        self,
        ways: int,
        shots: int,
        queries: int,
        rotations: bool = False,
        min_ways: int | None = None,
        min_shots: int | None = None,
        augment: AugmentFn | None = None,
        changes: tuple[TaskFn, ...] = (),
    ):
        super().__init__(
            ways,
            shots,
            queries,
            min_ways=min_ways,
            min_shots=min_shots,
            variants=NUM_ROTATIONS if rotations else 1,
            view=ImageView(augment),
            changes=changes,
        )

    @property
    def rotations(self) -> bool:
        """Whether turned classes are classes of their own."""
        return self.variants > 1
