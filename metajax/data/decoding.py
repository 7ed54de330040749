"""Decoding image files of any kind, and fitting them to a square."""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from metajax.data import depth
from metajax.data.images import DataError
from metajax.names import shown

T, Result = TypeVar("T"), TypeVar("Result")

LARGEST_NATIVE = 84
THREADS = min(8, os.cpu_count() or 1)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Pillow's names of what is read. Others have readers that run programs, such as Ghostscript."""
FITS = ("crop", "pad", "stretch")
"""Ways to make a square of an image that is none."""


class Form(NamedTuple):
    """How pixels of files become those of a data set, beside their size and number of channels.

    Attributes:
      fit: One of FITS. `crop` keeps the middle square; `pad` keeps the whole image, on a square of its own
        mean colour, which is neutral for ink on paper and for light on black; `stretch` changes the ratio of
        the sides.
      bits: Of the data set's files with more than 8 bits per channel; `depth.eight_bits` maps their values.
        A file that is not constant and would become all 0 keeps two levels, 0 and 1.
        None takes them for 16 bits, and of colour the high bytes.
      invert: Whether pixels v become 255 - v, in the end.
    """

    fit: str = "crop"
    bits: int | None = None
    invert: bool = False


PLAIN = Form()


def native_size(sizes: Iterable[tuple[int, int]]) -> int:
    """The size all images share if they are squares of at most 84, else 84."""
    distinct = set(sizes)
    width, height = distinct.pop()
    keep = not distinct and 0 < width == height <= LARGEST_NATIVE
    return width if keep else LARGEST_NATIVE


def allocate(count: int, *, image_size: int, channels: int) -> np.ndarray:
    """Makes room for images [count, image_size, image_size, channels] uint8, if there is enough."""
    shape = (count, image_size, image_size, channels)
    # Sorting by class, or cutting the splits out, takes the same amount once more.
    needed = 2 * np.prod(shape, dtype=np.int64)
    present = memory()
    if needed > present:
        raise DataError(
            f"{count} images of {image_size}x{image_size}x{channels} take {needed / 2**30:.1f} GiB"
            f" to sort, and this machine has {present / 2**30:.1f} GiB; choose a smaller image size"
            " or fewer images, or leave them on disk (resident='never')"
        )
    return np.empty(shape, np.uint8)


def memory() -> float:
    """Bytes of memory that this machine has, or that its container may use; infinite if neither tells."""
    try:
        present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # A system that does not tell.
        present = float("inf")
    # Without a limit the file is missing or says "max".
    with contextlib.suppress(OSError, ValueError):
        present = min(present, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return present


class Header(NamedTuple):
    """What an image file says before its pixels.

    Attributes:
      size: Width and height.
      grey: Whether it has one channel beside transparency.
      deep: Whether it has more than 8 bits per channel.
    """

    size: tuple[int, int]
    grey: bool
    deep: bool


def header(file: Path) -> Header:
    """Reads the header of an image file, and not its pixels; DataError if it cannot be read."""
    with _readable(file), _open(file) as image:
        depth.check(image)
        return Header(image.size, depth.is_grey(image), depth.is_deep(image))


def extremes(file: Path) -> depth.Extremes:
    """Decodes a file of more than 8 bits; its smallest and largest value."""
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
    """Decodes in several threads, which pays for large photographs.

    Transparent parts become white; of an animation the first picture counts.

    Args:
      images: [M, S, S, C] uint8, C either 1 or 3; written to.
      encoded: M image files, or what is in them.
      names: M things to call them by in errors.
      form: How pixels are fitted to a square and scaled.
      threads: how many, this one alone if one; None is eight or as many as there are cores.

    Raises:
      DataError: one cannot be decoded.
    """

    def one(index: int) -> None:
        with _readable(names[index]):
            images[index] = _decode(encoded[index], images.shape[1], images.shape[3], form)

    in_threads(one, range(len(images)), threads=threads)


def in_threads(
    one: Callable[[T], Result], items: Sequence[T], *, threads: int | None = None
) -> list[Result]:
    """Calls a function on each item, in this thread alone if `threads` is 1; the first error ends it soon."""
    _pillow()  # Says what to install before any thread starts.
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


def _pillow():
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'metajax[data]'") from error
    return PIL


@contextlib.contextmanager
def _readable(name: object):
    """Turns errors into a DataError that names an image."""
    try:
        yield
    except Exception as error:  # Decoders of broken files raise all kinds of errors.
        raise DataError(f"{shown(name)} is not a readable image: {shown(error)}") from error


def _open(encoded: bytes | Path):
    pil = _pillow()
    try:
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        return pil.Image.open(file, formats=FORMATS)
    except pil.UnidentifiedImageError as error:
        raise ValueError(f"it holds none of {', '.join(FORMATS)}") from error


def _decode(encoded: bytes | Path, image_size: int, channels: int, form: Form) -> np.ndarray:
    with _open(encoded) as image:
        depth.check(image)
        # Of colour, Pillow itself takes the high bytes.
        deep = image.mode.startswith("I") or (form.bits is not None and depth.is_deep(image))
        image = _on_white(_eight_bits(image, encoded, form.bits or 16) if deep else _upright(image))
        image = _square(image.convert("L" if channels == 1 else "RGB"), image_size, form.fit)
    pixels = np.asarray(image).reshape(image_size, image_size, channels)
    if deep and not pixels.any():
        pixels = _two_levels(encoded, image_size, form.fit).repeat(channels, -1)
    return 255 - pixels if form.invert else pixels


def _two_levels(encoded: bytes | Path, image_size: int, fit: str) -> np.ndarray:
    """Pixels [image_size, image_size, 1] of a dark file: 0 near its smallest value, and 1 elsewhere.

    Only a constant file, or one whose other values are cropped away, becomes all 0.
    """
    with _open(encoded) as image, _open(encoded) as again:
        brighter = depth.above_the_darkest(image, again).astype(np.float32)
    # Floats, so that a single pixel of many is not rounded away.
    square = np.asarray(_square(_pillow().Image.fromarray(brighter), image_size, fit))
    return (square > square.max() / 2).astype(np.uint8)[..., None]


def _square(image, side: int, fit: str):
    """Resamples once, by Lanczos, which weighs in all pixels that shrink into one."""
    pil = _pillow()
    method = pil.Image.Resampling.LANCZOS
    if fit == "crop":
        return pil.ImageOps.fit(image, (side, side), method=method)
    if fit == "stretch" or image.width == image.height:
        return image.resize((side, side), method)
    colour = np.asarray(image).mean((0, 1)).round().astype(int)
    longest = max(image.size)
    size = [max(1, round(side * length / longest)) for length in image.size]
    square = pil.Image.new(image.mode, (side, side), tuple(np.atleast_1d(colour).tolist()))
    square.paste(image.resize(size, method), tuple((side - length) // 2 for length in size))
    return square


def _eight_bits(image, encoded: bytes | Path, bits: int):
    """An upright image of 8 bits per channel, of one that has more."""
    with _open(encoded) as again:
        return _pillow().Image.fromarray(depth.eight_bits(image, again, bits))


def _upright(image):
    return _pillow().ImageOps.exif_transpose(image)


def _on_white(image):
    if not image.has_transparency_data:
        return image
    pil = _pillow()
    # What lies under transparent pixels is arbitrary, often black.
    image = image.convert("RGBA")
    return pil.Image.alpha_composite(pil.Image.new("RGBA", image.size, "white"), image)
