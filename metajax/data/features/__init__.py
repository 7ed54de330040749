"""Features of texts and molecules, made on the host: plain functions of a list of strings.

Counts stay uint8 and ids int32, so that a store is small; the networks of `metajax.models` scale them.

| module | content |
|---|---|
| `ngrams` | counts of hashed character n-grams, and their rarity, without any files |
| `words` | counts of hashed words; vocabularies, ids of words, GloVe vectors |
| `sentences` | all-MiniLM-L6-v2 and other pre-trained encoders, frozen or as a model |
| `molecules` | counts of fragments, descriptors and graphs, by RDKit |
| `featurizers` | all of them by name, fitted to training texts |
| `flat` | features as rows of numbers |
"""

from metajax.data.features.featurizers import (
    FEATURIZERS,
    Featurizer,
    encode_once,
    fit_featurizer,
    restore_featurizer,
)
from metajax.data.features.flat import are_rows_of_numbers, flat_rows
from metajax.data.features.ngrams import count_ngrams, inverse_frequencies
from metajax.data.features.words import Vocabulary, count_words, word_ids

__all__ = [
    "FEATURIZERS",
    "Featurizer",
    "Vocabulary",
    "are_rows_of_numbers",
    "count_ngrams",
    "count_words",
    "encode_once",
    "fit_featurizer",
    "flat_rows",
    "inverse_frequencies",
    "restore_featurizer",
    "word_ids",
]
