"""Measures the texts per second that are encoded on the host: n-grams, words, and a frozen MiniLM.

    python -m benchmarks.texts
    python -m benchmarks.texts --texts=2000 --encodings=ngrams,sentences

The texts are made up of random words, as long as questions to a bank: 12 words of 2 to 6 letters. The
encodings take turns, and the command prints medians of the rounds. Encoders that are not installed are left
out and named.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import options as shared
from experiments.reports import report
from metajax.data.features import Vocabulary, count_ngrams, count_words, sentences, word_ids

_LETTERS = "etaoinshrdlu"
_VOCABULARY, _WORDS = 2000, 12  # different words, and words of a text


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Makes up texts of random words of 2 to 6 letters.

    Args:
      count: Number of texts.
      seed: Seed of the words.

    Returns:
      Texts.
    """
    rng = np.random.default_rng(seed)
    letters = np.array(list(_LETTERS))
    words = ["".join(rng.choice(letters, rng.integers(2, 7))) for _ in range(_VOCABULARY)]
    return [" ".join(rng.choice(words, _WORDS)) for _ in range(count)]


def _ngrams(texts: Sequence[str]) -> Callable[[], Any]:
    return functools.partial(count_ngrams, texts)


def _words(texts: Sequence[str]) -> Callable[[], Any]:
    return functools.partial(count_words, texts)


def _ids(texts: Sequence[str]) -> Callable[[], Any]:
    return functools.partial(word_ids, texts, Vocabulary.of_texts(texts))


def _tokens(texts: Sequence[str]) -> Callable[[], Any]:
    return functools.partial(sentences.sentence_tokens, sentences.load_encoder(), texts)


def _sentences(texts: Sequence[str]) -> Callable[[], Any]:
    return functools.partial(sentences.compute_vectors, texts, sentences.load_encoder(), length=64)


ENCODINGS: Mapping[str, Callable[[Sequence[str]], Callable[[], Any]]] = {
    "ngrams": _ngrams,
    "words": _words,
    "ids": _ids,
    "tokens": _tokens,
    "sentences": _sentences,
}
"""Functions from texts to a function that encodes them, by name; some raise ImportError."""


def measure(
    texts: Sequence[str], names: Sequence[str] = tuple(ENCODINGS), *, rounds: int = 3
) -> tuple[dict[str, list[float]], list[str]]:
    """Measures the texts per second of encodings, which take turns.

    Args:
      texts: Texts.
      names: Keys of `ENCODINGS`.
      rounds: Number of rounds, after one that compiles.

    Returns:
      Texts per second of each round by name, and lines about encodings that are not installed.
    """
    work, notes = {}, []
    for name in names:
        try:
            work[name] = ENCODINGS[name](texts)
            work[name]()  # compiles
        except ImportError as error:
            work.pop(name, None)
            notes.append(f"{name}: {error}")
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, encode in work.items():
            start = time.perf_counter()
            encode()
            rates[name].append(len(texts) / (time.perf_counter() - start))
    return rates, notes


def rows(rates: Mapping[str, Sequence[float]], notes: Sequence[str]) -> list[tuple[str, str]]:
    """Formats the measurements.

    Args:
      rates: Texts per second of each round by name.
      notes: Lines about encodings that are not installed.

    Returns:
      Pairs of name and text for `report.table`.
    """
    found = []
    for name, each in rates.items():
        slow, median, fast = (f(each) for f in (min, statistics.median, max))
        found.append((name, f"{median:,.0f} texts/s ({slow:,.0f} to {fast:,.0f})"))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    return [*found, *(("left out", note) for note in notes), ("versions", versions)]


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Options.
    """
    parser = shared.Parser("benchmarks.texts", __doc__ or "")
    whole = shared.positive(int)
    parser.add_argument("--texts", type=whole, default=1000, help="number of texts [1000]")
    parser.add_argument("--rounds", type=whole, default=3, help="rounds of measurements [3]")
    parser.add_argument(
        "--encodings",
        type=functools.partial(shared.names, known=ENCODINGS),
        default=tuple(ENCODINGS),
        help=f"encodings with commas between them [{','.join(ENCODINGS)}]",
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    rates, notes = measure(make_texts(options.texts), options.encodings, rounds=options.rounds)
    print(report.table(rows(rates, notes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
