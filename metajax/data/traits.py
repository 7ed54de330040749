"""What the files of a folder are like together, which decides how each is decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metajax.data import decoding, depth
from metajax.data.images import DataError


class Traits(NamedTuple):
    """The files of a data set, counted.

    Attributes:
      files: How many there are.
      side: Height and width that suit them all, as of `decoding.native_size`.
      grey: How many have one channel.
      oblong: How many are not square.
      deep: How many have more than 8 bits per channel.
      highest: The largest value in those, 0 if there are none.
      faint: How many of those hold several values, all of them within the darkest grey level.
      least_bits: Fewest bits that files with more than 8 are taken to have.
    """

    files: int
    side: int
    grey: int
    oblong: int
    deep: int = 0
    highest: int = 0
    faint: int = 0
    least_bits: int = depth.BITS[0]

    @property
    def channels(self) -> int:
        """1 if all files are grey, else 3."""
        return 1 if self.grey == self.files else 3

    @property
    def bits(self) -> int | None:
        """What the files with more than 8 bits are taken to have; None if there are none."""
        return max(depth.bits_for(self.highest), self.least_bits) if self.deep else None


def inspect(files: Sequence[Path], *, least_bits: int = depth.BITS[0]) -> Traits:
    """Reads the header of each file, and the pixels of those with more than 8 bits per channel.

    Args:
      files: One or more image files.
      least_bits: As in the result.

    Raises:
      DataError: A file is broken, or holds negative values.
    """
    if not files:
        raise DataError("there is no image to look at")
    headers = [decoding.header(file) for file in files]
    deep = [file for file, header in zip(files, headers, strict=True) if header.deep]
    extremes = decoding.in_threads(decoding.extremes, deep)
    highest = max((found.high for found in extremes), default=0)
    bits = max(depth.bits_for(highest), least_bits)
    return Traits(
        files=len(files),
        side=decoding.native_size(header.size for header in headers),
        grey=sum(header.grey for header in headers),
        oblong=sum(header.size[0] != header.size[1] for header in headers),
        deep=len(deep),
        highest=highest,
        faint=sum(depth.is_faint(found, bits) for found in extremes),
        least_bits=least_bits,
    )


def notes(found: Traits, *, channels: int, fit: str) -> tuple[str, ...]:
    """Lines for people on what becomes of files like these.

    Args:
      found: The files.
      channels: 1 or 3, what they are decoded to.
      fit: One of `decoding.FITS`.
    """
    lines = []
    coloured = found.files - found.grey
    if channels == 1 and coloured:
        lines.append(f"colour becomes grey in {_share(coloured, found.files)}")
    if channels == 3 and found.grey:
        lines.append(f"grey becomes three equal channels in {_share(found.grey, found.files)}")
    if found.oblong:
        lines.append(f"{_share(found.oblong, found.files)} not square: {FITTED[fit]}")
    if found.deep:
        top = 2**found.bits - 1
        lines.append(
            f"more than 8 bits in {_share(found.deep, found.files)}, with values up to {found.highest:,}: "
            f"0 to {top:,} becomes 0 to 255"
        )
    if found.faint:
        lines.append(
            f"{_share(found.faint, found.files)} darker than one grey level of 0 to {top:,}: at most two "
            "levels are left of each"
        )
    return tuple(lines)


def _share(part: int, whole: int) -> str:
    if part < whole:
        return f"{part:,} of {whole:,} files"
    return f"all {whole:,} files" if whole > 1 else "the only file"


FITTED = {
    "crop": "the middle square of each is kept",
    "pad": "each is padded to a square by its mean colour",
    "stretch": "each is stretched to a square",
}
"""What each of `decoding.FITS` does, in words."""
