"""Class splits: disjoint, repeatable, as published, and strict about their arguments."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.data import cifar100_splits, splits
from metajax.data.images import LabelledImages
from metajax.errors import DataError


def _images(names, groups=None) -> LabelledImages:
    count = len(names)
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return LabelledImages(
        pixels, np.ones(count, np.int32), tuple(names), tuple(groups or [""] * count)
    )


def _names(images, classes):
    return {split: [images.names[i] for i in classes[split]] for split in splits.SPLITS}


def test_random_is_pinned():
    images = _images("abcdefghij")
    classes = splits.split_classes(images, splits.random(counts=(5, 2, 3)), seed=1)
    # Published results depend on this: no change of code or library may change it.
    assert _names(images, classes) == {
        "train": ["a", "b", "d", "g", "i"],
        "valid": ["f", "h"],
        "test": ["c", "e", "j"],
    }


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text(max_size=3), min_size=3, max_size=20), st.integers(0, 99))
def test_random_does_not_depend_on_the_order_of_classes(names, seed):
    ordered = sorted(names)
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    results = []
    for images in (_images(ordered), _images(shuffled)):
        classes = splits.split_classes(images, splits.random(), seed=seed)
        everything = sorted(i for part in classes.values() for i in part)
        assert everything == list(range(len(names)))
        results.append(_names(images, classes))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "total, sizes", [(100, (64, 16, 20)), (200, (128, 32, 40)), (3, (1, 1, 1))]
)
def test_default_fractions(total, sizes):
    images = _images([f"class {i}" for i in range(total)])
    classes = splits.split_classes(images, splits.random())
    assert tuple(len(classes[split]) for split in splits.SPLITS) == sizes


def test_seeds_differ_and_test_classes_stay_when_training_shrinks():
    images = _images([f"class {i}" for i in range(50)])
    many = splits.split_classes(images, splits.random(counts=(30, 10, 10)), seed=3)
    few = splits.split_classes(images, splits.random(counts=(5, 10, 10)), seed=3)
    other = splits.split_classes(images, splits.random(counts=(30, 10, 10)), seed=4)
    assert few["test"] == many["test"] and few["valid"] == many["valid"]
    assert set(few["train"]) < set(many["train"]) and len(few["train"]) == 5
    assert other["test"] != many["test"]


def test_random_refuses_what_does_not_fit():
    images = _images("abcde")
    with pytest.raises(DataError, match=r"1100 \+ 100 \+ 423 classes .* the data have 5"):
        splits.split_classes(images, splits.random(counts=splits.OMNIGLOT_COUNTS))
    with pytest.raises(DataError, match="three splits need 3 classes or more, and the data have 2"):
        splits.split_classes(_images("ab"), splits.random())
    with pytest.raises(DataError, match="no class is left for valid"):
        splits.split_classes(images, splits.random(counts=(3, 0, 2)))
    with pytest.raises(ValueError, match="fractions"):
        splits.split_classes(images, splits.random(fractions=(0.9, 0.9, 0.9)))


def test_by_group_takes_whole_groups():
    images = _images("abcdef", groups=["x", "y", "z", "x", "y", "w"])
    policy = splits.by_group({"train": ("x",), "valid": ("y",), "test": ("z",)})
    assert splits.split_classes(images, policy) == {"train": (0, 3), "valid": (1, 4), "test": (2,)}
    wrong = splits.by_group({"train": ("x",), "valid": ("why",), "test": ("z",)})
    with pytest.raises(DataError, match="'why'"):
        splits.split_classes(images, wrong)


def _fake_omniglot() -> LabelledImages:
    alphabets = [*splits.OMNIGLOT_BACKGROUND[:8], "Tengwar", "ULOG"]
    groups = [alphabet for alphabet in alphabets for _ in range(3)]
    return _images([f"{group}_{i % 3}" for i, group in enumerate(groups)], groups)


def test_lake_keeps_alphabets_apart():
    images = _fake_omniglot()
    drawn = set()
    for seed in range(5):
        classes = splits.split_classes(images, splits.lake(), seed=seed)
        alphabets = {s: {images.groups[i] for i in classes[s]} for s in splits.SPLITS}
        assert alphabets["test"] == {"Tengwar", "ULOG"}
        assert len(alphabets["valid"]) == 5 and len(alphabets["train"]) == 3
        assert not alphabets["valid"] & alphabets["train"]
        drawn.add(frozenset(alphabets["valid"]))
    assert len(drawn) > 1
    with pytest.raises(DataError, match="have 8 of the"):
        splits.split_classes(images, splits.lake(held_out=8))


def test_background_has_thirty_alphabets():
    assert len(set(splits.OMNIGLOT_BACKGROUND)) == 30


def test_from_file(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["c", "a"], "valid": ["b"], "test": ["e"]}))
    images = _images("edcba")
    classes = splits.split_classes(images, splits.from_file(path))
    assert classes == {"train": (4, 2), "valid": (3,), "test": (0,)}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"train": ["apple"], "valid": ["pear"], "test": ["ornge"]}', "'ornge'.*mean orange"),
        ('{"train": ["apple", "pear"], "valid": ["pear"], "test": ["orange"]}', "more than once"),
        ('{"train": ["apple", "apple"], "valid": ["pear"], "test": ["orange"]}', "more than once"),
        ('{"train": ["apple"], "test": ["orange"]}', "holds 'test', 'train'"),
        ("{}", "and holds nothing"),
        ('{"train": ["apple"], "valid": [], "test": ["orange"]}', "left for valid"),
        ('{"train": "apple", "valid": ["pear"], "test": ["orange"]}', "list of class names"),
        ('{"train": [1], "valid": ["pear"], "test": ["orange"]}', "list of class names"),
        ('["apple"]', "holds list"),
        ("{train", "not JSON"),
        ("\xff", "not JSON"),
        ('{"train": ["apple"], "train": [], "valid": ["pear"], "test": []}', "has 'train' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"train": ' * 100_000, "nested too deeply"),
        ('{"train": %s}' % ("9" * 5000), "not JSON"),
    ],
)
def test_from_file_refuses(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        splits.split_classes(_images(["apple", "pear", "orange"]), splits.from_file(path))


def test_from_file_refuses_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        splits.split_classes(_images("abc"), splits.from_file(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("split, sizes", [("CIFAR_FS", (64, 16, 20)), ("FC100", (60, 20, 20))])
def test_cifar100_lists_cover_the_classes_once(split, sizes):
    names = [name for members in cifar100_splits.SUPERCLASSES.values() for name in members]
    assert len(names) == len(set(names)) == 100
    images = _images(names)
    classes = splits.split_classes(images, splits.by_name(getattr(cifar100_splits, split)))
    assert tuple(len(classes[part]) for part in splits.SPLITS) == sizes
    assert sorted(i for part in classes.values() for i in part) == list(range(100))


def test_cifar_fs_classes():
    assert {"whale", "worm", "rocket"} <= set(cifar100_splits.CIFAR_FS["test"])
    assert {"otter", "sea", "tractor"} <= set(cifar100_splits.CIFAR_FS["valid"])
    assert {"apple", "tulip", "tank"} <= set(cifar100_splits.CIFAR_FS["train"])


def test_fc100_superclasses():
    # Numbers of the superclasses in the data set's order, as in Oreshkin et al., 2018.
    numbers = {"train": {1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19}, "valid": {8, 11, 13, 16}}
    numbers["test"] = {0, 7, 12, 14}
    for split, expected in numbers.items():
        classes = cifar100_splits.FC100[split]
        superclasses = enumerate(cifar100_splits.SUPERCLASSES.values())
        assert {i for i, members in superclasses if set(members) & set(classes)} == expected
    assert list(cifar100_splits.SUPERCLASSES) == sorted(cifar100_splits.SUPERCLASSES)


ACCENTED, APART = "caf\u00e9", "cafe\u0301"  # as Linux and as macOS write the same file name


@pytest.mark.parametrize(("on_disk", "listed"), [(ACCENTED, APART), (APART, ACCENTED)])
def test_names_are_found_in_either_unicode_form(tmp_path, on_disk, listed):
    images = _images([on_disk, "bar", "pub"], groups=[on_disk, "bar", "pub"])
    names = {"train": [listed], "valid": ["bar"], "test": ["pub"]}
    (tmp_path / "split.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    for policy in (splits.from_file(tmp_path / "split.json"), splits.by_name(names)):
        assert splits.split_classes(images, policy) == {"train": (0,), "valid": (1,), "test": (2,)}
    classes = splits.split_classes(images, splits.by_group(names))
    assert _names(images, classes) == {"train": [on_disk], "valid": ["bar"], "test": ["pub"]}
    names["test"] = [on_disk]
    with pytest.raises(DataError, match=r"more than once: 'caf.*in train and test"):
        splits.split_classes(images, splits.by_name(names))


def test_classes_that_differ_in_unicode_form_alone_stay_different():
    images = _images([ACCENTED, APART, "e\u0301a\u0301"])
    names = {"train": [APART], "valid": [ACCENTED], "test": ["\u00e9\u00e1"]}
    classes = splits.split_classes(images, splits.by_name(names))
    assert classes == {"train": (1,), "valid": (0,), "test": (2,)}
    names["test"] = ["\u00e9\u0061\u0301\u0062"]
    with pytest.raises(DataError, match="lack"):
        splits.split_classes(images, splits.by_name(names))


def test_hostile_names_are_shown_in_a_short_line():
    names = {"train": ["\x1b[2J" * 1_000_000], "valid": ["b"], "test": ["c" * 10_000_000]}
    with pytest.raises(DataError) as error:
        splits.split_classes(_images("abc"), splits.by_name(names))
    assert str(error.value).isprintable() and len(str(error.value)) < 600
