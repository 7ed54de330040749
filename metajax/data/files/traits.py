"""Common traits of the files of a folder, which decide the way to decode each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metajax.data.files import decoding, depth
from metajax.errors import DataError


class Traits(NamedTuple):
    """Counts over the files of a data set.

    Attributes:
      files: Number of files.
      side: Height and width that suit them all, see `decoding.native_size`.
      gray: Number of files with one channel.
      oblong: Number of files that are not square.
      deep: Number of files with more than 8 bits per channel.
      highest: Largest value in deep files; 0 without any.
      faint: Number of deep files that hold several values, all of them in the darkest gray level.
      least_bits: Fewest bits per channel that are assumed of deep files.
    """

    files: int
    side: int
    gray: int
    oblong: int
    deep: int = 0
    highest: int = 0
    faint: int = 0
    least_bits: int = depth.BITS[0]

    @property
    def channels(self) -> int:
        """Number of channels: 1 if all files are gray, else 3."""
        return 1 if self.gray == self.files else 3

    @property
    def bits(self) -> int | None:
        """Bits per channel that are assumed of deep files; None without any."""
        return max(depth.bits_for(self.highest), self.least_bits) if self.deep else None


def inspect(files: Sequence[Path], *, least_bits: int = depth.BITS[0]) -> Traits:
    """Reads the header of each file, and the pixels of those with more than 8 bits per channel.

    Args:
      files: Paths of one or more image files.
      least_bits: Fewest bits per channel that are assumed of files with more than 8.

    Returns:
      The traits of the files.

    Raises:
      DataError: If there is no file, or a file is broken or holds negative values.
    """
    if not files:
        raise DataError("there is no image; give one or more files")
    headers = [decoding.header(file) for file in files]
    deep = [file for file, header in zip(files, headers, strict=True) if header.deep]
    extremes = decoding.in_threads(decoding.extremes, deep)
    highest = max((found.high for found in extremes), default=0)
    bits = max(depth.bits_for(highest), least_bits)
    return Traits(
        files=len(files),
        side=decoding.native_size(header.size for header in headers),
        gray=sum(header.gray for header in headers),
        oblong=sum(header.size[0] != header.size[1] for header in headers),
        deep=len(deep),
        highest=highest,
        faint=sum(depth.is_faint(found, bits) for found in extremes),
        least_bits=least_bits,
    )


def notes(found: Traits, *, channels: int, fit: str) -> tuple[str, ...]:
    """Describes the changes that decoding makes to files.

    Args:
      found: Traits of the files.
      channels: Number of channels of the decoded images, 1 or 3.
      fit: One of `decoding.FITS`.

    Returns:
      Lines for people.

    Example:
      >>> from metajax.data.files import traits
      >>> found = traits.Traits(files=3, side=28, gray=3, oblong=2)
      >>> traits.notes(found, channels=1, fit="crop")
      ('2 of 3 files not square: the middle square of each is kept',)
    """
    lines = []
    colored = found.files - found.gray
    if channels == 1 and colored:
        lines.append(f"colour becomes grey in {_share(colored, found.files)}")
    if channels == 3 and found.gray:
        lines.append(f"grey becomes three equal channels in {_share(found.gray, found.files)}")
    if found.oblong:
        lines.append(f"{_share(found.oblong, found.files)} not square: {FITTED[fit]}")
    top = 2 ** (found.bits or 8) - 1
    if found.deep:
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
    """Writes a number of files as a share of all."""
    if part < whole:
        return f"{part:,} of {whole:,} files"
    return f"all {whole:,} files" if whole > 1 else "the only file"


FITTED = {
    "crop": "the middle square of each is kept",
    "pad": "each is padded to a square by its mean colour",
    "stretch": "each is stretched to a square",
}
"""Description of each of `decoding.FITS`."""
