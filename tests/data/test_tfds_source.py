"""TFDS data sets, written here as TFDS prepares them, and the real Omniglot if it is installed."""

import json
import os
import shlex
import socket
from pathlib import Path

import numpy as np
import pytest

from helpers.prepared import examples_of, features_of, png, prepare
from metajax.data import sources, splits
from metajax.data.tfds import folders as tfds_folders
from metajax.data.tfds import source as tfds_source
from metajax.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")

DATA_DIR = os.environ.get("METAJAX_DATA_DIR", "")
needs_omniglot = pytest.mark.skipif(
    not (DATA_DIR and Path(DATA_DIR, "omniglot").is_dir()),
    reason="METAJAX_DATA_DIR holds no omniglot",
)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Disables the network, and uses a separate cache."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def test_decodes_and_sorts_by_class(tmp_path):
    prepare(tmp_path, examples_of())
    images = tfds_source.load("tiny", data_dir=tmp_path)
    assert images.names == ("cat", "ant", "bee") and images.groups == ("", "", "")
    assert images.counts.tolist() == [2, 2, 2]
    assert images.images.shape == (6, 8, 8, 3) and images.images.dtype == np.uint8
    expected = [[250, 0, 0]] * 2 + [[0, 250, 0], [0, 100, 0], [0, 0, 250], [0, 0, 100]]
    assert images.images[:, 4, 4].tolist() == expected


def test_splits_are_read_one_by_one(tmp_path):
    prepare(tmp_path, examples_of() | {"extra": [{"image": png((9, 9, 9)), "label": 0}]})
    test = tfds_source.load("tiny", data_dir=tmp_path, splits=["test"])
    assert test.names == ("ant", "bee")
    assert test.images[:, 4, 4].tolist() == [[0, 100, 0], [0, 0, 100]]
    assert tfds_source.load("tiny", data_dir=tmp_path).counts.sum() == 6  # without extra
    with pytest.raises(DataError, match=r"no splits 'tset'.*train.*test.*extra"):
        tfds_source.load("tiny", data_dir=tmp_path, splits=["tset"])


def test_one_bit_images_have_full_range(tmp_path):
    # TFDS itself decodes these to 0 and 1 where OpenCV is not installed.
    records = [{"image": png(i, mode="1"), "label": i} for i in (0, 1)]
    prepare(tmp_path, {"train": records})
    images = tfds_source.load("tiny", data_dir=tmp_path, grayscale=True).images
    assert images.shape == (2, 8, 8, 1) and images[:, 4, 4, 0].tolist() == [0, 255]


def test_groups_follow_the_classes(tmp_path):
    features = features_of(kind=tfds.features.ClassLabel(names=["insect", "mammal"]))
    examples = examples_of()
    for record in [record for records in examples.values() for record in records]:
        record["kind"] = int(record["label"] == 0)
    prepare(tmp_path, examples, features=features)
    images = tfds_source.load("tiny", data_dir=tmp_path, group="kind")
    assert images.groups == ("mammal", "insect", "insect")
    with pytest.raises(DataError, match=r"no class label colour; its features are .*'kind'"):
        tfds_source.load("tiny", data_dir=tmp_path, group="colour")


def test_sizes(tmp_path):
    records = [{"image": png((7, 8, 9), size=(30, 40)), "label": 0}]
    prepare(tmp_path, {"train": records}, features=features_of(shape=(None, None, 3)))
    assert tfds_source.load("tiny", data_dir=tmp_path).images.shape == (1, 84, 84, 3)
    small = tfds_source.load("tiny", data_dir=tmp_path, image_size=5).images
    assert small.shape == (1, 5, 5, 3) and (small == [7, 8, 9]).all()


def test_images_without_label_are_left_out(tmp_path):
    examples = examples_of()
    examples["test"][0]["label"] = -1
    prepare(tmp_path, examples)
    images = tfds_source.load("tiny", data_dir=tmp_path)
    assert images.counts.tolist() == [2, 1, 2]


def test_finds_the_newest_version_or_the_one_named(tmp_path):
    for version in ("2.0.0", "10.0.0", "10.0.0.incomplete"):
        prepare(tmp_path, {}, path=f"tiny/{version}")
    assert tfds_folders.find("tiny", data_dir=tmp_path).name == "10.0.0"
    assert tfds_folders.find("tiny:2.0.0", data_dir=tmp_path).name == "2.0.0"
    with pytest.raises(DataError, match=r"'10\.0\.0', '2\.0\.0'"):
        tfds_folders.find("tiny:3.0.0", data_dir=tmp_path)


def test_finds_configs(tmp_path, monkeypatch):
    prepare(tmp_path, {}, path="tiny/small/1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds_folders.find("tiny").parts[-2:] == ("small", "1.0.0")
    prepare(tmp_path, {}, path="tiny/large/1.0.0")
    assert tfds_folders.find("tiny/large").parts[-2:] == ("large", "1.0.0")
    with pytest.raises(DataError, match=r"one of 'large', 'small'"):
        tfds_folders.find("tiny")


def test_missing_data_come_with_a_command_that_is_valid(tmp_path):
    root = tmp_path / "it's $HOME"
    with pytest.raises(DataError, match="omniglot is not prepared under") as error:
        tfds_source.load("omniglot", data_dir=root)
    _, commands = str(
        error.value
    ).splitlines()  # which still hold on one line, as a driver prints them
    install, prepare = commands.split(" && ")
    assert "tensorflow tensorflow-datasets" in install
    *python, code = shlex.split(prepare)
    assert python == ["python", "-c"]
    called = {}

    class Builder:
        def __init__(self, name, **options):
            called.update(options, name=name)

        def download_and_prepare(self):
            called["prepared"] = True

    module = type("tfds", (), {"builder": Builder})
    exec(code.replace("import tensorflow_datasets as tfds; ", ""), {"tfds": module})
    assert called == {
        "name": "omniglot",
        "data_dir": str(root),
        "file_format": "array_record",
        "prepared": True,
    }


def test_unknown_names_get_suggestions(tmp_path):
    prepare(tmp_path, {}, path="my_birds/1.0.0")
    with pytest.raises(DataError, match=r"'omniglott' is no known data set; did you mean omniglot"):
        tfds_source.load("omniglott", data_dir=tmp_path)
    with pytest.raises(DataError, match="did you mean my_birds"):
        tfds_source.load("my_bird", data_dir=tmp_path)
    with pytest.raises(DataError, match="is not a data set's name"):
        tfds_source.load("../tiny", data_dir=tmp_path)


def test_other_file_formats_come_with_a_remedy(tmp_path):
    prepare(tmp_path, examples_of(), fileFormat="tfrecord")
    with pytest.raises(DataError, match=r"as tfrecord, (?s:.*)file_format='array_record'"):
        tfds_source.load("tiny", data_dir=tmp_path)


def test_converted_data_sets_are_read(tmp_path):
    more = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    prepare(tmp_path, examples_of(), **more)
    assert tfds_source.load("tiny", data_dir=tmp_path).counts.tolist() == [2, 2, 2]


def test_broken_files_are_named(tmp_path):
    folder = prepare(tmp_path, examples_of())
    records = folder / "tiny-test.array_record-00000-of-00001"
    records.write_bytes(records.read_bytes()[:-4000])
    with pytest.raises(DataError, match="files of test are broken or missing"):
        tfds_source.load("tiny", data_dir=tmp_path)
    records.unlink()
    with pytest.raises(DataError, match="files of test are broken or missing"):
        tfds_source.load("tiny", data_dir=tmp_path)
    (folder / "features.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be opened"):
        tfds_source.load("tiny", data_dir=tmp_path)
    (folder / "features.json").write_text("{")
    with pytest.raises(DataError, match=r"features\.json is broken"):
        tfds_source.load("tiny", data_dir=tmp_path)
    (folder / "dataset_info.json").write_text("[1")
    with pytest.raises(DataError, match=r"dataset_info\.json is broken"):
        tfds_source.load("tiny", data_dir=tmp_path)


def test_broken_image_is_named(tmp_path):
    prepare(tmp_path, {"train": [{"image": b"nothing", "label": 0}]})
    with pytest.raises(DataError, match="image 0 of train is not a readable image"):
        tfds_source.load("tiny", data_dir=tmp_path)


TRAP = "metajax_trap.Image"


def _described(form: str, name: str) -> dict:
    """Describes `features_of` in one of TFDS's three formats, with `name` as the image's class."""
    features = features_of()
    if form == "proto":
        found = json.loads(json.dumps(_to_dict(tfds.features.FeaturesDict(features).to_proto())))
        found["featuresDict"]["features"]["image"]["pythonClassName"] = name
        return found
    image = {
        "type": name,
        "content": {"shape": [8, 8, 3], "dtype": "uint8", "encoding_format": "png"},
    }
    label = tfds.features.ClassLabel
    label = {"type": f"{label.__module__}.{label.__name__}", "content": {"num_classes": 3}}
    whole = tfds.features.FeaturesDict
    whole = f"{whole.__module__}.{whole.__name__}"
    if form == "legacy":
        return {"type": whole, "content": {"image": image, "label": label}}
    # The key twice: a check may read the first, and TFDS reads the last.
    inner = json.dumps({"image": image | {"type": f"{label['type']}"}, "label": label})[:-1]
    inner += f', "image": {json.dumps(image)}}}'
    return {"python_class_name": whole, "jsonFeature": {"json": inner}}


def _to_dict(message) -> dict:
    from google.protobuf import json_format

    return json_format.MessageToDict(message)


@pytest.mark.parametrize("form", ["proto", "legacy", "embedded"])
def test_no_module_is_imported_for_the_data(tmp_path, monkeypatch, form):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "metajax_trap.py").write_text("raise SystemExit('the trap was sprung')")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    folder = prepare(tmp_path, examples_of(), moduleName="metajax_trap")
    assert tfds_source.load("tiny", data_dir=tmp_path).counts.sum() == 6
    for name in (TRAP, "tensorflow_datasets.scripts.cli.main.Image", "no_dot"):
        (folder / "features.json").write_text(json.dumps(_described(form, name)))
        with pytest.raises(DataError, match=f"features.json names '{name}', which"):
            tfds_source.load("tiny", data_dir=tmp_path)
    own = f"{tfds.features.Image.__module__}.Image"
    (folder / "features.json").write_text(json.dumps(_described(form, own)))
    assert tfds_source.load("tiny", data_dir=tmp_path).counts.sum() == 6


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_info.json", "[" * 100_000, "nested too deeply"),
        ("dataset_info.json", '{"fileFormat": {"a": 1}}', "is prepared as {'a': 1}"),
        ("dataset_info.json", '{"name": "a", "name": "b"}', "'name' twice"),
        ("features.json", '{"type": ' * 100_000, "nested too deeply"),
        ("features.json", '{"a": ' * 700 + "1" + "}" * 700, "cannot be opened|too deeply"),
        ("features.json", '{"json": "%s"}' % ("[" * 100_000), "nested too deeply"),
        ("features.json", "[1]", "holds a list"),
        ("label.labels.txt", "a\nb", "has a label 2, and names for 2 classes"),
    ],
)
def test_broken_descriptions_are_one_error(tmp_path, file, content, message):
    folder = prepare(tmp_path, examples_of())
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        tfds_source.load("tiny", data_dir=tmp_path)
    assert len(str(error.value)) < 1500
    assert tfds_folders.count_images(folder) in (0, 6)


def test_a_template_that_formats_is_refused(tmp_path):
    folder = prepare(tmp_path, examples_of())
    text = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(text.replace("{SPLIT}", "{SPLIT:>99999999999}"))
    with pytest.raises(DataError, match="filepathTemplate is"):
        tfds_source.load("tiny", data_dir=tmp_path)


@pytest.mark.parametrize(
    "features, example",
    [
        ({"label": tfds.features.Scalar(np.int64)}, {"label": 0}),
        ({"image": tfds.features.Tensor(shape=(2,), dtype=np.float32)}, {"image": [0, 1]}),
    ],
)
def test_data_of_another_kind_are_refused_with_theirfeatures_of(tmp_path, features, example):
    record = {"image": png((1, 2, 3)), "label": 0} | example
    prepare(tmp_path, {"train": [record]}, features=features_of() | features)
    with pytest.raises(DataError, match=r"features are \{'image': '\w+', 'label': '\w+'\}"):
        tfds_source.load("tiny", data_dir=tmp_path)


def test_missing_supervised_keys(tmp_path):
    prepare(tmp_path, examples_of(), supervisedKeys=None)
    assert tfds_source.load("tiny", data_dir=tmp_path).counts.tolist() == [2, 2, 2]
    features = {"text": tfds.features.Scalar(np.int64)}
    prepare(tmp_path, {}, features=features, supervisedKeys=None, path="texts/1.0.0")
    with pytest.raises(DataError, match=r"no image and label; its features are \{'text'"):
        tfds_source.load("texts", data_dir=tmp_path)


def test_source_is_decoded_once_and_again_when_the_data_change(tmp_path, monkeypatch):
    folder = prepare(tmp_path, examples_of())
    first = sources.load("tiny", data_dir=tmp_path)
    assert first.description == (
        "tiny 1.0.0, 8x8x3, split random (seed 0): 1 train, 1 valid, 1 test classes"
    )
    (folder / "tiny-test.array_record-00000-of-00001").touch()
    monkeypatch.setattr(tfds_source, "load", None)  # Calling it would fail.
    again = sources.load("tiny", data_dir=tmp_path)
    np.testing.assert_array_equal(again.train.images, first.train.images)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text() + "\n")
    with pytest.raises(TypeError):
        sources.load("tiny", data_dir=tmp_path)


@needs_omniglot
def test_real_omniglot_background_and_evaluation_sets():
    both = {
        split: tfds_source.load(
            "omniglot", data_dir=DATA_DIR, image_size=7, splits=[split], group="alphabet"
        )
        for split in ("train", "test")
    }
    for split, classes in (("train", 964), ("test", 659)):
        assert both[split].counts.tolist() == [20] * classes
        named = zip(both[split].names, both[split].groups, strict=True)
        assert all(name.rpartition("_")[0] == group for name, group in named)
    assert set(both["train"].groups) == set(splits.OMNIGLOT_BACKGROUND)
    assert not set(both["test"].groups) & set(splits.OMNIGLOT_BACKGROUND)


@needs_omniglot
def test_real_omniglot_splits(session_cache, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(session_cache))
    data = sources.load("omniglot", data_dir=DATA_DIR)
    assert [len(part.names) for part in data[:3]] == [1100, 100, 423]
    assert all((part.counts == 20).all() for part in data[:3])
    assert data.train.images.shape == (22000, 28, 28, 1)
    # Ink is bright, thin and in every image; paper is exactly zero.
    images = data.train.images[:2000]
    assert images.max(axis=(1, 2, 3)).min() > 150 and np.median(images) == 0
    assert 10 < images.mean() < 40

    lake = sources.load("omniglot", data_dir=DATA_DIR, split="lake", split_seed=1)
    assert len(lake.test.names) == 659 and len(lake.train.names) + len(lake.valid.names) == 964
    train, valid, test = (set(part.groups) for part in lake[:3])
    assert (len(train), len(valid), len(test)) == (25, 5, 20)
    assert not (train & valid or train & test or valid & test)


def test_images_of_free_sizes_are_noted(tmp_path):
    where = prepare(tmp_path, examples_of(), features=features_of(shape=(None, None, 3)))
    assert tfds_folders.image_shape(where) == (0, 0, 3)
    images = sources.load("tiny", data_dir=tmp_path, fit="stretch", split="all")
    assert images.notes == ("images that are not square: each is stretched to a square",)
    (where / "features.json").unlink()
    assert tfds_folders.image_shape(where) is None


def test_images_of_one_square_size_are_not_noted(tmp_path):
    where = prepare(tmp_path, examples_of())
    assert tfds_folders.image_shape(where) == (8, 8, 3)
    assert sources.load("tiny", data_dir=tmp_path, split="all").notes == ()
