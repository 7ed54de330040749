"""Tables in memory: types, selections, numbers, fingerprints."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metajax.data.tables import Table, concatenate, packing, read_table
from metajax.data.tables.packing import kept_file
from metajax.errors import DataError


def test_columns_have_three_types():
    table = Table.of(
        {
            "whole": [1, -2],
            "gap": [1, None],
            "mixed": [1, "a"],
            "huge": [2**70, 1],
            "none": [None, None],
            "small": np.array([1, 2], np.uint8),
        }
    )
    kinds = {name: column.dtype.kind for name, column in table.columns.items()}
    assert kinds == {"whole": "i", "gap": "f", "mixed": "O", "huge": "O", "none": "O", "small": "i"}
    assert table.text("mixed") == ["1", "a"] and table.text("none") == ["", ""]
    assert table.text("huge") == [str(2**70), "1"] and table.text("gap") == ["1", ""]


def test_selected_rows_keep_their_numbers_in_messages():
    table = Table.of({"stars": ["4", "x", "5"]}, source="ratings.csv").select([2, 1])
    with pytest.raises(
        DataError, match=r"row 2 of ratings.csv, column 'stars': 'x' is not a number"
    ):
        table.floats("stars")


@pytest.mark.parametrize("word", ["", "?", "NA", "n/a", "NaN", "null", " None "])
def test_words_for_missing_numbers(word):
    assert np.isnan(Table.of({"n": [word, "1"]}).floats("n")[0])


def test_codes_with_an_underscore_are_no_numbers():
    with pytest.raises(DataError, match="'3_7' is not a number"):
        Table.of({"code": ["1", "3_7"]}).floats("code")


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999"])
def test_infinite_numbers_are_refused(value):
    with pytest.raises(DataError, match=r"row 2 of the table, column 'n': -?inf is not finite"):
        Table.of({"n": ["1", value]}).floats("n")


def test_columns_that_do_not_fit_are_named():
    with pytest.raises(DataError, match="a has 1, b has 2"):
        Table.of({"a": [1], "b": [1, 2]})
    with pytest.raises(DataError, match="no columns"):
        Table.of({})
    with pytest.raises(DataError, match="'b' has 1 rows and the table 2"):
        Table.of({"a": [1, 2]}).with_columns({"b": [1]})
    with pytest.raises(DataError, match=r"Row 2: .* is list"):
        Table.of({"a": ["x", [1]]})


def test_tables_of_other_types_are_joined_as_text():
    both = concatenate([Table.of({"n": [1, 2]}), Table.of({"n": ["a"]})], source="both")
    assert both.columns["n"].tolist() == ["1", "2", "a"] and both.numbers.tolist() == [1, 2, 1]
    with pytest.raises(DataError, match="no column 'n'"):
        concatenate([Table.of({"n": [1]}), Table.of({"m": [1]})], source="both")


words = st.lists(st.text(max_size=3), min_size=1, max_size=4)


@given(words, words)
def test_fingerprints_are_equal_where_columns_are(first, second):
    fingerprint = Table.of({"a": first}).fingerprint()
    assert (fingerprint == Table.of({"a": second}).fingerprint()) == (first == second)
    assert fingerprint == Table.of({"a": first}, source="elsewhere").fingerprint()


def test_fingerprints_depend_on_names_types_and_order():
    tables = [
        Table.of({"a": ["1", "2"]}),
        Table.of({"b": ["1", "2"]}),
        Table.of({"a": [1, 2]}),
        Table.of({"a": [1.0, 2.5]}),
        Table.of({"a": ["2", "1"]}),
        Table.of({"a": ["1", "2"], "b": ["", ""]}),
    ]
    assert len({table.fingerprint() for table in tables}) == len(tables)
    order = {"a": [1], "b": [2]}
    assert Table.of(order).fingerprint() == Table.of({"b": [2], "a": [1]}).fingerprint()


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    path, asked = tmp_path / "t.csv", []

    def write(words):
        path.write_text("text,n\n" + "".join(f"{word},{i}\n" for i, word in enumerate(words)))

    def read(path, columns=None):
        asked.append(columns)
        return read_table(path, columns=columns)

    write(["é", "", "b"])
    kept_file(path, read), kept_file(path, read)
    assert len(asked) == 2, "a small file is not kept"
    monkeypatch.setattr(packing, "_LARGE", 1)
    first, again = kept_file(path, read), kept_file(path, read)
    assert len(asked) == 3 and first.fingerprint() == again.fingerprint()
    assert again.text("text") == ["é", "", "b"] and again.floats("n").tolist() == [0, 1, 2]
    assert list(kept_file(path, functools.partial(read, columns=["n"])).columns) == ["n"]
    write(["é", "", "b", "c"])
    assert len(kept_file(path, read)) == 4 and len(asked) == 5
