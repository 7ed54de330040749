"""The class store, and N-way K-shot episodes drawn from it under `jit`.

Which images an episode has depends on nothing but the sizes of the classes, so that images may also stay on
disk: the store holds no pixels then, and whoever reads the images of a draw hands them to the sampler.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.episodes.augment import AugmentFn
from metajax.episodes.images import DataError, LabelledImages
from metajax.episodes.streamed import Images
from metajax.episodes.tasks import TaskFn
from metajax.types import Array, Batch, Episode, Key

NUM_ROTATIONS = 4


class ClassStore(NamedTuple):
    """Images sorted by class, resident on the device as uint8; an argument of the step, never a closure.

    Attributes:
      images: [M, H, W, C] uint8; [0, H, W, C] where they stay on disk.
      starts: [classes] int32, where each class begins.
      counts: [classes] int32, how many images it has; classes may differ.
      mean: [C] float32, subtracted from pixels scaled to [0, 1].
      scale: [C] float32, what the difference is divided by.
    """

    images: Array
    starts: Array
    counts: Array
    mean: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W and C."""
        return self.images.shape[1:]


class Draw(NamedTuple):
    """An episode before its pixels are looked up.

    Attributes:
      rotations: [N] int32, quarter turns of each class.
      images: [N, K + Q] int32, rows of `ClassStore.images`; the first K are the support set.
      weights: [N, K + Q] float32, zero for what only pads the episode to its static shape.
    """

    rotations: Array
    images: Array
    weights: Array


def pixel_statistics(data: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] of each channel, of pixels scaled to [0, 1]."""
    channels = data.histogram()  # exact
    levels = np.arange(256) / 255
    mean = np.array([counts @ levels / counts.sum() for counts in channels])
    square = np.array([counts @ levels**2 / counts.sum() for counts in channels])
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def class_store(
    data: Images, *, statistics: tuple[np.ndarray, np.ndarray] | None = None
) -> ClassStore:
    """Puts labelled images on the device; of those that stay on disk, all but the pixels.

    Args:
      data: the images.
      statistics: mean and deviation [C] to normalise by, those of the training split as a rule; None takes
        the data's own.
    """
    mean, scale = pixel_statistics(data) if statistics is None else statistics
    starts = np.concatenate([[0], np.cumsum(data.counts)[:-1]]).astype(np.int32)
    resident = isinstance(data, LabelledImages)
    images = data.images if resident else np.zeros((0, *data.shape), np.uint8)
    ints, floats = (starts, data.counts), (mean, scale)
    return ClassStore(
        jnp.asarray(images),
        *(jnp.asarray(array, jnp.int32) for array in ints),
        *(jnp.asarray(array, jnp.float32) for array in floats),
    )


def look_up(store: ClassStore, rows: Array) -> Array:
    """The images [..., H, W, C] of rows [...]; ValueError where the store holds none."""
    if not store.images.shape[0]:
        raise ValueError(
            "The store holds no pixels, for its images stay on disk; give the sampler those of the draw, as "
            "`metajax.streaming` does."
        )
    return store.images[rows]


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


def choose(key: Key, size: Array | int, count: int) -> Array:
    """Draws `count` different integers of [0, size), in random order.

    Draw i picks one of the size - i integers still free, counted from below; the picks so far say which
    integer that is. Exact, and `count` steps of `count` comparisons however large `size` is, where a
    permutation would sort the whole range.

    Args:
      key: consumed.
      size: may be traced; at least `count`, which the caller answers for.
      count: static.

    Returns:
      [count] int32.
    """
    order = jnp.arange(count, dtype=jnp.int32)
    ranks = jax.random.randint(key, (count,), 0, size - order, jnp.int32)
    free = jnp.iinfo(jnp.int32).max // 2  # a pick not yet made lies above every integer

    def pick(i, carry):
        ascending, drawn = carry
        # The j-th smallest pick p has p - j free integers below it, so it pushes up every rank from p - j on.
        value = ranks[i] + jnp.sum(ascending - order <= ranks[i], dtype=jnp.int32)
        place = jnp.sum(ascending < value, dtype=jnp.int32)
        shifted = jnp.where(order == place, value, jnp.roll(ascending, 1))
        return jnp.where(order < place, ascending, shifted), drawn.at[i].set(value)

    start = (jnp.full(count, free, jnp.int32), jnp.zeros(count, jnp.int32))
    return jax.lax.fori_loop(0, count, pick, start)[1]


@dataclasses.dataclass(frozen=True)
class EpisodeSampler:
    """Draws episodes of one shape; call it as `sampler(store, key) -> Episode`.

    Where the store holds no pixels, they are given too: `sampler(store, key, pixels)`.

    Where `min_ways < ways` or `min_shots < shots`, each task has its own number of ways and shots, uniform
    between the two. Its arrays keep the full shape: what is missing is filled by repeats of the task's own
    images with weight zero, so that losses and metrics leave them out and batch statistics stay those of
    real images. Unused classes are the last labels.

    The store must hold `ways` classes of `shots + queries` images: sizes are traced here, so that what
    is too small cannot be refused, and would give images of other classes. `check_episodes` refuses it.

    Attributes:
      ways: N.
      shots: K.
      queries: Q, a class.
      rotations: whether a class turned by 90, 180 and 270 degrees is three more classes.
      min_ways: the fewest ways; None means N.
      min_shots: the fewest shots; None means K.
      augment: (key, image [H, W, C] uint8) -> image, applied to each image by itself.
      changes: what happens to each whole task then, in order; see `episodes.tasks`.
    """

    ways: int
    shots: int
    queries: int
    rotations: bool = False
    min_ways: int | None = None
    min_shots: int | None = None
    augment: AugmentFn | None = None
    changes: tuple[TaskFn, ...] = ()

    def __post_init__(self):
        for least, most in (("min_ways", "ways"), ("min_shots", "shots")):
            low, high = getattr(self, least), getattr(self, most)
            if high < 1:
                raise ValueError(f"{most} is {high}; use 1 or more.")
            if low is not None and not 1 <= low <= high:
                raise ValueError(f"{least} is {low}; use 1 to {high}, the number of {most}.")
        if self.queries < 1:
            raise ValueError(f"queries is {self.queries}; use 1 or more.")

    def identify(self, store: ClassStore, key: Key) -> Draw:
        """Chooses classes and images without replacement: all that determines the episode of `key` but its
        augmentation. The key is consumed."""
        class_key, image_key, ways_key, shots_key, _ = jax.random.split(key, 5)
        num_classes = store.counts.shape[0]
        turns = NUM_ROTATIONS if self.rotations else 1
        picked = choose(class_key, num_classes * turns, self.ways)
        per_class = self.shots + self.queries
        images = jax.vmap(lambda key, size: choose(key, size, per_class))(
            jax.random.split(image_key, self.ways), store.counts[picked % num_classes]
        )
        images += store.starts[picked % num_classes][:, None]
        draw = Draw(picked // num_classes, images, jnp.ones(images.shape, jnp.float32))
        return self._vary(draw, ways_key, shots_key)

    def __call__(self, store: ClassStore, key: Key, pixels: Array | None = None) -> Episode:
        """Draws one episode; support [N K, ...] and query [N Q, ...], sorted by label.

        Args:
          store: what to draw from.
          key: consumed.
          pixels: [N, K + Q, H, W, C] uint8, the images that `identify` names; None looks them up.
        """
        *_, augment_key = jax.random.split(key, 5)
        draw = self.identify(store, key)
        images = look_up(store, draw.images) if pixels is None else pixels
        episode = self._assemble(store, draw, images, augment_key)
        for number, change in enumerate(self.changes):
            # Beside the keys of single images, which are split from the same.
            episode = change(jax.random.fold_in(augment_key, 2**31 + number), episode, self.ways)
        return episode

    def _assemble(self, store: ClassStore, draw: Draw, images: Array, key: Key) -> Episode:
        """Turns, augments and normalises the images of a draw; the key is consumed."""
        if self.rotations:
            images = jax.vmap(turn)(images, draw.rotations)
        if self.augment is not None:
            keys = jax.random.split(key, draw.images.shape)
            images = jax.vmap(jax.vmap(self.augment))(keys, images)
        inputs = normalise(store, images)
        labels = jnp.arange(self.ways, dtype=jnp.int32)[:, None]
        labels = jnp.broadcast_to(labels, draw.images.shape)

        def batch(part):
            flat = [
                leaf[:, part].reshape(-1, *leaf.shape[2:])
                for leaf in (inputs, labels, draw.weights)
            ]
            return Batch(flat[0], flat[1], flat[2] if self._varies else None)

        return Episode(batch(slice(None, self.shots)), batch(slice(self.shots, None)))

    @property
    def _varies(self) -> bool:
        return self.min_ways is not None or self.min_shots is not None

    def _vary(self, draw: Draw, ways_key: Key, shots_key: Key) -> Draw:
        """Shortens a draw to its task's own ways and shots by repeating what is left, at weight zero."""
        if not self._varies:
            return draw
        min_ways = self.ways if self.min_ways is None else self.min_ways
        min_shots = self.shots if self.min_shots is None else self.min_shots
        ways = jax.random.randint(ways_key, (), min_ways, self.ways + 1, jnp.int32)
        shots = jax.random.randint(shots_key, (), min_shots, self.shots + 1, jnp.int32)
        rows, columns = (
            jnp.arange(length, dtype=jnp.int32) for length in (self.ways, self.shots + self.queries)
        )
        kept_columns = (columns < shots) | (columns >= self.shots)
        weights = (rows[:, None] < ways) & kept_columns
        rows = rows % ways
        columns = jnp.where(kept_columns, columns, columns % shots)
        return Draw(
            draw.rotations[rows], draw.images[rows][:, columns], weights.astype(jnp.float32)
        )


def turn(images: Array, quarter_turns: Array) -> Array:
    """Turns square images [..., H, W, C], all by the same number of quarter turns."""
    turned = [jnp.rot90(images, k, axes=(-3, -2)) for k in range(NUM_ROTATIONS)]
    return jnp.stack(turned)[quarter_turns]


def normalise(store: ClassStore, images: Array) -> Array:
    """Scales pixels [..., C] to [0, 1] and by the store's statistics; float32."""
    return (images.astype(jnp.float32) / 255 - store.mean) / store.scale
