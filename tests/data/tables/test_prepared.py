"""Tables of data sets of TFDS, written here as TFDS prepares them."""

import json
import sys

import numpy as np
import pytest

from helpers.prepared import png, prepare
from metajax.data.tables import Recipe, read_table, split_table
from metajax.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")

NEWS = {
    "train": [
        {"text": "Rain in Rom", "topic": 1, "stars": 4.5, "extra": {"words": 3, "by": "Ünal"}},
        {"text": "a goal", "topic": 0, "stars": 2.0, "extra": {"words": 2, "by": ""}},
    ],
    "test": [{"text": "a vote", "topic": 2, "stars": 1.0, "extra": {"words": 2, "by": "Bo"}}],
}


def _news(root, *, path="news/1.0.0", **more):
    """Prepares news with class labels, numbers and nested features."""
    features = {
        "text": tfds.features.Text(),
        "topic": tfds.features.ClassLabel(names=["sport", "weather", "state"]),
        "stars": tfds.features.Scalar(np.float32),
        "extra": {"words": tfds.features.Scalar(np.int64), "by": tfds.features.Text()},
        **more,
    }
    values = {"image": png(0), "tags": ["x", "y"]}
    examples = {
        split: [record | {name: values[name] for name in more} for record in records]
        for split, records in NEWS.items()
    }
    return prepare(root, examples, features=features, path=path)


def test_features_become_columns(tmp_path):
    folder = _news(tmp_path)
    table = read_table(folder)
    assert table.source == "news:1.0.0" and table.numbers.tolist() == [1, 2, 3]
    assert {name: column.tolist() for name, column in table.columns.items()} == {
        "text": ["Rain in Rom", "a goal", "a vote"],
        "topic": ["weather", "sport", "state"],
        "stars": [4.5, 2.0, 1.0],
        "extra/words": [3, 2, 2],
        "extra/by": ["Ünal", "", "Bo"],
        "split": ["train", "train", "test"],
    }
    assert list(read_table(folder, columns=["topic", "text"]).columns) == ["topic", "text"]
    splits = split_table(table, Recipe(text=("text",), group="topic"), split="column:split")
    assert splits.test.text("topic") == ["state"]


def test_a_data_set_is_found_by_its_name_and_by_its_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = _news(tmp_path, path="news/9.0.0")
    _news(tmp_path, path="news/10.0.0")
    found = [read_table(path).source for path in ("tfds:news", "tfds:news:9.0.0", folder)]
    assert found == ["news:10.0.0", "news:9.0.0", "news:9.0.0"]
    assert read_table(tmp_path / "news").source == "news:10.0.0"
    with pytest.raises(DataError, match="did you mean news"):
        read_table("tfds:newz")


def test_what_is_no_column_is_left_out_or_named(tmp_path):
    tags = tfds.features.Sequence(tfds.features.Text())
    folder = _news(tmp_path, image=tfds.features.Image(shape=(8, 8, 3)), tags=tags)
    assert not {"image", "tags"} & set(read_table(folder).columns)
    with pytest.raises(
        DataError, match=r"Feature 'tags' of news:1.0.0 is Sequence; use columns of text"
    ):
        read_table(folder, columns=["tags"])
    with pytest.raises(DataError, match=r"no column 'topik' among .*did you mean 'topic'"):
        read_table(folder, columns=["topik"])


def test_broken_and_large_data_sets_are_refused(tmp_path):
    folder = _news(tmp_path)
    texts = [record["text"] for records in NEWS.values() for record in records]
    held = sum(sys.getsizeof(text) + 8 for text in texts)
    assert len(read_table(folder, columns=["text"], most_bytes=held)) == 3
    with pytest.raises(DataError, match=r"The columns 'text' of news:1.0.0 take more than .* GiB"):
        read_table(folder, columns=["text"], most_bytes=held - 1)
    next(folder.glob("*test.array_record*")).write_bytes(b"no records")
    with pytest.raises(DataError, match="the files of test are broken or missing"):
        read_table(folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="only array_record is read without TensorFlow"):
        read_table(folder)
