import zlib

import numpy as np
import pytest

from metajax.data.features.ngrams import count_ngrams
from metajax.errors import DataError

TEXTS = [
    "Where is my card?",
    "",
    "a",
    "ab",
    "naïve 中文 \U0001f600 z",
    "\ud800abc",
    "İstanbul",
    "x" * 700,
]


def by_hand(text, size, shortest, longest):
    """Counts as the definition has them, one n-gram after the other."""
    counts, text = np.zeros(size, int), f" {text.lower()} "
    for length in range(shortest, longest + 1):
        for at in range(len(text) - length + 1):
            gram = text[at : at + length].encode("utf-8", "surrogatepass")
            counts[zlib.crc32(gram) % size] += 1
    return np.minimum(counts, 255)


@pytest.mark.parametrize(("size", "shortest", "longest"), [(4096, 3, 5), (97, 1, 2), (1, 3, 3)])
def test_counts_are_those_of_zlib(size, shortest, longest):
    found = count_ngrams(TEXTS, size, shortest, longest)
    assert found.dtype == np.uint8 and found.shape == (len(TEXTS), size)
    want = [by_hand(text, size, shortest, longest) for text in TEXTS]
    np.testing.assert_array_equal(found, want)
    assert found[-1].max() == 255  # saturated


def test_a_text_has_its_counts_whatever_is_next_to_it():
    many = [f"text {number} of many" for number in range(300)]
    together = count_ngrams(many, 64)
    np.testing.assert_array_equal(
        together[[0, 127, 128, 299]],
        [count_ngrams([many[row]], 64)[0] for row in (0, 127, 128, 299)],
    )
    assert count_ngrams([], 64).shape == (0, 64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": "one text"}, DataError, "one string, 'one text'; use a list"),
        ({"texts": ["a", None]}, DataError, "Text 1 is None of type NoneType"),
        ({"texts": ["a"], "size": 0}, ValueError, "size is 0"),
        ({"texts": ["a"], "shortest": 4, "longest": 3}, ValueError, "have 4 to 3 characters"),
    ],
)
def test_errors_name_the_value(options, error, message):
    with pytest.raises(error, match=message):
        count_ngrams(**options)
