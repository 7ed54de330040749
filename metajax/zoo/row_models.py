"""Encoders of rows of tables by name, with the features that they read and the options of both."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax.names import find
from metajax.types import Array, Key, Model, Params, Tree
from metajax.zoo.options import Option, complete, option


class RowModel(NamedTuple):
    """An encoder of rows by name.

    Attributes:
      module: Module that has the function, loaded when it is first needed.
      function: Name of the function that makes the model; its arguments are the options, `outputs`, and what
        the featurizer is about.
      reads: Kind of columns that it reads: "text", "smiles" or "fields", which are numbers and categories; or
        "pictures", vectors that a frozen encoder made of them.
      featurizer: A key of `metajax.data.features.FEATURIZERS`; "" for fields, which
        `metajax.data.tables` encodes, and for pictures.
      features: Options of the featurizer, declared with default, help and limits.
      options: Options of the network.
    """

    module: str
    function: str
    reads: str
    featurizer: str = ""
    features: Mapping[str, Option] = MappingProxyType({})
    options: Mapping[str, Option] = MappingProxyType({})


class RowOptions(NamedTuple):
    """Options of an encoder of rows, divided by where they go.

    Attributes:
      features: Options of the featurizer by name.
      network: Options of the network by name.

    Example:
      >>> metajax.zoo.row_models.row_options("ngrams", {"size": 64}).features
      {'size': 64, 'shortest': 3, 'longest': 5, 'word_bins': 0, 'idf': False}
    """

    features: dict[str, Any]
    network: dict[str, Any]


_WIDTHS = ("hidden", "windows")  # options that are several numbers, written with commas


def _numbers(default: str, help: str) -> Option:
    return option(str, default, f"{help}, with commas between them.")


_LENGTH = "Number of {} that are read of a text."
_NGRAMS = {
    "size": option(int, 4096, "Number of bins of hashed n-grams.", least=1),
    "shortest": option(int, 3, "Fewest characters of an n-gram.", least=1),
    "longest": option(int, 5, "Most characters of an n-gram.", least=1),
    "word_bins": option(int, 0, "Number of bins of hashed words next to the n-grams.", least=0),
    "idf": option(bool, False, "Weights n-grams by their rarity in the training texts."),
}
_WORDS = {
    "most_words": option(int, 30_000, "Largest number of words in the vocabulary.", least=1),
    "length": option(int, 40, _LENGTH.format("words"), least=1),
    "glove": option(
        bool,
        False,
        "Starts from the GloVe vectors of words, 50 numbers each, and knows more words than training has.",
    ),
}
_SENTENCES = {
    "length": option(int, 64, _LENGTH.format("tokens"), least=3),
    "encoder_dir": option(
        str,
        None,
        "Folder of an encoder of BERT's kind, with model.safetensors, tokenizer.json and config.json; by "
        "default the installed all-MiniLM-L6-v2.",
    ),
}
_FINGERPRINTS = {
    "radius": option(int, 2, "Radius of a fragment in bonds.", least=0),
    "size": option(int, 2048, "Number of bins of hashed fragments.", least=1),
    "descriptors": option(bool, False, "Adds physico-chemical descriptors."),
}
_ADAPTER = {
    "adapter": option(int, None, "Width of a learned residual; by default there is none.", least=1)
}
_TEXT, _MOLECULES = "metajax.models.text", "metajax.models.molecules"
_DEPTH = "Number of layers."

ROW_MODELS: Mapping[str, RowModel] = MappingProxyType(
    {
        "ngrams": RowModel(
            _TEXT,
            "ngram_encoder",
            "text",
            "ngrams",
            _NGRAMS,
            {
                "hidden": _numbers("", "Widths of the hidden layers"),
                "scaled": option(bool, False, "Learns a factor of each n-gram."),
            },
        ),
        "word_cnn": RowModel(
            _TEXT,
            "word_cnn",
            "text",
            "words",
            _WORDS,
            {
                "width": option(int, 50, "Numbers in the vector of a word.", least=1),
                "filters": option(int, 230, "Filters of each window.", least=1),
                "windows": _numbers("3", "Numbers of words that filters see"),
            },
        ),
        "word_attention": RowModel(
            _TEXT,
            "word_attention",
            "text",
            "words",
            _WORDS,
            {
                "width": option(int, 128, "Numbers in a token.", least=2),
                "depth": option(int, 2, _DEPTH, least=0),
                "heads": option(int, 4, "Attention heads.", least=1),
            },
        ),
        "sentences": RowModel(
            "metajax.models.sentence", "sentence_encoder", "text", "tokens", _SENTENCES
        ),
        "frozen_sentences": RowModel(
            _TEXT,
            "vector_encoder",
            "text",
            "frozen",
            _SENTENCES,
            _ADAPTER,
        ),
        "frozen_pictures": RowModel(_TEXT, "vector_encoder", "pictures", options=_ADAPTER),
        "fields": RowModel(
            "metajax.models.fields",
            "fields_encoder",
            "fields",
            options={
                "width": option(int, 8, "Numbers in the vector of a category.", least=1),
                "hidden": _numbers("64,64", "Widths of the hidden layers"),
            },
        ),
        "cells": RowModel("metajax.models.cells", "cells_encoder", "fields"),
        "fingerprints": RowModel(
            _MOLECULES,
            "fingerprint_encoder",
            "smiles",
            "fingerprints",
            _FINGERPRINTS,
            {
                "width": option(int, 512, "Features of a molecule.", least=1),
                "depth": option(int, 2, _DEPTH, least=0),
                "root": option(bool, False, "Takes square roots of counts, not logarithms."),
                "embedding": option(
                    int, None, "Width of a last layer; by default there is none.", least=1
                ),
            },
        ),
        "molecule_network": RowModel(
            _MOLECULES,
            "molecule_network",
            "smiles",
            "graphs",
            {
                "most_atoms": option(int, 64, "Atoms that are kept of a molecule.", least=1),
                "fingerprints": option(bool, False, "Adds counts of fragments."),
                **_FINGERPRINTS,
            },
            {
                "width": option(int, 64, "Features of an atom.", least=1),
                "depth": option(int, 4, _DEPTH, least=0),
                "readout": option(int, 256, "Features of a molecule.", least=1),
            },
        ),
    }
)


def find_row_model(name: str) -> RowModel:
    """Finds the entry of an encoder of rows.

    Args:
      name: A key of `ROW_MODELS`.

    Returns:
      The entry.

    Raises:
      ValueError: If the name is unknown.

    Example:
      >>> find_row_model("ngrams").featurizer
      'ngrams'
    """
    return find("model", name, ROW_MODELS)


def row_options(name: str, given: Mapping[str, Any] = MappingProxyType({})) -> RowOptions:
    """Checks the options of an encoder, fills in defaults, and divides them by where they go.

    Args:
      name: A key of `ROW_MODELS`.
      given: Values by option; None stands for an option that is not given.

    Returns:
      Options of the featurizer and of the network.

    Raises:
      ValueError: If the name is unknown, there is no such option, or the option no such value.

    Example:
      >>> row_options("fields", {"hidden": "32"}).network
      {'width': 8, 'hidden': '32'}
    """
    entry = find_row_model(name)
    chosen = complete(f"Model {name!r}", given, {**entry.features, **entry.options})
    return RowOptions(
        {key: value for key, value in chosen.items() if key in entry.features},
        {key: value for key, value in chosen.items() if key in entry.options},
    )


def build_row_model(
    name: str,
    *,
    outputs: int | None,
    about: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Model:
    """Builds an encoder of rows by its name.

    Args:
      name: A key of `ROW_MODELS`.
      outputs: Width of the layer `head`; None leaves it out, for the features before it.
      about: Arguments that depend on the data: `Featurizer.about` of the entry's featurizer; of "fields"
        and "cells" `categories`, the numbers of codes of the columns.
      **options: Options of the network, as `row_options(...).network` has them.

    Returns:
      A model of the features of rows, a dict: text models read its entry `text`, models of molecules its
      `smiles`, of pictures its `pictures`, and "fields" and "cells" its `numbers`, `missing` and
      `categories`.

    Raises:
      ValueError: If there is no such model, or it has no such option, or the option no such value.

    Example:
      >>> model = build_row_model("ngrams", outputs=5, hidden="8")
      >>> rows = {"text": jnp.ones((2, 64), jnp.uint8)}
      >>> model.apply(model.init(jax.random.key(0), rows), rows).shape
      (2, 5)
    """
    entry = find_row_model(name)
    chosen = complete(f"Model {name!r}", options, entry.options)
    chosen |= {key: _several(key, chosen[key]) for key in _WIDTHS if key in chosen}
    make = getattr(importlib.import_module(entry.module), entry.function)
    model = make(outputs=outputs, **about, **chosen)
    return model if entry.reads == "fields" else _reading(model, entry.reads)


def _several(name: str, text: str) -> tuple[int, ...]:
    """Reads numbers with commas between them."""
    try:
        found = tuple(int(number) for number in text.split(",") if text)
    except ValueError:
        found = (0,)
    if not all(number > 0 for number in found):
        raise ValueError(
            f"{name}={text} is not a list of numbers of 1 or more; use commas between them, such as 64,64."
        )
    return found


def _reading(model: Model, name: str) -> Model:
    """Makes a model of rows of one that reads a single entry of them."""

    def init(key: Key, inputs: Mapping[str, Tree]) -> Params:
        return model.init(key, inputs[name])

    def apply(params: Params, inputs: Mapping[str, Tree]) -> Array:
        return model.apply(params, inputs[name])

    return model._replace(init=init, apply=apply)
