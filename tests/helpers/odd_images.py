"""Image files that Pillow does not write: 16-bit PNG in colour or with alpha, and TIFF of any integers."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels


def png16(path: Path, pixels: np.ndarray, *, key: Sequence[int] = ()) -> None:
    """Writes pixels [H, W, C] as a PNG of 16 bits per channel: grey, grey with alpha, RGB or RGBA.

    Args:
      path: The file.
      pixels: Integers in [0, 65535].
      key: The colour that stands for transparency, C integers; empty for none.
    """
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    transparent = [(b"tRNS", struct.pack(f">{channels}H", *key))] if key else []
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    _make(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def tiff(path: Path, pixels: np.ndarray, *, planes: int = 1) -> None:
    """Writes integers [H, W, C] as an uncompressed little-endian TIFF, C being 1 or 3.

    Args:
      path: The file.
      pixels: Of any number type.
      planes: 1, or 2 for C channels that lie one after another, each in a strip of its own.
    """
    height, width, channels = pixels.shape
    pixels = np.moveaxis(pixels, -1, 0) if planes == 2 else pixels
    strips = channels if planes == 2 else 1
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    start = 8 + 2 + 12 * 11 + 4
    lists = [[8 * pixels.dtype.itemsize] * channels, [kind] * channels]
    short, long = 3, 4
    # A list of one is in its field; longer ones lie before the pixels.
    places = start + 4 * channels
    first = places + (8 * strips if strips > 1 else 0)
    sizes = [len(data) // strips] * strips
    offsets = [first + number * sizes[0] for number in range(strips)]
    in_lists = [*offsets, *sizes] if strips > 1 else []
    fields = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, channels, lists[0][0] if channels == 1 else start),
        (259, short, 1, 1),  # uncompressed
        (262, short, 1, 1 if channels == 1 else 2),
        (273, long, strips, first if strips == 1 else places),
        (277, short, 1, channels),
        (278, short, 1, height),
        (279, long, strips, len(data) if strips == 1 else places + 4 * strips),
        (284, short, 1, planes),
        (339, short, channels, lists[1][0] if channels == 1 else start + 2 * channels),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", *field) for field in fields
    )
    values = struct.pack(f"<{2 * channels}H", *lists[0], *lists[1])
    values += struct.pack(f"<{len(in_lists)}I", *in_lists)
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    _make(path).write_bytes(head + values + data)


def _make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
