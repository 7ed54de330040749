"""Image completion: a task is one image, and each of its pixels an example."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.data.images import DataError
from metajax.data.streamed import Images
from metajax.episodes.rows import Rows
from metajax.types import Array, Batch, Episode, Key


class PixelDraw(NamedTuple):
    """A task before its pixels are looked up.

    Pixels are numbered along the rows of their image, from its upper left corner.

    Attributes:
      rows: Row of the image, an int32 scalar; one, as an episode is.
      context: [n] int32, the pixels that are seen.
      queries: [Q] int32, the pixels that are asked for.
      weights: [n] float32, zero for what only pads the context to its static shape.
    """

    rows: Array
    context: Array
    queries: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class PixelSampler:
    """Draws an image of a class and pixels of it; call it as `sampler(store, key) -> Episode`.

    Where the store holds no pixels, they are given too: `sampler(store, key, pixels)`.

    Classes are drawn alike, and then the images of one. The context's pixels are different; those of fewer
    points are the first of those of more, for the same key. Queries are drawn from all pixels, the context's
    among them, so that their loss estimates that of the whole image.

    Where `min_points < points`, each task has its own number of context points, uniform between the two. The
    arrays keep the full shape: what is missing is filled by repeats of the task's own pixels with weight
    zero.

    Attributes:
      points: n, context points.
      queries: Q, different pixels of the image; None asks for all, in their order.
      min_points: the fewest context points; None means n.

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

    def check(self, data: Images, *, name: str = "data") -> None:
        """Raises DataError where there is no image, or none has as many pixels as are drawn."""
        if not len(data.counts):
            raise DataError(f"The {name} split has no images; divide the classes in another way.")
        self._check_pixels(*data.shape[:2])

    def _check_pixels(self, height: int, width: int) -> None:
        for drawn in ("points", "queries"):
            if (getattr(self, drawn) or 0) > height * width:
                raise DataError(
                    f"{getattr(self, drawn)} {drawn} are more than the {height * width} pixels of a "
                    f"{height} x {width} image; use {height * width} or fewer."
                )

    def identify(self, store: Rows, key: Key) -> PixelDraw:
        """Chooses the image and its pixels: all that determines the episode of `key`, which is consumed."""
        height, width, _ = store.features.shape[1:]
        self._check_pixels(height, width)
        class_key, image_key, context_key, queries_key, points_key = jax.random.split(key, 5)
        label = jax.random.randint(class_key, (), 0, store.counts.shape[0], jnp.int32)
        number = jax.random.randint(image_key, (), 0, store.counts[label], jnp.int32)
        image = store.starts[label] + number
        pixels = jnp.arange(height * width, dtype=jnp.int32)
        # Whole orders, of which a smaller context takes less.
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
        """Draws one episode; support [n, ...] and query [Q, ...].

        Inputs [..., 2] are as of `coordinates`; targets [..., C] are pixels in [0, 1], not normalised by the
        store's statistics.

        Args:
          store: what to draw from.
          key: consumed.
          pixels: [H, W, C] uint8, the image that `identify` names; None looks it up.
        """
        draw = self.identify(store, key)
        image = store.take(draw.rows) if pixels is None else pixels
        height, width, _ = image.shape

        def batch(places, weights=None):
            values = image[places // width, places % width]
            targets = values.astype(jnp.float32) / 255
            return Batch(coordinates(places, height, width), targets, weights)

        weights = None if self.min_points is None else draw.weights
        return Episode(batch(draw.context, weights), batch(draw.queries))


def coordinates(pixels: Array, height: int, width: int) -> Array:
    """The middles of pixels [n] as numbers in (-1, 1): down the image, and to the right; [n, 2] float32."""
    places = jnp.stack([pixels // width, pixels % width], axis=-1)
    return (2 * places + 1) / jnp.array([height, width], jnp.float32) - 1
