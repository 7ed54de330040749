"""The benchmark of tasks from tables: what it times, in turns, and how it shows it."""

import numpy as np
import pytest

from benchmarks import rows


def test_the_store_has_assays_of_two_classes():
    options = rows.parse(["--quick"])
    store = rows.make_store(options)
    assert len(store.targets) == options.molecules and store.features.shape[1] == options.size
    assert np.asarray(store.parents.counts).tolist() == [2] * options.assays


def test_molecules_are_different_and_parse():
    smiles = rows.molecules(20)
    assert len(set(smiles)) > 15 and smiles == rows.molecules(20)
    pytest.importorskip("rdkit")
    assert rows.morgan_counts(smiles, size=8).valid.all()


def test_measures_take_turns_and_the_first_turn_is_left_out(monkeypatch):
    calls = []

    def made(name):
        return lambda options: rows.Measure(lambda: calls.append(name) or np.zeros(1), 4)

    monkeypatch.setattr(rows, "MEASURES", {name: made(name) for name in ("drawing", "step")})
    options = rows.parse(["--quick", "--rounds=2", "--measures=drawing,step"])
    seconds = rows.measure(options)
    assert calls == ["drawing", "step"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"drawing": 2, "step": 2}


def test_medians_are_shown_with_the_share_of_drawing():
    seconds = {
        "fingerprints": [0.5, 0.25, 1.0],
        "drawing": [0.01, 0.01, 1.0],
        "step": [0.5, 0.4, 9],
    }
    table = dict(rows.rows(seconds, rows.parse([])))
    assert table["fingerprints"] == "2.0 molecules/s (1.0 to 4.0)"
    assert table["share of drawing"] == "2.0% of a step"
    assert "step" not in dict(rows.rows({"drawing": [1.0]}, rows.parse([])))


def test_what_is_wrong_is_one_line(capsys):
    for flags in (["--queries=0"], ["--measures=stepp"]):
        with pytest.raises(SystemExit, match="2"):
            rows.parse(flags)
        assert len(capsys.readouterr().err.splitlines()) == 1
