"""Image folders: the files that are found, their classes and splits."""

import numpy as np
import pytest
from PIL import Image

from metajax.data import sources
from metajax.data.files import folder
from metajax.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _save(path, colour=RED, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def load(root, **options):
    """Reads all images of a folder, as users do."""
    return sources.load(
        "folder", data_dir=str(root), split="all", resident="always", **options
    ).test


def test_finds_files_in_order_whatever_their_case(tmp_path):
    _save(tmp_path / "b" / "2.PNG", GREEN)
    _save(tmp_path / "b" / "1.bmp", BLUE)
    _save(tmp_path / "a" / "x.tiff", RED)
    _save(tmp_path / ".hidden" / "x.png")
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("not a class")
    images = load(tmp_path)
    assert images.names == ("a", "b") and images.groups == ("", "")
    assert images.counts.tolist() == [1, 2]
    assert images.images.shape == (3, 8, 8, 3)
    assert images.images[:, 4, 4].tolist() == [list(RED), list(BLUE), list(GREEN)]


def test_native_size_only_where_all_share_it(tmp_path):
    _save(tmp_path / "a" / "1.png", size=(40, 40))
    assert load(tmp_path).images.shape[1:3] == (40, 40)
    _save(tmp_path / "a" / "2.png", size=(40, 41))
    assert load(tmp_path).images.shape[1:3] == (84, 84)


def test_grey_files_make_one_channel(tmp_path):
    _save(tmp_path / "a" / "1.png", 77, mode="L")
    _save(tmp_path / "a" / "2.png", 1, mode="1")
    images = load(tmp_path).images
    assert images.shape[-1] == 1 and images[:, 4, 4, 0].tolist() == [77, 255]
    assert load(tmp_path, channels=3).images.shape[-1] == 3
    _save(tmp_path / "a" / "3.png", RED)
    assert load(tmp_path).images.shape[-1] == 3
    assert load(tmp_path, channels=1).images[2, 4, 4, 0] == 76  # luma of red


def test_given_split_and_its_aliases(tmp_path):
    for split, name in [("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")]:
        _save(tmp_path / split / name / "1.png")
    assert folder.given_split(tmp_path) == {"train": ("a", "b"), "valid": ("c",), "test": ("d",)}
    assert load(tmp_path).names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "names",
    [("Train", "VAL", "Test"), ("training", "dev", "testing"), ("TRAIN", "Validation", "test")],
)
def test_split_folders_in_other_spellings(tmp_path, names):
    for number, name in enumerate(names):
        _save(tmp_path / name / f"class {number}" / "1.png")
    expected = {"train": ("class 0",), "valid": ("class 1",), "test": ("class 2",)}
    assert folder.given_split(tmp_path) == expected
    assert load(tmp_path).names == ("class 0", "class 1", "class 2")


def test_folders_next_to_the_splits_are_left_out_if_they_hold_no_image(tmp_path):
    for split in ("Train", "test"):
        _save(tmp_path / split / split / "1.png")
    assert folder.left_out(tmp_path) == ()
    (tmp_path / "annotations" / "a").mkdir(parents=True)
    (tmp_path / "annotations" / "a" / "1.xml").write_text("<a/>")
    _save(tmp_path / "__MACOSX" / "1.png")
    (tmp_path / "labels").mkdir()
    assert folder.given_split(tmp_path) == {"train": ("Train",), "test": ("test",)}
    assert load(tmp_path).names == ("Train", "test")
    assert folder.left_out(tmp_path) == ("annotations", "labels")
    for image in ("annotations/a/mask.png", "labels/2.png"):
        _save(tmp_path / image)
        with pytest.raises(
            DataError, match=f"'Train', 'test', .* images in '{image.split('/')[0]}'"
        ):
            load(tmp_path)
        (tmp_path / image).unlink()


def test_one_folder_a_split(tmp_path):
    for split in ("train", "training", "test"):
        _save(tmp_path / split / "a" / "1.png")
    with pytest.raises(DataError, match="'train', 'training', both for train; keep one"):
        folder.given_split(tmp_path)


def test_only_one_split_is_sorted_by_class(tmp_path):
    _save(tmp_path / "train" / "a" / "1.png")
    _save(tmp_path / "test" / "1.png")
    with pytest.raises(
        DataError, match=f"no class folders in test.* at random, give {tmp_path}/train"
    ):
        load(tmp_path)


def test_images_one_folder_deeper_are_not_to_be_moved_together(tmp_path):
    for name in ("greek/alpha", "greek/beta", "latin/a"):
        _save(tmp_path / name / "1.png")
    with pytest.raises(
        DataError, match=r"deeper, in 'greek/alpha', 'greek/beta', 'latin/a': .* move them up"
    ):
        load(tmp_path)


def test_classes_of_one_name_in_two_unicode_forms(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    _save(tmp_path / "train" / apart / "1.png", RED)
    _save(tmp_path / "test" / composed / "1.png", BLUE)
    images = load(tmp_path)
    assert images.names == (composed,) and images.counts.tolist() == [2]
    _save(tmp_path / "train" / composed / "1.png")
    with pytest.raises(DataError, match=r"different Unicode forms, 'cafe\\u0301' and 'caf\\xe9'"):
        load(tmp_path)


def test_images_of_a_class_in_two_splits_are_put_together(tmp_path):
    _save(tmp_path / "train" / "a" / "1.png", RED)
    _save(tmp_path / "test" / "a" / "1.png", BLUE)
    images = load(tmp_path)
    assert images.names == ("a",) and images.counts.tolist() == [2]
    assert folder.given_split(tmp_path) == {"train": ("a",), "test": ("a",)}


def test_classes_may_be_called_like_splits(tmp_path):
    for name in ("train", "test", "bus"):
        _save(tmp_path / name / "1.png")
    (tmp_path / "train" / "notes").mkdir()
    assert folder.given_split(tmp_path) is None and folder.left_out(tmp_path) == ()
    assert load(tmp_path).names == ("bus", "test", "train")


def test_broken_images_are_named(tmp_path):
    _save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a/2\.png is not a readable image"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"a/2\.png is not a readable image"):
        load(tmp_path, image_size=8, channels=3)


def test_truncated_images_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "1.jpg")
    content = (tmp_path / "a" / "1.jpg").read_bytes()
    (tmp_path / "a" / "1.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a/1\.jpg is not a readable image"):
        load(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        load(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="no class folders in test"):
        load(tmp_path)
    _save(tmp_path / "test" / "b" / "1.png")
    with pytest.raises(DataError, match=r"1 class folders .*: 'a'; remove"):
        load(tmp_path)


def test_fingerprint_follows_the_files(tmp_path):
    _save(tmp_path / "a" / "1.png")
    before = folder.fingerprint(tmp_path)
    assert folder.fingerprint(tmp_path) == before
    _save(tmp_path / "a" / "2.png")
    after = folder.fingerprint(tmp_path)
    assert after != before
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder.fingerprint(tmp_path) not in (before, after)
