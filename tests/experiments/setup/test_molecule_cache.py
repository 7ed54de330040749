"""Features of molecules in the cache are read again only by the RDKit and the code that made them."""

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import rdBase

from experiments.flags.columns import model_options
from experiments.setup.tables import fit_featurizers
from metajax.data.features import featurizers, molecules
from metajax.data.tables import Recipe, Table

TABLE = Table.of({"smiles": ["CCO", "c1ccccc1"], "group": ["a", "b"]})
RECIPE = Recipe(smiles="smiles", group="group")


@pytest.mark.parametrize(
    ("model", "words", "parts"),
    [
        ("fingerprints", "size=16", ["morgan_counts"]),
        ("fingerprints", "size=16 descriptors=true", ["morgan_counts", "descriptors"]),
        ("molecule_network", "most_atoms=4", ["molecule_graphs"]),
    ],
)
def test_old_features_are_not_read(model, words, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path))
    calls = []

    def watch(name, make):
        def watched(*args, **options):
            calls.append(name)
            return make(*args, **options)

        return watched

    for name in parts:
        monkeypatch.setattr(molecules, name, watch(name, getattr(molecules, name)))

    def encoded():
        calls.clear()
        options = model_options(model, words)
        return fit_featurizers(RECIPE, TABLE, model, options)["smiles"].encode(["CCO", "CN"])

    first = encoded()
    assert set(calls) == set(parts)
    again = encoded()
    assert not calls
    np.testing.assert_equal(again.values, first.values)
    monkeypatch.setattr(rdBase, "rdkitVersion", "1066.09.1")
    encoded()
    assert set(calls) == set(parts)
    monkeypatch.setattr(featurizers.molecules.inspect, "getsource", lambda module: "changed")
    encoded()
    assert set(calls) == set(parts)
