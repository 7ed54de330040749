"""Featurizers by name: what turns the texts or molecules of a table into the arrays that a network reads.

A featurizer is fitted to training texts, because vocabularies and statistics must not see the others, and
holds what its network has to know, such as the size of the vocabulary.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from metajax.data.features import molecules, ngrams, sentences, words
from metajax.data.tables.packing import cached
from metajax.errors import DataError
from metajax.names import find, shown

_FARTHEST = 5.0  # standard deviations; what is farther from the mean would rule the others


class Featurizer(NamedTuple):
    """A function of texts, with what its network has to know.

    Attributes:
      encode: Function texts [M] -> array, or dict of arrays, [M, ...]; for molecules it returns `Molecules`,
        which marks those that do not parse.
      about: Arguments of the network that depend on the data, for `metajax.zoo.build_row_model`.
      state: Statistics of the training texts, arrays or tuples of words by name, for `restore_featurizer`.
      version: Text of what the features depend on besides texts and options, such as the version of a
        library; a part of the key of whatever keeps them.

    Example:
      >>> featurizer = Featurizer(lambda texts: np.array([[len(text)] for text in texts]))
      >>> featurizer.encode(["card"]).tolist()
      [[4]]
    """

    encode: Callable[[Sequence[str]], Any]
    about: Mapping[str, Any] = MappingProxyType({})
    state: Mapping[str, Any] = MappingProxyType({})
    version: str = ""


class _State(dict):
    """A state in the place of the training texts that it was found in."""


def fit_featurizer(name: str, train: Sequence[str], **options: Any) -> Featurizer:
    """Fits the featurizer of a name to training texts.

    Args:
      name: A key of `FEATURIZERS`.
      train: Texts or SMILES of the training rows.
      **options: Options of the featurizer.

    Returns:
      The featurizer.

    Raises:
      ValueError: If the name is unknown, or an option is out of range.
      ImportError: If it needs a package that is missing.
      DataError: If the texts do not fit.

    Example:
      >>> featurizer = fit_featurizer("words", ["a card", "a lost card"], length=4)
      >>> featurizer.encode(["lost a card"]).tolist(), featurizer.about["vocabulary"]
      ([[4, 2, 3, 0]], 5)
    """
    return find("featurizer", name, FEATURIZERS)(train, **options)


def restore_featurizer(name: str, state: Mapping[str, Any], **options: Any) -> Featurizer:
    """Makes a featurizer again without its training texts.

    Args:
      name: A key of `FEATURIZERS`.
      state: State of the fitted featurizer.
      **options: The options that it was fitted with.

    Returns:
      A featurizer with the same features. Where the fitted one starts its network from vectors of words,
      this one has zeros in their place.

    Raises:
      ValueError: If the name is unknown, or an option is out of range.
      ImportError: If it needs a package that is missing.
      DataError: If the state is not one of such a featurizer, or the installed encoder is another one.

    Example:
      >>> from metajax.data.features import fit_featurizer
      >>> fitted = fit_featurizer("words", ["a card", "a lost card"], length=4)
      >>> restore_featurizer("words", fitted.state, length=4).encode(["lost a card"]).tolist()
      [[4, 2, 3, 0]]
    """
    try:
        return find("featurizer", name, FEATURIZERS)(_State(state), **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the state of the features {name} is damaged: {shown(error)}") from error


def encode_once(featurizer: Featurizer, texts: Iterable[str]) -> Featurizer:
    """Encodes texts now, each once and in one order, so that the cache serves every division of them.

    Args:
      featurizer: Featurizer whose features are one array.
      texts: Texts; they may repeat.

    Returns:
      A featurizer with the same features, which looks these texts up.

    Example:
      >>> from metajax.data.features.featurizers import Featurizer
      >>> lengths = Featurizer(lambda texts: np.array([[len(text)] for text in texts]))
      >>> encode_once(lengths, ["card", "a", "card"]).encode(["card", "lost"]).tolist()
      [[4], [4]]
    """
    known = sorted(set(texts))
    features, places = featurizer.encode(known), {text: row for row, text in enumerate(known)}

    def encode(asked: Sequence[str]) -> Any:
        if not all(text in places for text in asked):
            return featurizer.encode(asked)
        return features[[places[text] for text in asked]]

    return featurizer._replace(encode=encode)


def _ngrams(
    train: Sequence[str] | _State,
    *,
    size: int = 4096,
    shortest: int = 3,
    longest: int = 5,
    word_bins: int = 0,
    idf: bool = False,
) -> Featurizer:
    """Makes counts of character n-grams, if asked with counts of words and with a weight of each."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        counts = ngrams.count_ngrams(texts, size, shortest, longest)
        if not word_bins:
            return counts
        return np.concatenate([counts, words.count_words(texts, word_bins)], axis=1)

    if not idf:
        return Featurizer(encode)
    if isinstance(train, _State):
        state = {"weights": _array(train, "weights", size + word_bins)}
    else:
        state = {"weights": ngrams.inverse_frequencies(encode(train))}
    return Featurizer(encode, state, state)


def _words(
    train: Sequence[str] | _State,
    *,
    most_words: int = 30_000,
    length: int = 40,
    glove: bool = False,
) -> Featurizer:
    """Makes ids of words of the training texts, if asked with vectors to start from."""
    if isinstance(train, _State):
        vocabulary = words.Vocabulary(_words_of(train))
    else:
        vocabulary = words.Vocabulary.of_texts(train, most=most_words)
        if glove:
            vocabulary = words.add_glove_words(vocabulary, most=most_words)
    about: dict[str, Any] = {"vocabulary": vocabulary.size}
    if glove and isinstance(train, _State):
        about["vectors"] = np.zeros((vocabulary.size, words.GLOVE_WIDTH), np.float32)
    elif glove:
        about["vectors"] = words.glove_vectors(vocabulary).vectors
    encode = functools.partial(words.word_ids, vocabulary=vocabulary, length=length)
    return Featurizer(encode, about, {"words": vocabulary.words})


def _tokens(
    train: Sequence[str] | _State, *, length: int = 64, encoder_dir: str | None = None
) -> Featurizer:
    """Makes the tokens of a pre-trained encoder, and its weights for the network."""
    encoder = _encoder(train, encoder_dir)
    return Featurizer(
        functools.partial(sentences.sentence_tokens, encoder, length=length),
        {"pretrained": encoder.params, "sizes": encoder.sizes},
        _hashes(encoder),
    )


def _frozen(
    train: Sequence[str] | _State, *, length: int = 64, encoder_dir: str | None = None
) -> Featurizer:
    """Makes the vectors of a frozen pre-trained encoder; the cache keeps vectors of training."""
    encoder, state = _encoder(train, encoder_dir), isinstance(train, _State)
    vectors = sentences.compute_vectors if state else sentences.sentence_vectors
    return Featurizer(
        functools.partial(vectors, encoder=encoder, length=length), state=_hashes(encoder)
    )


def _encoder(train: Sequence[str] | _State, encoder_dir: str | None) -> sentences.SentenceEncoder:
    """Reads the encoder, which has to be the one of the state."""
    if not isinstance(train, _State):
        return sentences.load_encoder(encoder_dir)
    encoder = sentences.load_encoder(encoder_dir, sha256=str(train["sha256"]))
    if _hashes(encoder) != dict(train):
        raise DataError(
            "the tokenizer of the installed sentence encoder is not the one of the training; install the "
            "package of that version."
        )
    return encoder


def _hashes(encoder: sentences.SentenceEncoder) -> dict[str, str]:
    """Names the files of an encoder by their hashes."""
    tokenizer = hashlib.sha256(encoder.tokenizer.encode()).hexdigest()
    return {"sha256": encoder.sha256, "tokenizer_sha256": tokenizer}


def _fingerprints(
    train: Sequence[str] | _State, *, radius: int = 2, size: int = 2048, descriptors: bool = False
) -> Featurizer:
    """Makes counts of fragments, if asked with descriptors standardized by the training molecules."""
    counts = functools.partial(molecules.morgan_counts, radius=radius, size=size)
    version = molecules.features_version()
    if not descriptors:
        return Featurizer(counts, version=version)
    state, standard = _standardized(train)
    both = _joined({"counts": counts, "descriptors": standard})
    return Featurizer(both, state=state, version=version)


def _graphs(
    train: Sequence[str] | _State,
    *,
    most_atoms: int = 64,
    fingerprints: bool = False,
    radius: int = 2,
    size: int = 2048,
    descriptors: bool = False,
) -> Featurizer:
    """Makes graphs of molecules, if asked with counts of fragments and descriptors."""
    parts: dict[str, Callable[[Sequence[str]], molecules.Molecules]] = {
        "": functools.partial(molecules.molecule_graphs, most_atoms=most_atoms)
    }
    if fingerprints:
        parts["counts"] = functools.partial(molecules.morgan_counts, radius=radius, size=size)
    state: Mapping[str, Any] = {}
    if descriptors:
        state, parts["descriptors"] = _standardized(train)
    return Featurizer(_joined(parts), state=state, version=molecules.features_version())


FEATURIZERS: Mapping[str, Callable[..., Featurizer]] = MappingProxyType(
    {
        "ngrams": _ngrams,
        "words": _words,
        "tokens": _tokens,
        "frozen": _frozen,
        "fingerprints": _fingerprints,
        "graphs": _graphs,
    }
)
"""Functions (training texts, **options) -> `Featurizer` by name."""


def _standardized(
    train: Sequence[str] | _State,
) -> tuple[dict[str, np.ndarray], Callable[[Sequence[str]], molecules.Molecules]]:
    """Makes the function that standardizes descriptors by the statistics of training molecules."""
    if isinstance(train, _State):
        columns = len(molecules.DESCRIPTORS)
        mean, deviation = (_array(train, name, columns) for name in ("mean", "deviation"))
        if deviation.min() <= 0:
            raise DataError("a standard deviation of the descriptors is not above zero")
    else:
        mean, deviation = _statistics(train)

    def encode(smiles: Sequence[str]) -> molecules.Molecules:
        found = molecules.descriptors(smiles)
        standard = np.clip((found.values - mean) / deviation, -_FARTHEST, _FARTHEST)
        standard[~found.valid] = 0
        return found._replace(values=standard.astype(np.float32))

    return {"mean": mean, "deviation": deviation}, encode


def _statistics(train: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and the deviation of the descriptors of molecules."""
    distinct = list(dict.fromkeys(train))
    # Some minutes for 200,000 molecules.
    found = cached(molecules.descriptors, key=molecules.features_version())(distinct)
    numbers, valid = found.values, found.valid
    if not valid.any():
        raise DataError(
            f"None of {len(distinct)} training SMILES parses; is the column one of SMILES?"
        )
    mean, deviation = numbers[valid].mean(axis=0), numbers[valid].std(axis=0)
    return mean, np.where(deviation > 0, deviation, np.ones_like(deviation))


def _array(state: _State, name: str, length: int) -> np.ndarray:
    """Takes an array of a state, which may have been read from a file."""
    array = np.asarray(state[name])
    if array.shape != (length,) or array.dtype != np.float32:
        raise DataError(
            f"{shown(name)} is {array.dtype}{list(array.shape)} and has to be float32[{length}]"
        )
    return array


def _words_of(state: _State) -> tuple[str, ...]:
    """Takes the words of a state, which may have been read from a file."""
    found = tuple(state["words"])
    if not found or not all(isinstance(word, str) for word in found):
        raise DataError("the words of the vocabulary are not all words")
    return found


def _joined(
    parts: Mapping[str, Callable[[Sequence[str]], molecules.Molecules]],
) -> Callable[[Sequence[str]], molecules.Molecules]:
    """Makes the function that puts several features of molecules into one dict; "" names a dict to merge."""

    def encode(smiles: Sequence[str]) -> molecules.Molecules:
        found = {name: part(smiles) for name, part in parts.items()}
        values: dict[str, Any] = {}
        for name, one in found.items():
            values |= {name: one.values} if name else one.values
        valid = np.all([one.valid for one in found.values()], axis=0)
        # SMILES that do not parse have one note, the same from all parts.
        notes = dict.fromkeys(note for one in found.values() for note in one.notes)
        return molecules.Molecules(values, valid, tuple(notes))

    return encode
