"""Counts of hashed character n-grams: features of text that need no files and no training."""

from collections.abc import Iterator, Sequence

import numpy as np

from metajax.errors import DataError

_CHUNK = 128  # texts whose counts are made at once: their bins stay in the cache of the processor
_MOST_BYTES = 4  # of a character in UTF-8


def count_ngrams(
    texts: Sequence[str], size: int = 4096, shortest: int = 3, longest: int = 5
) -> np.ndarray:
    """Counts the character n-grams of texts in hashed bins.

    A text is put in lower case between two spaces, so that n-grams know where a word begins. The bin of an
    n-gram is the CRC-32 of its UTF-8 bytes modulo `size`: the same on every machine and in every process.

    Args:
      texts: Texts [M].
      size: Number of bins.
      shortest: Fewest characters of an n-gram.
      longest: Most characters of an n-gram.

    Returns:
      Counts, uint8 [M, size]; 255 stands for 255 or more. A text shorter than the n-grams has none.

    Raises:
      ValueError: If `size` or `shortest` is below 1, or `longest` is below `shortest`.
      DataError: If a text is not a str.

    Example:
      >>> counts = count_ngrams(["banana"], shortest=3, longest=3)
      >>> int(counts.sum()), int(counts.max())  # " ba", "ban", "ana" twice, "nan", "na "
      (6, 2)
    """
    if size < 1 or not 1 <= shortest <= longest:
        raise ValueError(
            f"size is {size} and n-grams have {shortest} to {longest} characters; use 1 or more, and the "
            "fewest first."
        )
    check_texts(texts)
    counts = np.zeros((len(texts), size), np.uint8)
    for begin in range(0, len(texts), _CHUNK):
        padded = [f" {text.lower()} " for text in texts[begin : begin + _CHUNK]]
        lengths = np.fromiter(map(len, padded), np.int64, len(padded))
        owners = np.repeat(np.arange(len(padded)), lengths)
        # Characters from here to the end of the text.
        room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(owners))
        bins = np.zeros(len(padded) * size, np.uint32)
        for length, hashes in _hashes("".join(padded), longest):
            if length >= shortest:
                fits = room >= length
                np.add.at(bins, owners[fits] * size + hashes[fits] % size, np.uint32(1))
        counts[begin : begin + _CHUNK] = np.minimum(bins, 255).reshape(-1, size)
    return counts


def inverse_frequencies(counts: np.ndarray) -> np.ndarray:
    """Computes the weight of each n-gram or word from the number of training texts that have it.

    Args:
      counts: Counts of training texts [M, D].

    Returns:
      Weights log((M + 1) / (m + 1)), float32 [D], where m of the M texts have the n-gram: 0 for what all
      texts have, and most for what none has.

    Example:
      >>> inverse_frequencies(np.array([[1, 0], [3, 0], [1, 1]])).round(2).tolist()
      [0.0, 0.6899999976158142]

    Reference: Spaerck Jones, 1972, A statistical interpretation of term specificity and its application in
    retrieval (https://doi.org/10.1108/eb026526).
    """
    held = np.count_nonzero(counts, axis=0)
    return np.log((len(counts) + 1) / (held + 1)).astype(np.float32)


def check_texts(texts: Sequence[str]) -> None:
    """Raises an error unless all texts are strings.

    Args:
      texts: Texts [M].

    Raises:
      DataError: If one is not, or all of them are one string.

    Example:
      >>> check_texts(["a text", ""])
    """
    if isinstance(texts, str):
        raise DataError(f"The texts are one string, {texts[:20]!r}; use a list of strings.")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"Text {row} is {text!r} of type {type(text).__name__}; make it a str, or drop the row."
            )


def _hashes(text: str, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields n and the CRC-32 of the n characters from each position, [len(text)] int64, for n from 1 on.

    The CRC of n + 1 characters continues that of n, so all lengths cost as much as the longest alone.
    Characters beyond the end are zeros; the caller leaves these n-grams out.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    octets, widths = _utf8(codes)
    state = np.full(len(codes), 0xFFFFFFFF, np.uint32)
    for length in range(1, longest + 1):
        shift = length - 1
        for index in range(int(widths.max(initial=1))):
            octet, width = _shifted(octets[index], shift), _shifted(widths, shift)
            stepped = _TABLE[(state ^ octet) & 0xFF] ^ (state >> 8)
            state = stepped if index == 0 else np.where(width > index, stepped, state)
        yield length, (state ^ np.uint32(0xFFFFFFFF)).astype(np.int64)


def _utf8(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes code points [n] in UTF-8: octets [4, n], of which the first `widths` [n] count."""
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    octets = np.zeros((_MOST_BYTES, len(codes)), np.uint32)
    lead = np.array([0, 0, 0xC0, 0xE0, 0xF0], np.uint32)
    for width in range(1, _MOST_BYTES + 1):
        of_width = widths == width
        if of_width.any():
            chosen = codes[of_width]
            for index in range(width):
                bits = chosen >> np.uint32(6 * (width - 1 - index))
                octet = (bits & 0x3F) | 0x80 if index else bits | lead[width]
                octets[index, of_width] = octet
    return octets, widths


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    """Moves values [n] to the front by some places, with zeros at the end."""
    return np.concatenate([values[by:], np.zeros(min(by, len(values)), values.dtype)])


def _crc_table() -> np.ndarray:
    """Makes the table of the reflected polynomial of CRC-32, [256] uint32."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1)
    return table


_TABLE = _crc_table()
