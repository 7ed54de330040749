"""Image completion: a task is one image, and each of its pixels is an example."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.episodes.rows import Rows
from metajax.episodes.views import HostImages
from metajax.errors import DataError
from metajax.types import Array, Batch, Episode, Key


class PixelDraw(NamedTuple):
    """The image and the pixels of a task, before their values are looked up.

    Pixels are numbered along the rows of the image, from its upper left corner.

    Attributes:
      rows: Row of the image, an int32 scalar.
      context: Context pixels, [n] int32.
      queries: Query pixels, [Q] int32.
      weights: Weights of the context, [n] float32; zero marks padding.
    """

    rows: Array
    context: Array
    queries: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class PixelSampler:
    """Draws an image and pixels of it; call it as `sampler(store, key) -> Episode`.

    The support set, or context, has the positions and values of some pixels; the model predicts the values at
    other positions. Classes are equally likely, and so are the images of a class. Context pixels are
    different; with the same key, a smaller context is a prefix of a larger one. Queries are drawn from all
    pixels, the context's among them, so their loss estimates the loss of the whole image.

    With `min_points`, each task has its own number of context points, uniform between the two limits. Arrays
    keep the full shape, padded by repeats of the task's own pixels with weight zero.

    If the store holds no pixels, pass the image as a third argument: `sampler(store, key, pixels)`.

    Attributes:
      points: Number n of context points.
      queries: Number Q of query pixels, which are different; None for all pixels in their order.
      min_points: Fewest context points; None means n.

    Example:
      >>> images = np.zeros((6, 8, 8, 3), np.uint8)
      >>> data = metajax.data.LabelledImages.from_labels(images, np.arange(6) // 3, ["a", "b"])
      >>> store = metajax.episodes.class_store(data)
      >>> episode = jax.eval_shape(PixelSampler(points=10), store, jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.targets.shape
      ((10, 2), (64, 3))

    Reference: Garnelo et al., 2018 (https://arxiv.org/abs/1807.01613), section 4.2.
    """

    points: int
    queries: int | None = None
    min_points: int | None = None

    def __post_init__(self):
        for name in ("points", "queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; use 1 or more.")
        if self.min_points is not None and not 1 <= self.min_points <= self.points:
            raise ValueError(
                f"min_points is {self.min_points}; use 1 to {self.points}, the number of points."
            )

    def check(self, data: HostImages, *, name: str = "data") -> None:
        """Checks that there are images, and that they have as many pixels as are drawn.

        Args:
          data: Images to draw from.
          name: Name of the split in messages.

        Raises:
          DataError: If there is no image, or more points or queries than pixels.
        """
        if not len(data.counts):
            raise DataError(f"The {name} split has no images; split the classes in another way.")
        self._check_pixels(*data.shape[:2])

    def _check_pixels(self, height: int, width: int) -> None:
        """Raises DataError if an image of this size has too few pixels."""
        for drawn in ("points", "queries"):
            if (getattr(self, drawn) or 0) > height * width:
                raise DataError(
                    f"{getattr(self, drawn)} {drawn} are more than the {height * width} pixels of a "
                    f"{height} x {width} image; use {height * width} or fewer."
                )

    def identify(self, store: Rows, key: Key) -> PixelDraw:
        """Chooses the image and its pixels.

        Args:
          store: Store to draw from.
          key: Random key; a call of the sampler with the same key has the same pixels.

        Returns:
          The draw.

        Raises:
          DataError: If there are more points or queries than pixels.
        """
        height, width, _ = store.features.shape[1:]
        self._check_pixels(height, width)
        class_key, image_key, context_key, queries_key, points_key = jax.random.split(key, 5)
        label = jax.random.randint(class_key, (), 0, store.counts.shape[0], jnp.int32)
        number = jax.random.randint(image_key, (), 0, store.counts[label], jnp.int32)
        image = store.starts[label] + number
        pixels = jnp.arange(height * width, dtype=jnp.int32)
        # All pixels are permuted, so that a smaller context is a prefix of a larger one.
        context = jax.random.permutation(context_key, pixels)[: self.points]
        if self.queries is not None:
            pixels = jax.random.permutation(queries_key, pixels)[: self.queries]
        weights = jnp.ones(self.points, jnp.float32)
        if self.min_points is not None:
            places = jnp.arange(self.points, dtype=jnp.int32)
            count = jax.random.randint(points_key, (), self.min_points, self.points + 1, jnp.int32)
            context, weights = context[places % count], (places < count).astype(jnp.float32)
        return PixelDraw(image, context, pixels, weights)

    def __call__(self, store: Rows, key: Key, pixels: Array | None = None) -> Episode:
        """Draws one episode.

        Args:
          store: Store to draw from.
          key: Random key, consumed.
          pixels: Image that `identify` draws, [H, W, C] uint8; None looks it up in the store.

        Returns:
          An episode of a support set [n, ...] and a query set [Q, ...]. Inputs [..., 2] are `coordinates`;
          targets [..., C] are pixels in [0, 1], not normalized by the statistics of the store.
        """
        draw = self.identify(store, key)
        image = store.take(draw.rows) if pixels is None else pixels
        chex.assert_shape(image, store.features.shape[1:])
        height, width, _ = image.shape

        def batch(places: Array, weights: Array | None = None) -> Batch:
            values = image[places // width, places % width]
            targets = values.astype(jnp.float32) / 255
            return Batch(coordinates(places, height, width), targets, weights)

        weights = None if self.min_points is None else draw.weights
        return Episode(batch(draw.context, weights), batch(draw.queries))


def coordinates(pixels: Array, height: int, width: int) -> Array:
    """Computes the centers of pixels in the square (-1, 1) x (-1, 1).

    Args:
      pixels: Pixel numbers along the rows of an image, [n] int.
      height: Height of the image in pixels.
      width: Width of the image in pixels.

    Returns:
      Positions down the image and to the right, [n, 2] float32.

    Example:
      >>> print(coordinates(jnp.arange(2), height=1, width=2))
      [[ 0.  -0.5]
       [ 0.   0.5]]
    """
    places = jnp.stack([pixels // width, pixels % width], axis=-1)
    return (2 * places + 1) / jnp.array([height, width], jnp.float32) - 1
