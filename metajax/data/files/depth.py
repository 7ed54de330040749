"""Image files with more than 8 bits per channel, and their reduction to 8 bits.

Such a file does not tell the number of bits in use: cameras, scanners and microscopes write 10, 12 or 14 bits
into files of 16. The largest value of a whole data set decides, so that its images stay comparable. Files of
8 bits in the same data set are read unchanged.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

BITS = (8, 10, 12, 14, *range(16, 33))
"""Bits per channel that are assumed of data sets: usual numbers of sensors, and all numbers from 16."""

# Pillow reads color of 16 bits as its high bytes. With the swapped byte order it reads the low bytes; gray
# with alpha, read as RGBA, gives the high and the low byte of both as four channels.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in _OTHER_ORDER.items()
}
_LOW_BYTES["LA;16B"] = "RGBA"


_BITS, _CHANNELS, _PLANES = 258, 277, 284  # numbers of TIFF tags


class Extremes(NamedTuple):
    """The extreme values of the colors of a file, without its transparency.

    Attributes:
      low: Smallest value.
      high: Largest value.
    """

    low: int
    high: int


def is_deep(image: Any) -> bool:
    """Returns whether an image has integers of more than 8 bits.

    Args:
      image: Image that Pillow has opened and not yet decoded.
    """
    deep_raw = _raw_mode(image) in _LOW_BYTES
    return image.mode.startswith("I") or deep_raw or _largest_of_ppm(image) > 255


def check(image: Any) -> None:
    """Checks that the pixels of an image can be read.

    Args:
      image: Image that Pillow has opened and not yet decoded.

    Raises:
      ValueError: If its pixels are floats, or integers of more than 8 bits in separate planes.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})  # TIFF alone has tags
    separate = tags.get(_PLANES) == 2 and tags.get(_CHANNELS, 1) > 1
    if separate and max(tags.get(_BITS, (1,))) > 8:
        raise ValueError(
            "its colors of more than 8 bits are in separate planes; save it with interleaved channels"
        )


def is_gray(image: Any) -> bool:
    """Returns whether an image has one channel besides transparency.

    Args:
      image: Image that Pillow has opened and not yet decoded.
    """
    return image.mode in ("1", "L", "LA") or image.mode[0] == "I" or _raw_mode(image) == "LA;16B"


def bits_for(highest: int) -> int:
    """Finds the smallest of BITS whose range holds a value.

    Args:
      highest: Value of 0 or more, below 2**32.

    Returns:
      Number of bits.

    Example:
      >>> from metajax.data.files import depth
      >>> depth.bits_for(4095), depth.bits_for(4096)
      (12, 14)
    """
    return next(bits for bits in BITS if highest < 2**bits)


def is_faint(extremes: Extremes, bits: int) -> bool:
    """Returns whether all values of a file are in the darkest gray level, and not all the same.

    Args:
      extremes: Extreme values of the file.
      bits: Bits per channel of its data set.
    """
    return extremes.low < extremes.high and extremes.high >> (bits - 8) == 0


def extremes(image: Any, again: Any) -> Extremes:
    """Finds the extreme values of a deep image.

    Args:
      image: Deep image, opened by Pillow.
      again: The same file, opened once more.

    Returns:
      The smallest and the largest value.
    """
    colors, _ = _values(image, again)
    return Extremes(int(colors.min()), int(colors.max()))


def eight_bits(image: Any, again: Any, bits: int) -> np.ndarray:
    """Maps [0, 2**bits - 1] to [0, 255], by dropping the lowest bits.

    Args:
      image: Deep image, opened by Pillow.
      again: The same file, opened once more.
      bits: Bits per channel of its data set, 8 to 32; larger values become 255.

    Returns:
      Gray pixels [H, W] uint8, or [H, W, 2, 3 or 4] uint8: gray or colors, with the opacity last if there is
      one.

    Raises:
      ValueError: If a value is negative.
    """
    colors, alpha = _values(image, again)
    levels = np.minimum(colors >> (bits - 8), 255).astype(np.uint8)
    if alpha is not None:
        return np.concatenate([levels, alpha], axis=-1)
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def above_the_darkest(image: Any, again: Any) -> np.ndarray:
    """Marks the pixels whose value in some channel exceeds the smallest value of the file.

    Args:
      image: Deep image, opened by Pillow.
      again: The same file, opened once more.

    Returns:
      Marks [H, W] bool.
    """
    colors, _ = _values(image, again)
    return (colors > colors.min()).any(axis=-1)


def _values(image: Any, again: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the colors [H, W, C] as integers, and the opacity [H, W, 1] uint8 if there is one."""
    key = image.info.get("transparency")
    colors, alpha = _stored_values(image, again)
    if key is None or alpha is not None:
        return colors, alpha
    opaque = (colors != key).any(axis=-1, keepdims=True)
    # The transparent color is not a brightness, and often the largest number.
    return np.where(opaque, colors, 0), opaque * np.uint8(255)


def _stored_values(image: Any, again: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads colors and opacity as `_values` does, and keeps a transparent color as a color."""
    raw = _raw_mode(image)  # Pillow forgets it when it decodes
    if image.mode.startswith("I"):
        return _gray_values(_upright(image), raw)[..., None], None
    if (largest := _largest_of_ppm(image)) > 255:
        return _ppm_colors(again, largest), None
    low_bytes = _LOW_BYTES[raw]
    again.tile = [tile._replace(args=_with_raw_mode(tile.args, low_bytes)) for tile in again.tile]
    if raw == "LA;16B":
        both = _upright(again).astype(np.uint16)
        return both[..., :1] << 8 | both[..., 1:2], both[..., 2:3].astype(np.uint8)
    high, low = _upright(image), _upright(again)
    colors = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return colors, high[..., 3:] if raw.startswith("RGBA") else None


def _gray_values(values: np.ndarray, raw: str) -> np.ndarray:
    """Returns gray values without sign; raises ValueError for negative ones."""
    if raw == "I;32N":  # a TIFF of unsigned integers, whose bits Pillow keeps in signed ones
        values = values.view(np.uint32)
    if values.min() < 0:
        raise ValueError(
            f"it holds negative values, such as {values.min():,}; shift them to 0 or more"
        )
    return values


def _ppm_colors(image: Any, largest: int) -> np.ndarray:
    """Reads the values [H, W, 3] in [0, 65535] of a color PPM file as a gray file of triple width.

    Pillow keeps 16 bits of gray PPM files alone.
    """
    width, height = image.size
    (tile,) = image.tile
    image._mode, image._size = "I", (3 * width, height)
    image.tile = [tile._replace(extents=(0, 0, 3 * width, height), args=("I", largest))]
    return np.asarray(image).reshape(height, width, 3)


def _upright(image: Any) -> np.ndarray:
    """Decodes an image, turned as its EXIF orientation asks."""
    import PIL.ImageOps

    return np.asarray(PIL.ImageOps.exif_transpose(image))


def _raw_mode(image: Any) -> str:
    """Finds Pillow's name of the layout of the bytes of a file; '' if there is none."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _largest_of_ppm(image: Any) -> int:
    """Finds the largest possible value of a color PPM file that Pillow scales to 255; else 0."""
    scaled = image.format == "PPM" and image.mode == "RGB" and image.tile
    return image.tile[0].args[-1] if scaled and isinstance(image.tile[0].args, tuple) else 0


def _with_raw_mode(arguments: Any, raw: str) -> Any:
    """Replaces the raw mode in the arguments of one of Pillow's decoders."""
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
