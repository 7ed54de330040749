"""Data sets by name: their splits, their caches, and refused options."""

import inspect
import json
import os

import numpy as np
import pytest
from PIL import Image

from metajax.data import cifar100_splits, glyphs, sources, splits
from metajax.data.files import decoding, folder
from metajax.data.images import LabelledImages
from metajax.data.tfds import folders as tfds_folders
from metajax.data.tfds import source as tfds_source
from metajax.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))


def _make(names, groups=None, image_size=4, channels=1) -> LabelledImages:
    """Makes two images per class, whose pixels are the number of the class."""
    pixels = np.repeat(np.arange(len(names)) % 256, 2).astype(np.uint8)
    images = np.broadcast_to(
        pixels[:, None, None, None], (len(pixels), image_size, image_size, channels)
    )
    counts = np.full(len(names), 2, np.int32)
    return LabelledImages(images.copy(), counts, tuple(names), tuple(groups or [""] * len(names)))


@pytest.fixture
def fake_tfds(tmp_path, monkeypatch):
    """Replaces TFDS: `made[name]` has the images of a data set; returns the list of calls."""
    folder = tmp_path / "3.0.0"
    folder.mkdir()
    alphabets = [f"alphabet {i % 30}" for i in range(1623)]
    superclasses = cifar100_splits.SUPERCLASSES.items()
    made = {
        "omniglot": ([f"character {i}" for i in range(1623)], alphabets),
        "cifar100": (
            [name for _, names in superclasses for name in names],
            [superclass for superclass, names in superclasses for _ in names],
        ),
        "tiny": ([f"class {i}" for i in range(100)], None),
    }
    calls = []

    def load(name, *, data_dir, image_size, grayscale, group, form):
        calls.append((name, image_size, grayscale, group))
        found = _make(*made[name.partition(":")[0]], image_size=image_size or 4)
        return found._replace(images=255 - found.images if form.invert else found.images)

    monkeypatch.setattr(tfds_folders, "find", lambda name, data_dir, known: folder)
    monkeypatch.setattr(tfds_source, "load", load)
    return calls


@pytest.fixture
def fake_glyphs(monkeypatch):
    groups = [script for scripts in glyphs.SPLIT_SCRIPTS.values() for script in scripts]
    names = [f"letter {i}" for i in range(len(groups))]
    calls = []

    def build(*, image_size):
        calls.append(image_size)
        return _make(names, groups, image_size)

    monkeypatch.setattr(glyphs, "build", build)
    return calls


def _folder(root, layout):
    for number, name in enumerate(layout):
        (root / name).mkdir(parents=True)
        Image.new("L", (6, 6), number).save(root / name / "1.png")
    return root


def _classes(data):
    return [set(part.names) for part in data[:3]]


def test_glyphs_are_split_by_script(fake_glyphs):
    data = sources.load("glyphs")
    for part, split in zip(data[:3], splits.SPLITS, strict=True):
        assert set(part.groups) == set(glyphs.SPLIT_SCRIPTS[split])
    assert data.description.startswith("glyphs, 28x28x1, split script: ")
    sources.load("glyphs")
    assert fake_glyphs == [28]  # The second came from the cache.
    assert sources.load("glyphs", image_size=14).train.images.shape[1:] == (14, 14, 1)


def test_omniglot_by_default(fake_tfds):
    data = sources.load("omniglot")
    assert [len(part.names) for part in data[:3]] == [1100, 100, 423]
    assert data.description == (
        "omniglot 3.0.0, 28x28x1, split random (seed 0): 1100 train, 100 valid, 423 test classes"
    )
    # Ink, dark in the files, is bright here.
    first = data.train.images[0, 0, 0, 0]
    assert first == 255 - int(data.train.names[0].split()[1]) % 256
    other = sources.load("omniglot", split_seed=1)
    assert _classes(other) != _classes(data)
    assert fake_tfds == [("omniglot", 28, True, "alphabet")]
    plain = sources.load("omniglot", invert="no")
    np.testing.assert_array_equal(plain.train.images, 255 - data.train.images)


@pytest.mark.parametrize("invert", ["auto", "no"])
def test_symbols_join_the_training_scripts_and_omniglot_in_one_polarity(
    monkeypatch, tmp_path, invert
):
    scripts = [script for names in glyphs.SPLIT_SCRIPTS.values() for script in names]
    alphabets = [*splits.OMNIGLOT_BACKGROUND[:7], "Tengwar"]
    black_on_white = _make(alphabets, alphabets)._replace(images=np.full((16, 28, 28, 1), 250))

    def load(name, *, form, **options):
        inverted = 255 - black_on_white.images if form.invert else black_on_white.images
        return black_on_white._replace(images=inverted.astype(np.uint8))

    monkeypatch.setattr(tfds_folders, "find", lambda name, data_dir, known: tmp_path)
    monkeypatch.setattr(tfds_source, "load", load)
    monkeypatch.setattr(glyphs, "build", lambda image_size: _make(scripts, scripts, image_size))
    data = sources.load("symbols", invert=invert)
    train, valid, test = (set(part.names) for part in data[:3])
    assert train & set(scripts) == set(glyphs.SPLIT_SCRIPTS["train"]) == train - set(alphabets)
    assert test == {"Tengwar"} and len(valid) == 5 and not valid & set(scripts)
    # `_make` draws the first script in 0, which is the background of glyphs as 255 is that of the files.
    paper, letter = (250, 255) if invert == "no" else (5, 0)
    first = data.train.select([data.train.names.index(scripts[0])])
    assert np.unique(first.images).tolist() == [letter]
    assert np.unique(data.test.images).tolist() == [paper]


def test_a_version_changes_the_data_not_the_recipe(fake_tfds):
    plain, versioned = sources.load("omniglot"), sources.load("omniglot:3.0.0")
    assert [call[0] for call in fake_tfds] == ["omniglot", "omniglot:3.0.0"]
    assert fake_tfds[0][1:] == fake_tfds[1][1:]
    assert versioned.train.names == plain.train.names
    with pytest.raises(DataError, match="glyphs has no versions"):
        sources.load("glyphs:1")


@pytest.mark.parametrize(
    "dataset, split, expected",
    [
        ("cifar_fs", None, cifar100_splits.CIFAR_FS),
        ("fc100", None, cifar100_splits.FC100),
        ("cifar100", "fc100", cifar100_splits.FC100),
    ],
)
def test_cifar100_benchmarks(fake_tfds, dataset, split, expected):
    data = sources.load(dataset, split=split, image_size=4)
    assert _classes(data) == [set(expected[part]) for part in splits.SPLITS]
    assert fake_tfds == [("cifar100", 4, None, "coarse_label")]
    assert data.train.groups[0] in cifar100_splits.SUPERCLASSES


def test_cifar_is_32_pixels(fake_tfds):
    assert sources.load("fc100").test.images.shape[1:3] == (32, 32)


def test_any_other_tfds_data_set_is_split_at_random(fake_tfds):
    data = sources.load("tiny")
    assert [len(part.names) for part in data[:3]] == [64, 16, 20]
    assert fake_tfds == [("tiny", None, None, None)]


def test_splitting_is_not_cached(fake_tfds, tmp_path):
    names = {"train": ["class 1"], "valid": ["class 2"], "test": ["class 3"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(names))
    sources.load("tiny")
    data = sources.load("tiny", split_file=str(path))
    assert _classes(data) == [{"class 1"}, {"class 2"}, {"class 3"}]
    assert data.test.images.max() == data.test.images.min() == 3
    assert "split file: 1 train, 1 valid, 1 test" in data.description
    names["test"] = ["class 4"]
    path.write_text(json.dumps(names))
    assert _classes(sources.load("tiny", split="file", split_file=str(path)))[2] == {"class 4"}
    assert len(fake_tfds) == 1


def test_folder_by_path_or_data_dir(tmp_path):
    root = _folder(tmp_path / "pictures", ["a", "b", "c", "d"])
    data = sources.load(f"folder:{root}")
    assert [len(part.names) for part in data[:3]] == [2, 1, 1]
    assert set.union(*_classes(data)) == {"a", "b", "c", "d"}
    assert data.train.images.shape[1:] == (6, 6, 1)
    assert _classes(sources.load("folder", data_dir=str(root))) == _classes(data)


@pytest.mark.parametrize("resident", ["always", "never"])
def test_names_that_are_no_utf8(tmp_path, resident):
    root = tmp_path / os.fsdecode(b"pictur\xe9s\x1b[2J")
    _folder(root, [os.fsdecode(b"caf\xe9"), "b", "c"])
    for _ in range(2):  # the second time from what is kept
        data = sources.load("folder", data_dir=str(root), resident=resident)
        names = [name for part in data[:3] for name in part.names]
        assert sorted(map(os.fsencode, names)) == [b"b", b"c", b"caf\xe9"]
        assert data.description.isprintable() and "pictur\\udce9s\\x1b[2J" in data.description
        assert len(data.train.fingerprint()) == 64


def test_roots_that_are_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "loop", tmp_path / "file", "~nobody-of-this-name", "a" * 1_000_000):
        with pytest.raises(DataError, match="does not exist or is not a folder") as error:
            sources.load("folder", data_dir=str(root))
        assert len(str(error.value)) < 500


def test_folders_that_are_left_out_are_noted(tmp_path):
    root = _folder(tmp_path / "pictures", ["Train/a", "Val/b", "Test/c", "seg/train/a/x"])
    (root / "annotations").mkdir()
    assert sources.load(f"folder:{root}").notes == (
        "left out 2: 2 next to the folders for splits ('annotations', 'seg')",
    )
    (root / "Train" / "a" / "x.txt").write_text("")
    assert sources.load(f"folder:{root}").notes == (
        "left out 3: 1 .txt, 2 next to the folders for splits ('annotations', 'seg')",
    )


def test_folder_with_a_given_split(tmp_path):
    root = _folder(tmp_path / "pictures", ["train/a", "train/b", "val/c", "test/d"])
    data = sources.load(f"folder:{root}")
    assert _classes(data) == [{"a", "b"}, {"c"}, {"d"}]
    assert "split given: 2 train" in data.description
    drawn = sources.load(f"folder:{root}", split="random", split_seed=1)
    assert set.union(*_classes(drawn)) == {"a", "b", "c", "d"}


def test_all_classes_are_for_test(tmp_path, fake_tfds, fake_glyphs):
    root = _folder(tmp_path / "pictures", ["train/b", "test/a"])
    data = sources.load(f"folder:{root}", split="all")
    assert [part.names for part in data[:3]] == [(), (), ("a", "b")]
    assert data.test.images[:, 0, 0, 0].tolist() == [1, 0]
    assert data.train.images.shape == (0, 6, 6, 1)
    assert data.description.endswith("split all: 0 train, 0 valid, 2 test classes")
    streamed = sources.load(f"folder:{root}", split="all", resident="never")
    assert streamed.test.fingerprint() == data.test.fingerprint()
    assert len(sources.load("tiny", split="all").test.names) == 100
    assert len(sources.load("omniglot", split="all").test.names) == 1623
    assert len(sources.load("glyphs", split="all").test.names) > 10


def test_channels_are_converted_and_it_is_said(tmp_path, fake_glyphs):
    root = _folder(tmp_path / "pictures", ["a"])
    options = {"split": "all"}
    grey = sources.load(f"folder:{root}", **options)
    assert grey.test.shape == (6, 6, 1) and grey.notes == ()
    colour = sources.load(f"folder:{root}", channels=3, **options)
    assert colour.test.shape == (6, 6, 3)
    assert colour.notes == ("grey becomes three equal channels in the only file",)
    assert colour.test.fingerprint() != grey.test.fingerprint()
    Image.new("RGB", (6, 6), (255, 0, 0)).save(root / "a" / "1.png")
    red = sources.load(f"folder:{root}", channels=1, **options)
    assert red.test.images[0, 0, 0].tolist() == [76]  # luma of red
    assert red.notes == ("colour becomes grey in the only file",)
    streamed = sources.load(f"folder:{root}", channels=1, resident="never", **options)
    assert streamed.test.fingerprint() == red.test.fingerprint()
    assert sources.load("glyphs", channels=3).train.shape == (28, 28, 3)


def test_folder_is_read_again_when_it_changes(tmp_path):
    root = _folder(tmp_path / "pictures", ["a", "b", "c"])
    assert len(sources.load(f"folder:{root}").train.images) == 1
    for name in "abc":
        Image.new("L", (6, 6), 9).save(root / name / "2.png")
    assert len(sources.load(f"folder:{root}").train.images) == 2


def test_images_are_decoded_anew_by_another_decoder(tmp_path, monkeypatch):
    root, read, reads = _folder(tmp_path / "pictures", ["a", "b", "c"]), folder.read, []
    monkeypatch.setattr(folder, "read", lambda *args, **kw: reads.append(1) or read(*args, **kw))
    sources.load(f"folder:{root}")
    sources.load(f"folder:{root}")
    assert len(reads) == 1
    source = inspect.getsource
    monkeypatch.setattr(
        inspect, "getsource", lambda module: "new" if module is decoding else source(module)
    )
    sources.load(f"folder:{root}")
    assert len(reads) == 2


@pytest.mark.parametrize(
    "layout, message",
    [
        (
            ["train/a", "train/b", "test/a"],
            "train and test hold folders of the same classes, 'a', but",
        ),
        (["train/a", "test/b"], "no folder for valid, .* choose the split 'random'"),
        (["train/a", "val/a"], "train and valid hold folders of the same classes"),
        (["train/a", "train/b", "dev/c"], "no folder for test"),
    ],
)
def test_given_split_that_does_not_fit(tmp_path, layout, message):
    root = _folder(tmp_path / "pictures", layout)
    with pytest.raises(DataError, match=message):
        sources.load(f"folder:{root}")


def test_split_folders_that_do_not_fit_are_divided_at_random(tmp_path):
    for layout in (["train/a", "train/b", "val/a", "val/c"], ["Training/a", "Training/b", "dev/c"]):
        root = _folder(tmp_path / layout[0], layout)
        data = sources.load(f"folder:{root}", split="random")
        assert sorted(name for part in data[:3] for name in part.names) == ["a", "b", "c"]
        assert sum(part.num_images for part in data[:3]) == len(layout)


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        ("glyphs", {"split": "lake"}, "does not fit glyphs; choose one of: script, random, file"),
        ("omniglot", {"split": "script"}, "choose one of: random, lake, file"),
        ("cifar_fs", {"split": "random"}, "choose one of: cifar_fs, file"),
        ("tiny", {"split": "given"}, "choose one of: random, file"),
        ("tiny", {"split": "file"}, "needs a split_file"),
        ("tiny", {"split": "random", "split_file": "x.json"}, "takes no split_file"),
        ("tiny", {"split_file": "nowhere.json"}, "cannot be read"),
        ("tiny", {"image_size": 0}, "image_size is 0"),
        ("tiny", {"channels": 2}, "channels is 2; use 1 or 3"),
        ("tiny", {"fit": "squeeze"}, "fit is 'squeeze'; use one of: crop, pad, stretch"),
        ("tiny", {"invert": "maybe"}, "invert is 'maybe'; use one of: auto, yes, no"),
        ("folder", {}, "has no path; write folder:PATH"),
        ("folder:/nowhere/at/all", {}, "does not exist"),
    ],
)
def test_refuses(fake_tfds, fake_glyphs, dataset, options, message):
    with pytest.raises(DataError, match=message):
        sources.load(dataset, **options)


def test_unknown_names_get_suggestions(tmp_path):
    with pytest.raises(DataError, match="'glyph' is no known data set; did you mean glyphs"):
        sources.load("glyph", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="did you mean cifar_fs"):
        sources.load("cifarfs", data_dir=str(tmp_path))


def test_available_names_a_recipe_each():
    assert sources.available() == ("glyphs", "omniglot", "symbols", "cifar_fs", "fc100", "folder")
