"""Tables of files of every kind, and files that are broken."""

import csv
import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.data.tables import Layout, read_table
from metajax.errors import DataError

ROWS = [
    {"text": 'He said "no",\nand left', "label": "a", "stars": "1"},
    {"text": "tab\there", "label": "007", "stars": ""},
    {"text": "Größe, 大きさ", "label": "a", "stars": "2.5"},
]


def _csv(path, rows=ROWS, *, opener=open, **options):
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _columns(table):
    return {name: column.tolist() for name, column in table.columns.items()}


EXPECTED = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz"])
def test_delimited_text_survives_quotes_new_lines_and_identifiers(tmp_path, name):
    opener = gzip.open if name.endswith(".gz") else open
    path = _csv(tmp_path / name, opener=opener, delimiter="\t" if ".tsv" in name else ",")
    table = read_table(path)
    assert _columns(table) == EXPECTED
    assert table.numbers.tolist() == [1, 2, 3] and table.source == name
    np.testing.assert_array_equal(table.floats("stars"), [1, np.nan, 2.5])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_files_may_have_other_separators(tmp_path, separator):
    assert _columns(read_table(_csv(tmp_path / "t.csv", delimiter=separator))) == EXPECTED


def test_a_single_column_needs_no_separator(tmp_path):
    (tmp_path / "t.csv").write_text("text\na;b\n")
    assert read_table(tmp_path / "t.csv").text("text") == ["a;b"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=5)] * 2),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_comes_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = _csv(Path(folder, "t.csv"), [{"a": a, "b": b} for a, b in rows])
        assert _columns(read_table(path)) == {"a": [a for a, _ in rows], "b": [b for _, b in rows]}


def test_empty_lines_are_no_rows_and_empty_texts_are(tmp_path):
    (tmp_path / "t.csv").write_text('text\na\n\n""\n')
    table = read_table(tmp_path / "t.csv")
    assert table.text("text") == ["a", ""] and table.numbers.tolist() == [1, 2]
    (tmp_path / "t.dat").write_text("1::2\n\n3::4\n")
    layout = Layout("::", names=("a", "b"))
    assert read_table(tmp_path / "t.dat", layout=layout).text("a") == ["1", "3"]


def test_equal_texts_of_a_column_are_one_object(tmp_path):
    column = read_table(_csv(tmp_path / "t.csv")).columns["label"]
    assert column[0] is column[2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_left_out(tmp_path, encoding):
    (tmp_path / "t.csv").write_text("text,n\nä,1\n", encoding=encoding)
    layout = Layout(encoding="utf-16" if encoding == "utf-16" else "utf-8")
    assert _columns(read_table(tmp_path / "t.csv", layout=layout)) == {"text": ["ä"], "n": ["1"]}


def test_only_the_wanted_columns_are_read(tmp_path):
    table = read_table(_csv(tmp_path / "t.csv"), columns=["stars", "label"])
    assert list(table.columns) == ["stars", "label"]


def test_files_without_a_header_have_given_names_and_long_separators(tmp_path):
    (tmp_path / "ratings.dat").write_bytes("1::Caf\xe9 (1995)::4\n2::Heat::5\n".encode("latin-1"))
    layout = Layout("::", names=("user", "film", "stars"), encoding="latin-1")
    table = read_table(tmp_path / "ratings.dat", layout=layout)
    assert _columns(table) == {
        "user": ["1", "2"],
        "film": ["Café (1995)", "Heat"],
        "stars": ["4", "5"],
    }


def test_quotes_may_have_no_meaning(tmp_path):
    (tmp_path / "t.tsv").write_text('text\tn\n5" screen\t1\n"open\t2\n')
    table = read_table(tmp_path / "t.tsv", layout=Layout(quote=None))
    assert table.text("text") == ['5" screen', '"open']


@pytest.fixture
def limit_of_csv():
    """A limit on the length of a field, whatever other code of the process has left."""
    before = csv.field_size_limit(1000)
    yield 1000
    csv.field_size_limit(before)


def test_a_long_field_is_read_and_the_limit_of_csv_stays(tmp_path, limit_of_csv):
    text = "a" * (limit_of_csv + 1)
    (tmp_path / "t.csv").write_text(f"text,n\n{text},1\n")
    assert read_table(tmp_path / "t.csv").text("text") == [text]
    assert csv.field_size_limit() == limit_of_csv


def test_a_broken_file_leaves_the_limit_of_csv_while_its_error_is_held(tmp_path, limit_of_csv):
    (tmp_path / "t.csv").write_text("text,n\na,1\nb\n")
    with pytest.raises(DataError, match="Row 2") as held:
        read_table(tmp_path / "t.csv")
    # The error keeps the reader that stopped halfway.
    assert csv.field_size_limit() == limit_of_csv, held


def test_lines_of_json_have_types_and_gaps(tmp_path):
    lines = [
        '{"t": "a", "n": 1, "x": 1, "ok": true}',
        "",
        '{"t": null, "n": 2, "id": 9007199254740993}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    table = read_table(tmp_path / "t.jsonl")
    assert table.columns["n"].dtype == np.int64 and table.columns["n"].tolist() == [1, 2]
    assert table.columns["x"].dtype == np.float64
    np.testing.assert_array_equal(table.columns["x"], [1, np.nan])
    assert table.columns["t"].tolist() == ["a", ""]
    assert table.columns["id"].tolist() == [
        "",
        "9007199254740993",
    ]  # beyond the integers of float64
    assert table.numbers.tolist() == [1, 3]  # lines


def test_a_list_of_objects_is_a_table(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]))
    assert _columns(read_table(tmp_path / "t.json")) == {"a": [1, 2], "b": ["x", "y"]}


def test_arff_has_quoted_names_and_missing_values(tmp_path):
    (tmp_path / "t.arff").write_text(
        "% a comment\n@RELATION r\n@ATTRIBUTE 'checking status' { '<0', 'no checking'}\n"
        "@attribute purpose {radio/tv, 'new car'}\n@attribute age real\n@DATA\n"
        "'<0',radio/tv,67\n% between\n\n'no checking', 'new car', ?\n"
    )
    assert _columns(read_table(tmp_path / "t.arff")) == {
        "checking status": ["<0", "no checking"],
        "purpose": ["radio/tv", "new car"],
        "age": ["67", ""],
    }


def test_comments_of_conll_blocks_are_columns(tmp_path):
    (tmp_path / "de.conll").write_text(
        "# id = 1\n# text-en = show a = b\n# text = Zeige a = b\n# intent = show\n1\tZeige\tshow\tO\n\n\n"
        "# intent: find\n# slots: 1:2:x\n1\two\tfind\tO\n2\tist\tfind\tO\n"
    )
    assert _columns(read_table(tmp_path / "de.conll")) == {
        "id": ["1", ""],
        "text-en": ["show a = b", ""],
        "text": ["Zeige a = b", "wo ist"],
        "intent": ["show", "find"],
        "slots": ["", "1:2:x"],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            b"a,b\n1,2\n1,2,3\n",
            r"Row 2 of t.csv, near line 3, has 3 fields and the header 2",
        ),
        ("t.csv", b"a,a\n1,2\n", "two columns 'a'"),
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b'a,b\n"open,2\n3,4\n', "broken near line 3.*close the quotes"),
        (
            "t.csv",
            b"a,b\nx,1\n\xe9t\xe9,2\n",
            r"Line 3 of t.csv is not utf-8: byte 0xe9 at column 1",
        ),
        ("t.csv", "a,b\nx,1\n".encode("utf-16"), "t.csv is utf-16, not utf-8"),
        ("t.csv.gz", b"a,b\nx,1\n", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"a,b\nx,1\n", mtime=0)[:-4], "cannot be read"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "Line 2 of t.jsonl is not JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "Row 2 of t.jsonl is list"),
        ("t.jsonl", b'{"a": 1}\n{"a": [1]}\n', "Row 2 of t.jsonl, column 'a': list"),
        ("t.json", b'{"a": 1}', "holds dict; use a list"),
        ("t.arff", b"@attribute a real\n@data\n1,2\n", "Row 1 of t.arff, 1,2, has 2 values for 1"),
        ("t.arff", b"1,2\n", "declares no attributes"),
        ("t.conll", b"1\ta\tO\n", "no comments"),
        ("t.xlsx", b"", "of no known kind; use a file with one of: .csv"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_missing_file_and_an_unknown_encoding_are_named(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_table(tmp_path / "none.csv")
    path = _csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match="'utf-9' is no encoding"):
        read_table(path, layout=Layout(encoding="utf-9"))


def test_a_missing_column_has_the_nearest_names(tmp_path):
    path = _csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"no column 'Lable' among .*did you mean 'label'"):
        read_table(path, columns=["Lable"])
    with pytest.raises(DataError, match="no column 'zzzz'; use one of 'text', 'label', 'stars'"):
        read_table(path).column("zzzz")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl"])
def test_files_larger_than_the_limit_are_read_if_the_wanted_columns_are_not(tmp_path, name):
    rows = [{"text": f"{row:03}" * 100, "label": "ab" if row % 2 else "c"} for row in range(50)]
    path = tmp_path / name
    if name == "t.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        _csv(path, rows, opener=gzip.open if ".gz" in name else open)
    # Equal labels once, each an object with a place among the texts seen, and a reference per row.
    kept = sum(sys.getsizeof(label) + 100 for label in ("ab", "c")) + 8 * 50
    table = read_table(path, columns=["label"], most_bytes=kept)
    assert table.text("label") == [row["label"] for row in rows]
    with pytest.raises(
        DataError, match=r"'label' of t.* have more than .* GiB by row 50; name fewer"
    ):
        read_table(path, columns=["label"], most_bytes=kept - 1)
    with pytest.raises(DataError, match=r"'text', 'label' of t.* have more than .* GiB by row 1;"):
        read_table(path, most_bytes=400)


def test_files_that_are_read_as_a_whole_are_refused_by_their_uncompressed_size(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"text": "a" * 1000, "label": "b"}]))
    size = len(path.read_text())
    assert read_table(path, columns=["label"], most_bytes=size).text("label") == ["b"]
    with pytest.raises(DataError, match=r"more than .* GiB of text; raise most_bytes, or convert"):
        read_table(path, columns=["label"], most_bytes=size - 1)


def test_lines_of_json_lack_columns_or_gain_them(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "x"}\n{"b": [1], "a": "y"}\n{"c": 3}\n')
    table = read_table(tmp_path / "t.jsonl", columns=["c", "a"])  # the list in b is not read
    assert table.text("a") == ["x", "y", ""] and table.text("c") == ["", "", "3"]
    with pytest.raises(DataError, match="no column 'd' among 'a', 'b', 'c'"):
        read_table(tmp_path / "t.jsonl", columns=["d"])
