"""Decoding of image files of many formats, and their fit to a square."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metajax.data.files import depth
from metajax.errors import DataError
from metajax.names import shown

T = TypeVar("T")
Result = TypeVar("Result")

LARGEST_NATIVE = 84
"""Largest side in pixels that images keep by default."""
THREADS = min(8, os.cpu_count() or 1)
"""Default number of threads that decode."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pillow's names of the formats that are read. Other readers run programs, such as Ghostscript."""
FITS = ("crop", "pad", "stretch")
"""Ways to make an image square."""


class Form(NamedTuple):
    """The way from pixels of files to pixels of a data set, besides their size and number of channels.

    Attributes:
      fit: One of FITS. `crop` keeps the middle square; `pad` keeps the whole image, on a square of its mean
        color, which is neutral for ink on paper and for light on black; `stretch` changes the ratio of the
        sides.
      bits: Bits per channel of the files with more than 8; `depth.eight_bits` maps their values to 8. A file
        that is not constant and would become all 0 keeps two levels, 0 and 1. None assumes 16 bits for gray,
        and reads the high bytes of color.
      invert: Whether pixels v become 255 - v at the end.
    """

    fit: str = "crop"
    bits: int | None = None
    invert: bool = False


PLAIN = Form()
"""The way of files with 8 bits per channel."""


def native_size(sizes: Iterable[tuple[int, int]]) -> int:
    """Chooses a side for images.

    Args:
      sizes: Width and height of each image.

    Returns:
      The side of the images if all are squares of one side of at most 84, else 84.

    Example:
      >>> from metajax.data.files import decoding
      >>> decoding.native_size([(28, 28), (28, 28)]), decoding.native_size([(28, 28), (30, 28)])
      (28, 84)
    """
    distinct = set(sizes)
    width, height = distinct.pop()
    keep = not distinct and 0 < width == height <= LARGEST_NATIVE
    return width if keep else LARGEST_NATIVE


def allocate(count: int, *, image_size: int, channels: int) -> np.ndarray:
    """Allocates memory for images, if there is enough.

    Args:
      count: Number of images.
      image_size: Height and width in pixels.
      channels: Number of channels.

    Returns:
      An array [count, image_size, image_size, channels] uint8 of arbitrary values.

    Raises:
      DataError: If the images and a sorted copy exceed the memory.
    """
    shape = (count, image_size, image_size, channels)
    # The copy that is sorted by class, or split, takes the same amount once more.
    needed = 2 * math.prod(shape)
    present = memory()
    if needed > present:
        raise DataError(
            f"{count} images of {image_size}x{image_size}x{channels} take {needed / 2**30:.1f} GiB"
            f" to sort, and this machine has {present / 2**30:.1f} GiB; choose a smaller image size"
            " or fewer images, or leave them on disk (resident='never')"
        )
    return np.empty(shape, np.uint8)


def memory() -> float:
    """Finds the bytes of memory that this machine has, or that its container may use.

    Returns:
      The smaller of the two; infinity if neither is known.
    """
    try:
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # a system without these names
        present = float("inf")
    # Without a limit the file is missing or holds "max".
    with contextlib.suppress(OSError, ValueError):
        present = min(present, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return present


class Header(NamedTuple):
    """Facts from the header of an image file.

    Attributes:
      size: Width and height in pixels.
      gray: Whether it has one channel besides transparency.
      deep: Whether it has more than 8 bits per channel.
    """

    size: tuple[int, int]
    gray: bool
    deep: bool


def header(file: Path | bytes) -> Header:
    """Reads the header of an image file, and not its pixels.

    Args:
      file: Path of the file, or its content.

    Returns:
      The facts that it holds.

    Raises:
      DataError: If the file is not a readable image.
    """
    with _readable(file), _open(file) as image:
        depth.check(image)
        return Header(image.size, depth.is_gray(image), depth.is_deep(image))


def extremes(file: Path) -> depth.Extremes:
    """Finds the smallest and the largest value of a file with more than 8 bits per channel.

    Args:
      file: Path of the file.

    Returns:
      The two values.

    Raises:
      DataError: If the file is not a readable image.
    """
    with _readable(file), _open(file) as image, _open(file) as again:
        return depth.extremes(image, again)


def decode_into(
    images: np.ndarray,
    encoded: Sequence[bytes | Path],
    names: Sequence,
    *,
    form: Form = PLAIN,
    threads: int | None = None,
) -> None:
    """Decodes image files in several threads, which pays for large photographs.

    Transparent parts become white; the first frame of an animation is read.

    Args:
      images: Array [M, S, S, C] uint8 that the pixels are written to, with C either 1 or 3.
      encoded: Paths or contents of M image files.
      names: Names of the M files in errors.
      form: Way to fit pixels to a square and to scale them.
      threads: Number of threads; 1 decodes in the calling thread, None is one per core, at most eight.

    Raises:
      DataError: If a file cannot be decoded.
    """

    def one(index: int) -> None:
        with _readable(names[index]):
            images[index] = _decode(encoded[index], images.shape[1], images.shape[3], form)

    in_threads(one, range(len(images)), threads=threads)


def in_threads(
    one: Callable[[T], Result], items: Sequence[T], *, threads: int | None = None
) -> list[Result]:
    """Calls a function on each item, in several threads.

    Args:
      one: Function item -> result.
      items: Items.
      threads: Number of threads; 1 calls in the calling thread, None is one per core, at most eight.

    Returns:
      The results, in order. The first exception cancels the calls that have not begun, and is raised.

    Example:
      >>> from metajax.data.files import decoding
      >>> decoding.in_threads(len, ["a", "bc"])
      [1, 2]
    """
    _pillow()  # if it is missing, the error comes before any thread starts
    threads = THREADS if threads is None else threads
    if threads == 1:
        return [one(item) for item in items]
    pool, found = ThreadPoolExecutor(threads), []
    try:
        for start in range(0, len(items), 1024):
            found.extend(pool.map(one, items[start : start + 1024]))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _pillow() -> Any:
    """Imports Pillow."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'metajax[data]'") from error
    return PIL


@contextlib.contextmanager
def _readable(name: object) -> Iterator[None]:
    """Turns exceptions into a DataError that names the image."""
    try:
        yield
    except Exception as error:  # decoders raise exceptions of many types for broken files
        raise DataError(f"{shown(name)} is not a readable image: {shown(error)}") from error


def _open(encoded: bytes | Path) -> Any:
    """Opens an image file of one of FORMATS; raises ValueError for others."""
    pil = _pillow()
    try:
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        return pil.Image.open(file, formats=FORMATS)
    except pil.UnidentifiedImageError as error:
        raise ValueError(f"it holds none of {', '.join(FORMATS)}") from error


def _decode(encoded: bytes | Path, image_size: int, channels: int, form: Form) -> np.ndarray:
    """Decodes an image file to [image_size, image_size, channels] uint8."""
    with _open(encoded) as image:
        depth.check(image)
        # Without `bits`, Pillow itself reads the high bytes of color.
        deep = image.mode.startswith("I") or (form.bits is not None and depth.is_deep(image))
        image = _on_white(_eight_bits(image, encoded, form.bits or 16) if deep else _upright(image))
        image = _square(image.convert("L" if channels == 1 else "RGB"), image_size, form.fit)
    pixels = np.asarray(image).reshape(image_size, image_size, channels)
    if deep and not pixels.any():
        pixels = _two_levels(encoded, image_size, form.fit).repeat(channels, -1)
    return 255 - pixels if form.invert else pixels


def _two_levels(encoded: bytes | Path, image_size: int, fit: str) -> np.ndarray:
    """Marks the brighter pixels of a dark file: 0 near its smallest value, and 1 elsewhere.

    Only a constant file, or a file whose other values are cropped away, becomes all 0.

    Args:
      encoded: Path or content of the file.
      image_size: Height and width in pixels.
      fit: One of FITS.

    Returns:
      Pixels [image_size, image_size, 1] uint8.
    """
    with _open(encoded) as image, _open(encoded) as again:
        brighter = depth.above_the_darkest(image, again).astype(np.float32)
    # Floats, so that one pixel of many is not rounded to 0.
    square = np.asarray(_square(_pillow().Image.fromarray(brighter), image_size, fit))
    return (square > square.max() / 2).astype(np.uint8)[..., None]


def _square(image: Any, side: int, fit: str) -> Any:
    """Fits an image to a square, resampled once by Lanczos, which reads all pixels that shrink into one."""
    pil = _pillow()
    method = pil.Image.Resampling.LANCZOS
    if fit == "crop":
        return pil.ImageOps.fit(image, (side, side), method=method)
    if fit == "stretch" or image.width == image.height:
        return image.resize((side, side), method)
    color = np.asarray(image).mean((0, 1)).round().astype(int)
    longest = max(image.size)
    size = [max(1, round(side * length / longest)) for length in image.size]
    square = pil.Image.new(image.mode, (side, side), tuple(np.atleast_1d(color).tolist()))
    left, top = ((side - length) // 2 for length in size)
    square.paste(image.resize(size, method), (left, top))
    return square


def _eight_bits(image: Any, encoded: bytes | Path, bits: int) -> Any:
    """Makes an upright image of 8 bits per channel of an image with more."""
    with _open(encoded) as again:
        return _pillow().Image.fromarray(depth.eight_bits(image, again, bits))


def _upright(image: Any) -> Any:
    """Turns an image as its EXIF orientation asks."""
    return _pillow().ImageOps.exif_transpose(image)


def _on_white(image: Any) -> Any:
    """Puts an image with transparency on white."""
    if not image.has_transparency_data:
        return image
    pil = _pillow()
    # The color of transparent pixels is arbitrary, often black.
    image = image.convert("RGBA")
    return pil.Image.alpha_composite(pil.Image.new("RGBA", image.size, "white"), image)
