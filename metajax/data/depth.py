"""Image files with more than 8 bits per channel, and how their values become 8 bits.

Such a file does not say how many of its bits are used: cameras, scanners and microscopes write 10, 12 or 14
bits into files of 16. The largest value of a whole data set decides, so that its images stay comparable. Its
files of 8 bits are read as they are.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

BITS = (8, 10, 12, 14, *range(16, 33))
"""What data sets are taken to have: what sensors give, and beyond 16 every number."""

# Pillow reads colour of 16 bits as its high bytes. With the second raw mode it gives the low bytes; of grey
# with alpha, the high and low byte of each as four channels.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in _OTHER_ORDER.items()
}
_LOW_BYTES["LA;16B"] = "RGBA"


_BITS, _CHANNELS, _PLANES = 258, 277, 284  # tags of TIFF


class Extremes(NamedTuple):
    """The smallest and the largest value in a file, of its colours and not its transparency."""

    low: int
    high: int


def is_deep(image: Any) -> bool:
    """Whether an image, opened by Pillow and not yet decoded, has integers of more than 8 bits."""
    deep_raw = _raw_mode(image) in _LOW_BYTES
    return image.mode.startswith("I") or deep_raw or _largest_of_ppm(image) > 255


def check(image: Any) -> None:
    """Raises ValueError if an image, opened by Pillow and not yet decoded, has pixels that cannot be read."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})  # of TIFF
    separate = tags.get(_PLANES) == 2 and tags.get(_CHANNELS, 1) > 1
    if separate and max(tags.get(_BITS, (1,))) > 8:
        raise ValueError(
            "its colours of more than 8 bits lie in separate planes; save it with its channels interleaved"
        )


def is_grey(image: Any) -> bool:
    """Whether an image, opened by Pillow and not yet decoded, has one channel beside transparency."""
    return image.mode in ("1", "L", "LA") or image.mode[0] == "I" or _raw_mode(image) == "LA;16B"


def bits_for(highest: int) -> int:
    """The smallest of BITS whose range holds a value."""
    return next(bits for bits in BITS if highest < 2**bits)


def is_faint(extremes: Extremes, bits: int) -> bool:
    """Whether a file that is not constant has all its values within the darkest grey level."""
    return extremes.low < extremes.high and extremes.high >> (bits - 8) == 0


def extremes(image: Any, again: Any) -> Extremes:
    """Looks at all values of a deep image; the arguments are those of `eight_bits`."""
    colours, _ = _values(image, again)
    return Extremes(int(colours.min()), int(colours.max()))


def eight_bits(image: Any, again: Any, bits: int) -> np.ndarray:
    """Maps [0, 2**bits - 1] to [0, 255], by leaving out the lowest bits.

    Args:
      image: A deep image, opened by Pillow.
      again: The same file opened once more.
      bits: What its data set has, 8 to 32; larger values become 255.

    Returns:
      [H, W] or [H, W, 2, 3 or 4] uint8, grey or colours, with what they are opaque by, if any.

    Raises:
      ValueError: A value is negative.
    """
    colours, alpha = _values(image, again)
    levels = np.minimum(colours >> (bits - 8), 255).astype(np.uint8)
    if alpha is not None:
        return np.concatenate([levels, alpha], axis=-1)
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def above_the_darkest(image: Any, again: Any) -> np.ndarray:
    """Marks the pixels [H, W] bool of which a channel exceeds the file's smallest value.

    The arguments are those of `eight_bits`.
    """
    colours, _ = _values(image, again)
    return (colours > colours.min()).any(axis=-1)


def _values(image: Any, again: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Integers of the colours [H, W, C], and transparency [H, W, 1] uint8 if there is one."""
    key = image.info.get("transparency")
    colours, alpha = _stored_values(image, again)
    if key is None or alpha is not None:
        return colours, alpha
    opaque = (colours != key).any(axis=-1, keepdims=True)
    # The key is no brightness, and often the largest number.
    return np.where(opaque, colours, 0), opaque * np.uint8(255)


def _stored_values(image: Any, again: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """What `_values` returns, without regard to one colour that stands for transparency."""
    raw = _raw_mode(image)  # gone once it is decoded
    if image.mode.startswith("I"):
        return _grey_values(_upright(image), raw)[..., None], None
    if (largest := _largest_of_ppm(image)) > 255:
        return _ppm_colours(again, largest), None
    low_bytes = _LOW_BYTES[raw]
    again.tile = [tile._replace(args=_with_raw_mode(tile.args, low_bytes)) for tile in again.tile]
    if raw == "LA;16B":
        both = _upright(again).astype(np.uint16)
        return both[..., :1] << 8 | both[..., 1:2], both[..., 2:3].astype(np.uint8)
    high, low = _upright(image), _upright(again)
    colours = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return colours, high[..., 3:] if raw.startswith("RGBA") else None


def _grey_values(values: np.ndarray, raw: str) -> np.ndarray:
    if raw == "I;32N":  # TIFF without a sign; Pillow keeps its bits.
        values = values.view(np.uint32)
    if values.min() < 0:
        raise ValueError(
            f"it holds negative values, such as {values.min():,}; shift them to 0 or more"
        )
    return values


def _ppm_colours(image: Any, largest: int) -> np.ndarray:
    """Values [H, W, 3] in [0, 65535] of a PPM file, which Pillow keeps only of grey."""
    width, height = image.size
    (tile,) = image.tile
    image._mode, image._size = "I", (3 * width, height)
    image.tile = [tile._replace(extents=(0, 0, 3 * width, height), args=("I", largest))]
    return np.asarray(image).reshape(height, width, 3)


def _upright(image: Any) -> np.ndarray:
    import PIL.ImageOps

    return np.asarray(PIL.ImageOps.exif_transpose(image))


def _raw_mode(image: Any) -> str:
    """How the file's bytes make pixels, as Pillow calls it; '' where it does not say."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _largest_of_ppm(image: Any) -> int:
    """The largest value that a PPM file in colour may hold, where Pillow scales it to 255; else 0."""
    scaled = image.format == "PPM" and image.mode == "RGB" and image.tile
    return image.tile[0].args[-1] if scaled and isinstance(image.tile[0].args, tuple) else 0


def _with_raw_mode(arguments: Any, raw: str) -> Any:
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
