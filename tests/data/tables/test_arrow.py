"""Tables of pyarrow: Parquet, Arrow files, and folders of Hugging Face's `save_to_disk`."""

import json
import sys

import numpy as np
import pytest

from metajax.data.tables import read_table
from metajax.errors import DataError

pa = pytest.importorskip("pyarrow")
ipc = pytest.importorskip("pyarrow.ipc")
parquet = pytest.importorskip("pyarrow.parquet")


def _table():
    return pa.table(
        {
            "text": pa.array(["a", None, "c"]),
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "whole": pa.array([1, 2, 3], pa.int8()),
            "gaps": pa.array([1, None, 3], pa.int32()),
            "share": pa.array([0.5, None, 1.5], pa.float32()),
            "yes": pa.array([True, False, True]),
            "time": pa.array([0, 1, 2], pa.timestamp("us")),
            "day": pa.array([5, 6, 7], pa.date32()),
            "price": pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)),
        }
    )


def _check(table):
    assert table.columns["text"].tolist() == ["a", "", "c"]
    assert table.columns["label"].tolist() == ["x", "y", "x"]
    for name, values in {
        "whole": [1, 2, 3],
        "yes": [1, 0, 1],
        "time": [0, 1, 2],
        "day": [5, 6, 7],
    }.items():
        assert table.columns[name].dtype == np.int64, name
        assert table.columns[name].tolist() == values
    np.testing.assert_array_equal(table.columns["gaps"], [1, np.nan, 3])
    np.testing.assert_array_equal(table.columns["share"], [0.5, np.nan, 1.5])
    np.testing.assert_array_equal(table.columns["price"], [1, 2, 3])


def _stream(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def _saved(folder, tables, **state):
    """Writes a folder as `save_to_disk` does."""
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        _stream(folder / name, table)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, **state}))
    (folder / "dataset_info.json").write_text("{}")


def test_parquet_has_the_types_of_tables(tmp_path):
    parquet.write_table(_table(), tmp_path / "t.parquet", row_group_size=2)
    _check(read_table(tmp_path / "t.parquet"))
    assert list(read_table(tmp_path / "t.parquet", columns=["gaps"]).columns) == ["gaps"]


def test_arrow_files_and_streams_have_the_types_of_tables(tmp_path):
    _stream(tmp_path / "stream.arrow", _table())
    with ipc.new_file(tmp_path / "file.arrow", _table().schema) as writer:
        writer.write_table(_table())
    _check(read_table(tmp_path / "stream.arrow"))
    _check(read_table(tmp_path / "file.arrow"))


def test_folders_of_hugging_face_are_joined(tmp_path):
    _saved(tmp_path / "one", [_table().slice(0, 1), _table().slice(1)])
    _check(read_table(tmp_path / "one"))
    for name, rows in {"train": _table(), "test": _table().slice(2)}.items():
        _saved(tmp_path / "two" / name, [rows])
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    table = read_table(tmp_path / "two")
    assert table.text("split") == ["train"] * 3 + ["test"]
    assert table.text("text") == ["a", "", "c", "c"] and table.numbers.tolist() == [1, 2, 3, 1]


def test_class_labels_become_their_names(tmp_path):
    features = {
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "text": {"_type": "Value"},
    }
    stored = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"label": [1, 0, -1], "text": ["a", "b", "c"]}).replace_schema_metadata(stored)
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").text("label") == ["dog", "cat", ""]


def test_only_the_columns_in_use_count_for_the_limit(tmp_path):
    table = pa.table({"small": [1], "large": ["x" * 100_000]})
    parquet.write_table(table, tmp_path / "t.parquet")
    _stream(tmp_path / "t.arrow", table)
    for name in ("t.parquet", "t.arrow"):
        assert read_table(tmp_path / name, columns=["small"], most_bytes=1000).text("small") == [
            "1"
        ]
        with pytest.raises(DataError, match="name the columns to read, without 'large'"):
            read_table(tmp_path / name, most_bytes=1000)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"t.parquet cannot be read"):
        read_table(tmp_path / "t.parquet")
    (tmp_path / "t.arrow").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"t.arrow cannot be read"):
        read_table(tmp_path / "t.arrow")
    parquet.write_table(pa.table({"a": [[1, 2]], "b": ["x"]}), tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r"Column 'a' of lists.parquet holds list"):
        read_table(tmp_path / "lists.parquet")
    assert read_table(tmp_path / "lists.parquet", columns=["b"]).text("b") == ["x"]
    with pytest.raises(DataError, match="no column 'bb' among 'a', 'b'; did you mean 'b'"):
        read_table(tmp_path / "lists.parquet", columns=["bb"])
    parquet.write_table(_table().slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no rows"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder without state.json"):
        read_table(tmp_path / "folder")
    _saved(tmp_path / "chosen", [_table()], _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match="call flatten_indices"):
        read_table(tmp_path / "chosen")


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    parquet.write_table(_table(), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[tables\]'"):
        read_table(tmp_path / "t.parquet")
