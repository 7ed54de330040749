"""The lines of a text file, decoded one by one so that an error knows its line."""

import io
from collections.abc import Iterator
from typing import IO

from metajax.errors import DataError

MOST_BYTES = 2 * 2**30
"""Default limit of the bytes of a table."""

# Encodings whose lines end in other bytes than a line feed, with the bytes that begin such files.
_WIDE = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Lines:
    """Yields the lines of a file, with their line ends, and counts them.

    Attributes:
      source: Name of the file in messages.
      count: Number of lines yielded so far.
    """

    def __init__(self, file: IO[bytes], source: str, encoding: str, most_bytes: int):
        """Keeps the file; nothing is read yet.

        Args:
          file: File, opened for bytes.
          source: Name of the file in messages.
          encoding: Encoding of its text; a byte order mark of UTF-8 is left out.
          most_bytes: Limit of its bytes.
        """
        self.source, self.count = source, 0
        self._file, self._encoding, self._most, self._size = file, encoding, most_bytes, 0

    def __iter__(self) -> Iterator[str]:
        """Yields the lines; raises DataError at the first that cannot be decoded, or is one too many."""
        try:
            for line in self._text():
                self.count += 1
                self._size += len(line)
                if self._size > self._most:
                    raise DataError(
                        f"{self.source} has more than {self._most / 2**30:.3g} GiB of text; raise "
                        "most_bytes, or convert it to Parquet, of which only the columns in use are read."
                    )
                yield line
        except UnicodeDecodeError as error:
            found = error.object[error.start : error.start + 1].hex()
            raise DataError(
                f"Line {self.count + 1:,} of {self.source} is not {self._encoding}: byte 0x{found} at column "
                f"{error.start + 1}; give its encoding, such as latin-1, cp1252 or utf-16."
            ) from error

    def _text(self) -> Iterator[str]:
        """Decodes the lines; the first loses its byte order mark."""
        try:
            end = "\n".encode(self._encoding)
        except LookupError:
            raise DataError(
                f"'{self._encoding}' is no encoding; use one such as utf-8, latin-1 or cp1252."
            ) from None
        if len(end) > 1:  # bytes cannot be divided into lines before they are decoded
            decoded = io.TextIOWrapper(self._file, self._encoding, newline="")
            try:
                yield from decoded
            finally:
                decoded.detach()  # the caller closes the file
            return
        first = self._file.readline()
        if first[:2] in _WIDE and self._encoding.lower().replace("-", "") == "utf8":
            raise DataError(
                f"{self.source} is {_WIDE[first[:2]]}, not utf-8; give encoding='utf-16'."
            )
        yield first.removeprefix(b"\xef\xbb\xbf").decode(self._encoding)
        for line in self._file:
            yield line.decode(self._encoding)
