"""Encoders of rows by name: options reach features and networks, and every entry learns from its features."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data.features import FEATURIZERS, fit_featurizer
from metajax.zoo import ROW_MODELS, build_row_model, row_options

TEXTS = ["my card is lost", "a lost card", "send money", ""]
SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "C#N"]
# Options that make networks of toys, by model.
SMALL = {
    "ngrams": {"size": 32, "hidden": "6,5"},
    "word_cnn": {"length": 6, "width": 4, "filters": 3, "windows": "2,3"},
    "word_attention": {"length": 6, "width": 4, "depth": 1, "heads": 2},
    "fingerprints": {"size": 32, "width": 4, "depth": 1},
    "molecule_network": {"most_atoms": 8, "width": 4, "depth": 1, "readout": 5},
}
WIDTHS = {
    "ngrams": 5,
    "word_cnn": 6,
    "word_attention": 4,
    "fingerprints": 4,
    "molecule_network": 5,
}


@pytest.mark.parametrize("name", SMALL)
def test_features_and_networks_fit_together(name):
    entry, chosen = ROW_MODELS[name], row_options(name, SMALL[name])
    if entry.reads == "smiles":
        pytest.importorskip("rdkit")
    data = {"text": TEXTS, "smiles": SMILES}[entry.reads]
    featurizer = fit_featurizer(entry.featurizer, data, **chosen.features)
    made = featurizer.encode(data)
    rows = {entry.reads: jax.tree.map(jnp.asarray, getattr(made, "values", made))}
    for outputs, width in ((None, WIDTHS[name]), (3, 3)):
        model = build_row_model(name, outputs=outputs, about=featurizer.about, **chosen.network)
        found = model.apply(model.init(jax.random.key(0), rows), rows)
        assert found.shape == (4, width) and np.isfinite(found).all()
        assert not np.allclose(found[0], found[1])


def test_fields_and_frozen_vectors_are_built():
    rows = {"numbers": jnp.ones((2, 3)), "categories": jnp.ones((2, 1), int)}
    model = build_row_model("fields", outputs=None, about={"categories": (4,)}, hidden="7")
    assert model.apply(model.init(jax.random.key(0), rows), rows).shape == (2, 7)
    rows = {"text": jnp.array([[3.0, 4.0]])}
    model = build_row_model("frozen_sentences", outputs=None, adapter=2)
    got = model.apply(model.init(jax.random.key(0), rows), rows)
    np.testing.assert_allclose(got, [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("name", ROW_MODELS)
def test_every_declared_option_is_an_argument_with_its_default(name):
    entry = ROW_MODELS[name]
    function = getattr(importlib.import_module(entry.module), entry.function)
    arguments = inspect.signature(function).parameters
    for option, declared in entry.options.items():
        default = arguments[option].default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        assert default == declared.default, option
    assert "outputs" in arguments
    if entry.featurizer in ("", "ngrams"):  # the options of n-grams are positional
        return
    fit = inspect.signature(FEATURIZERS[entry.featurizer]).parameters
    assert {key: fit[key].default for key in entry.features} == {
        key: declared.default for key, declared in entry.features.items()
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: row_options("ngrmas"), "ngrmas.*ngrams"),
        (
            lambda: row_options("ngrams", {"sizes": 3}),
            "'ngrams' has no option sizes; it takes size",
        ),
        (lambda: row_options("ngrams", {"size": 0}), "size=0 is too small; use 1 or more"),
        (lambda: build_row_model("ngrams", outputs=2, hidden="8,x"), "hidden=8,x is not a list"),
        (lambda: build_row_model("ngrams", outputs=2, hidden="8,0"), "hidden=8,0 is not a list"),
    ],
)
def test_errors_name_the_value_and_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
