import jax
import numpy as np
import pytest

from metajax.data.features import (
    FEATURIZERS,
    Featurizer,
    count_ngrams,
    count_words,
    encode_once,
    fit_featurizer,
    restore_featurizer,
)
from metajax.errors import DataError

TRAIN, OTHERS = ["my card is lost", "a lost card"], ["card abroad", ""]
SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "no"]


def test_ngrams_are_counts():
    featurizer = fit_featurizer("ngrams", TRAIN, size=64, longest=4)
    np.testing.assert_array_equal(featurizer.encode(OTHERS), count_ngrams(OTHERS, 64, 3, 4))
    assert not featurizer.about


def test_ngrams_go_with_words_and_are_weighted_by_the_training_texts_alone():
    featurizer = fit_featurizer("ngrams", TRAIN, size=64, word_bins=32, idf=True)
    counts = featurizer.encode(OTHERS)
    np.testing.assert_array_equal(counts[:, :64], count_ngrams(OTHERS, 64))
    np.testing.assert_array_equal(counts[:, 64:], count_words(OTHERS, 32))
    held = (featurizer.encode(TRAIN) > 0).sum(0)
    assert set(held) == {0, 1, 2}
    np.testing.assert_allclose(featurizer.about["weights"], np.log(3 / (1 + held)), rtol=1e-6)


def test_texts_are_encoded_once_in_an_order_of_their_own():
    asked = []

    def encode(texts):
        asked.append(list(texts))
        return np.array([[len(text), ord(text[0])] for text in texts])

    for texts in (["lost", "card", "a", "card"], ["card", "a", "lost"]):
        once = encode_once(Featurizer(encode, {"size": 2}), texts)
        assert once.about == {"size": 2}
        np.testing.assert_array_equal(
            once.encode(["card", "lost", "card"]), [[4, 99], [4, 108], [4, 99]]
        )
    assert asked == [["a", "card", "lost"]] * 2
    np.testing.assert_array_equal(once.encode(["card", "new"]), [[4, 99], [3, 110]])
    assert asked[2:] == [["card", "new"]]


def test_words_are_those_of_the_training_texts():
    featurizer = fit_featurizer("words", TRAIN, length=3)
    assert featurizer.about == {"vocabulary": 2 + 5}
    assert featurizer.encode(OTHERS).tolist() == [[2, 1, 0], [0, 0, 0]]
    fewer = fit_featurizer("words", TRAIN, most_words=1)
    assert fewer.about == {"vocabulary": 3}


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="ngrams"):
        fit_featurizer("ngram", TRAIN)
    with pytest.raises(TypeError, match="colour"):
        fit_featurizer("words", TRAIN, colour=1)


def test_descriptors_are_standardized_by_the_training_molecules():
    pytest.importorskip("rdkit")
    featurizer = fit_featurizer("fingerprints", SMILES, size=32, descriptors=True)
    values, valid, notes = featurizer.encode(SMILES)
    assert values["counts"].shape == (4, 32) and values["counts"].dtype == np.uint8
    assert valid.tolist() == [True, True, True, False] and len(notes) == 1
    kept = values["descriptors"][:3]
    np.testing.assert_allclose(kept.mean(0), 0, atol=1e-4)
    deviations = kept.std(0)
    np.testing.assert_allclose(deviations[deviations > 0.01], 1, rtol=1e-3)
    assert not values["descriptors"][3].any()
    assert np.abs(featurizer.encode(["C" * 60]).values["descriptors"]).max() == 5
    with pytest.raises(DataError, match="None of 1 training SMILES parses"):
        fit_featurizer("fingerprints", ["no"], descriptors=True)


def test_graphs_take_fingerprints_along():
    pytest.importorskip("rdkit")
    featurizer = fit_featurizer("graphs", SMILES, most_atoms=4, fingerprints=True, size=32)
    values, valid, notes = featurizer.encode(SMILES)
    assert sorted(values) == ["atoms", "bonds", "counts", "mask"]
    assert values["mask"].sum(1).tolist() == [3, 4, 4, 0] and valid.sum() == 3
    assert len(notes) == 2  # one of the SMILES, one of the size of benzene


def test_all_names_are_known():
    assert sorted(FEATURIZERS) == ["fingerprints", "frozen", "graphs", "ngrams", "tokens", "words"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ngrams", {"size": 64, "word_bins": 16, "idf": True}),
        ("ngrams", {"size": 64}),
        ("words", {"length": 3, "most_words": 4}),
        ("fingerprints", {"size": 16, "descriptors": True}),
        ("graphs", {"most_atoms": 4, "descriptors": True}),
    ],
)
def test_a_state_has_all_that_was_fitted(name, options):
    train, others = TRAIN, OTHERS
    if name in ("fingerprints", "graphs"):
        pytest.importorskip("rdkit")
        train, others = SMILES[:2], SMILES[2:]
    fitted = fit_featurizer(name, train, **options)
    again = restore_featurizer(name, fitted.state, **options)
    for found, expected in zip(
        jax.tree.leaves((again.encode(others), dict(again.about))),
        jax.tree.leaves((fitted.encode(others), dict(fitted.about))),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "state", "options", "message"),
    [
        ("ngrams", {}, {"idf": True}, "the state of the features ngrams is damaged"),
        ("ngrams", {"weights": np.ones(3)}, {"idf": True}, "has to be float32\\[4096\\]"),
        ("words", {"words": [1]}, {}, "not all words"),
        ("words", {"words": 7}, {}, "is damaged"),
        (
            "graphs",
            {"mean": np.zeros(43, "f4"), "deviation": np.zeros(43, "f4")},
            {"descriptors": True},
            "zero",
        ),
    ],
)
def test_a_state_that_is_damaged_is_refused(name, state, options, message):
    with pytest.raises(DataError, match=message):
        restore_featurizer(name, state, **options)
