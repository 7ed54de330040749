"""The form in which a network expects pictures, and the reading of files and arrays into it."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data.files import decoding
from metajax.data.files import folder as folders
from metajax.deploy.fields import in_range, taken
from metajax.episodes.views import PixelStatistics, normalize
from metajax.errors import DataError
from metajax.names import composed, shown
from metajax.types import Array, Tree

Picture = Any
"""A path of an image file, its content as bytes, or pixels [H, W] or [H, W, C] of any size."""


@dataclasses.dataclass(frozen=True)
class ImageForm:
    """The form of pictures that a network was trained on.

    Attributes:
      shape: Height, width and channels of the network's images; height and width are equal.
      mean: Mean of the training pixels scaled to [0, 1], of each channel.
      scale: Divisor of the centered pixels, of each channel.
      fit: Way to make a picture square, one of `metajax.data.files.decoding.FITS`.
      bits: Bits per channel of files with more than 8; None for 16.
      invert: Whether pixels v become 255 - v, as where ink is black in the files and bright in training.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    fit: str = "crop"
    bits: int | None = None
    invert: bool = False

    noun = "picture"
    """Name of an example in messages."""
    about = None
    """Arguments of the network that depend on the data, of which images have none."""

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Inputs of the network for two pictures."""
        return jax.ShapeDtypeStruct((2, *self.shape), np.float32)

    @classmethod
    def from_json(cls, found: Any) -> "ImageForm":
        """Reads a form that `to_json` made.

        Args:
          found: Parsed JSON.

        Returns:
          The form.

        Raises:
          DataError: If a field is missing, unknown, of another type, or out of range.
        """
        what = "The form of images"
        kinds = {
            **dict.fromkeys(("shape", "mean", "scale"), list),
            "fit": str,
            "bits": (int, type(None)),
            "invert": bool,
        }
        fields = taken(found, kinds, what=what)
        shape, mean, scale = (tuple(fields.pop(name)) for name in ("shape", "mean", "scale"))
        if len(shape) != 3 or any(type(side) is not int for side in shape):
            raise DataError(f"{what}: shape is {shown(shape)}; it has to be three whole numbers")
        height, width, channels = shape
        in_range(height, "height", least=1, most=4096, what=what)
        if width != height or channels not in (1, 3):
            raise DataError(f"{what}: shape is {shape}; it has to be [side, side, 1 or 3]")
        for name, values in (("mean", mean), ("scale", scale)):
            numbers = [v for v in values if type(v) in (int, float) and np.isfinite(v)]
            if len(numbers) != channels or len(values) != channels:
                raise DataError(
                    f"{what}: {name} is {shown(values)}; it has to be {channels} numbers"
                )
        if min(scale) <= 0:
            raise DataError(f"{what}: scale is {shown(scale)}; it has to be above zero")
        if fields["fit"] not in decoding.FITS:
            raise DataError(
                f"{what}: fit is {shown(fields['fit'])}; use {', '.join(decoding.FITS)}"
            )
        return cls(shape, mean, scale, **fields)

    def to_json(self) -> dict[str, Any]:
        """Returns the form as values that JSON can hold, by name."""
        return dataclasses.asdict(self)

    def read(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Reads pictures into the form of the training images, before they are normalized.

        Args:
          pictures: M paths of image files, contents of files as bytes, or pixels [H, W] or [H, W, C], C of 1,
            3 or 4: uint8, or floats in [0, 1].

        Returns:
          Pixels [M, H, W, C] uint8.

        Raises:
          DataError: If a picture cannot be read.

        Example:
          >>> form = ImageForm((8, 8, 1), (0.5,), (0.5,))
          >>> form.read([np.zeros((30, 20, 3), np.uint8)]).shape
          (1, 8, 8, 1)
        """
        side, _, channels = self.shape
        pixels = decoding.allocate(len(pictures), image_size=side, channels=channels)
        encoded = [_encoded(picture, index) for index, picture in enumerate(pictures)]
        names = [
            picture if isinstance(picture, (str, Path)) else f"picture {index}"
            for index, picture in enumerate(pictures)
        ]
        form = decoding.Form(self.fit, self.bits, self.invert)
        threads = None if len(pictures) > 16 else 1  # a few are read sooner without threads
        decoding.decode_into(pixels, encoded, names, form=form, threads=threads)
        return pixels

    def by_class(self, path: str | Path, *, label: str | None = None) -> dict[str, Sequence[Path]]:
        """Lists the pictures of a folder with a folder per class.

        Args:
          path: Folder.
          label: Column of the class in tables, of which a folder has none.

        Returns:
          Paths of files by class name.

        Raises:
          DataError: If it is no such folder, or a column is named.
        """
        if label is not None:
            raise DataError(
                f"pictures have no column {shown(label)}; their folders name their classes"
            )
        found = folders.listing(Path(path).expanduser())
        parts = np.split(np.arange(len(found.files)), np.cumsum(found.counts)[:-1])
        return {
            composed(name): [found.files[i] for i in rows]
            for name, rows in zip(found.names, parts, strict=True)
        }

    def named(self, asked: Sequence[str]) -> list[tuple[str, str]]:
        """Names the pictures of a command by their paths."""
        return [(path, path) for path in asked]

    def in_words(self) -> str:
        """Describes the form for people."""
        height, width, channels = self.shape
        return f"{height} x {width} x {channels}, {self.fit}{', inverted' * self.invert}"

    def features(self, kept: np.ndarray) -> Tree:
        """Returns pictures [M, H, W, C] as they are, as rows of tables have features in their place."""
        return kept

    def inputs(self, features: Array) -> Array:
        """Makes inputs of the network from pictures; the same as `normalized`."""
        return self.normalized(features)

    def pack(self, examples: Mapping[str, np.ndarray]) -> tuple[None, dict[str, np.ndarray]]:
        """Writes examples as arrays by name, which tells the place of a class, as tensors have no order."""
        return None, {f"{i:04}:{name}": pixels for i, (name, pixels) in enumerate(examples.items())}

    def unpack(self, found: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reads examples that `pack` wrote; raises DataError if they are damaged."""
        for name, pixels in arrays.items():
            if pixels.dtype != np.uint8 or pixels.shape[1:] != self.shape or not len(pixels):
                raise DataError(
                    f"the examples of {shown(name)} are {pixels.dtype}{list(pixels.shape)}"
                )
        if found is not None:
            raise DataError("the examples are rows, and this model reads pictures")
        return {name.partition(":")[2]: arrays[name] for name in sorted(arrays)}

    def normalized(self, pixels: Array) -> Array:
        """Normalizes pictures as the training did.

        Args:
          pixels: Pictures [..., C] uint8.

        Returns:
          Inputs of the network [..., C] float32.
        """
        mean, scale = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.scale))
        return normalize(PixelStatistics(mean, scale), pixels)

    def looks_inverted(self, pixels: np.ndarray) -> bool:
        """Finds out whether pictures look like the training pictures with black and white exchanged.

        Args:
          pixels: Pictures [M, H, W, C] uint8, M of 1 or more.

        Returns:
          True if their mean is far from the training's, and the mean of their negatives is near it.
        """
        mean, of_training = pixels.mean() / 255, float(np.mean(self.mean))
        return abs(mean - of_training) > abs(1 - mean - of_training) + 0.3


def _encoded(picture: Picture, index: int) -> Path | bytes:
    """Makes an image file of a picture, so that arrays take the way of files."""
    if isinstance(picture, (str, Path)):
        return Path(picture).expanduser()
    if isinstance(picture, bytes):
        return picture
    pixels = np.asarray(picture)
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
    if not fits or 0 in pixels.shape:
        raise DataError(
            f"picture {index} has the shape {pixels.shape}; use [H, W], or [H, W, C] with 1, 3 or 4 channels"
        )
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(
                f"picture {index} has values from {pixels.min():g} to {pixels.max():g}; floats have to be in "
                "[0, 1], or use uint8"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(
            f"picture {index} is of type {pixels.dtype}; use uint8, or floats in [0, 1]"
        )
    from PIL import Image  # decoding has found it, or said how to install it

    file = io.BytesIO()
    squeezed = pixels[..., 0] if pixels.shape[-1:] == (1,) and pixels.ndim == 3 else pixels
    Image.fromarray(squeezed).save(file, "PNG", compress_level=0)
    return file.getvalue()
