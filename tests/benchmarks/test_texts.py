"""The benchmark of encodings counts texts, and names what is not installed."""

import pytest

from benchmarks import texts


def test_rates_are_texts_by_the_time_of_a_round(monkeypatch):
    ticks = iter([0.0, 0.5, 10.0, 12.0, 20.0, 21.0, 30.0, 30.25])
    monkeypatch.setattr(texts.time, "perf_counter", lambda: next(ticks))
    rates, notes = texts.measure(texts.make_texts(10), ["ngrams", "ids"], rounds=2)
    assert rates == {"ngrams": [20.0, 10.0], "ids": [5.0, 40.0]} and not notes
    found = dict(texts.rows(rates, ["sentences: none"]))
    assert found["ngrams"] == "15 texts/s (10 to 20)" and found["left out"] == "sentences: none"


def test_texts_are_the_same_every_time_and_have_twelve_words():
    made = texts.make_texts(3)
    assert made == texts.make_texts(3) != texts.make_texts(3, seed=1)
    assert [len(text.split()) for text in made] == [12] * 3


def test_encodings_that_are_not_installed_are_named(monkeypatch, capsys):
    def missing(*args):
        raise ImportError("install it")

    monkeypatch.setitem(texts.ENCODINGS, "tokens", missing)
    assert texts.main(["--texts=2", "--rounds=1", "--encodings=words,tokens"]) == 0
    shown = capsys.readouterr().out
    assert "tokens: install it" in shown and "texts/s" in shown
    with pytest.raises(SystemExit):
        texts.main(["--encodings=wrods"])
    assert "words" in capsys.readouterr().err
