"""Small odd image files: each pixel has the value that a person who looks at the file would expect."""

import os

import numpy as np
import pytest
from PIL import Image

from experiments.fewshot.driver import FewshotSettings
from experiments.flags.settings import UsageError
from experiments.reports.image_notes import describe
from experiments.setup import images as data_options
from helpers.odd_images import png16, tiff
from metajax.data import sources
from metajax.data.files import decoding
from metajax.errors import DataError

RAMP = np.arange(4096).reshape(64, 64, 1)  # every value of 12 bits, once


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "pictures"


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels), mode).save(path, **options)


def load(root, **options):
    """Reads all images [M, S, S, C] of a folder, which equal those on disk, and the notes about them."""
    data = sources.load(f"folder:{root}", split="all", resident="always", **options)
    streamed = sources.load(f"folder:{root}", split="all", resident="never", **options)
    images = data.test.images
    np.testing.assert_array_equal(streamed.test.read(np.arange(len(images))), images)
    assert streamed.test.fingerprint() == data.test.fingerprint()
    assert streamed.notes == data.notes and streamed.form == data.form
    return images, data


def test_twelve_bits_in_sixteen_keep_256_levels(root):
    png16(root / "a" / "1.png", RAMP)
    images, data = load(root)
    np.testing.assert_array_equal(images[0], RAMP >> 4)
    assert len(np.unique(images)) == 256 and data.form.bits == 12
    assert data.notes == (
        "more than 8 bits in the only file, with values up to 4,095: 0 to 4,095 becomes 0 to 255",
    )


@pytest.mark.parametrize("highest", [65535, 40000, 16384])
def test_sixteen_bits_keep_the_high_byte(root, highest):
    pixels = np.linspace(0, highest, 4096).astype(int).reshape(64, 64, 1)
    png16(root / "a" / "1.png", pixels)
    images, data = load(root)
    np.testing.assert_array_equal(images[0], pixels >> 8)
    assert data.form.bits == 16


def test_eight_bits_in_sixteen_stay_what_they_are(root):
    pixels = np.arange(256).reshape(16, 16, 1)
    png16(root / "a" / "1.png", pixels)
    np.testing.assert_array_equal(load(root)[0][0], pixels)


def test_the_range_is_that_of_the_whole_data_set(root):
    png16(root / "a" / "1.png", RAMP)
    png16(root / "b" / "2.png", RAMP // 4)
    images, _ = load(root)
    np.testing.assert_array_equal(images[1], RAMP // 4 >> 4)


def test_test_images_have_at_least_the_range_of_the_training_images(root, tmp_path):
    for name in ("train/a", "valid/b", "test/c"):
        png16(root / name / "1.png", RAMP)
    own = tmp_path / "own"
    png16(own / "d" / "1.png", RAMP // 8)
    (dark,), data = load(own, bits=12)
    np.testing.assert_array_equal(dark, RAMP // 8 >> 4)
    assert data.notes[0].endswith("with values up to 511: 0 to 4,095 becomes 0 to 255")
    np.testing.assert_array_equal(load(own)[0][0], RAMP // 8 >> 2)
    settings = FewshotSettings(
        dataset="folder", data_dir=str(root), test_dataset="folder", test_data_dir=str(own)
    )
    tested = data_options.read_images(settings)
    np.testing.assert_array_equal(tested.test.images[0], dark)
    facts = describe(tested).facts
    assert (facts["bits"], facts["test_bits"], facts["test_fit"]) == (12, 12, "crop")
    png16(own / "d" / "1.png", RAMP * 16)
    assert describe(data_options.read_images(settings)).facts["test_bits"] == 16


def test_a_file_of_classes_to_test_on_is_refused():
    settings = FewshotSettings(test_dataset="omniglot", test_split="file")
    with pytest.raises(
        UsageError, match="--test_split=file is not supported; use --test_split=all"
    ):
        data_options.check_source(settings, None)


@pytest.mark.parametrize(
    "kind, highest, shift",
    [("u4", 4_000_000_000, 24), ("i4", 1_000_000, 12), ("u4", 4095, 4), ("i2", 1023, 2)],
)
def test_integers_of_tiff(root, kind, highest, shift):
    pixels = np.linspace(0, highest, 1024).astype(kind).reshape(32, 32, 1)
    tiff(root / "a" / "1.tif", pixels)
    images, _ = load(root)
    np.testing.assert_array_equal(images[0], pixels >> shift)
    assert images.shape[-1] == 1 and images.max() in (244, 238, 255)


@pytest.mark.parametrize("write, name", [(png16, "1.png"), (tiff, "1.tiff")])
def test_twelve_bits_of_colour(root, write, name):
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16, 3)).astype(np.uint16)
    write(root / "a" / name, pixels)
    np.testing.assert_array_equal(load(root)[0][0], pixels >> 4)


def test_twelve_bits_with_alpha(root):
    pixels = np.concatenate([RAMP[:8, :8], np.full((8, 8, 1), 65535)], axis=-1)
    pixels[0, 0] = 0  # transparent, hence white
    png16(root / "a" / "1.png", pixels)
    images, _ = load(root)
    expected = pixels[..., :1] >> 2  # up to 455, hence 10 bits
    expected[0, 0] = 255
    np.testing.assert_array_equal(images[0], expected)
    assert images.shape[-1] == 1
    png16(root / "a" / "1.png", np.concatenate([pixels[..., :1]] * 3 + [pixels[..., 1:]], axis=-1))
    np.testing.assert_array_equal(load(root)[0][0], expected.repeat(3, -1))


def test_a_deep_grey_file_among_others_leaves_one_channel(root):
    save(root / "a" / "1.png", np.full((16, 16), 77, np.uint8))
    png16(root / "a" / "2.png", np.full((16, 16, 1), 4095))
    images, data = load(root)
    assert images.shape == (2, 16, 16, 1) and images[:, 3, 3, 0].tolist() == [77, 255]
    assert "more than 8 bits in 1 of 2 files" in data.notes[0]


def test_a_dark_file_is_not_black(root):
    png16(root / "a" / "1.png", RAMP * 16)
    png16(root / "b" / "1.png", RAMP % 3 + 5)
    images, data = load(root)
    np.testing.assert_array_equal(images[1], RAMP % 3 > 0)
    assert data.notes[-1] == (
        "1 of 2 files darker than one grey level of 0 to 65,535: at most two levels are left of each"
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", decoding.FITS)
def test_a_dark_file_is_not_black_after_resizing_and_conversion(root, channels, fit):
    save(root / "a" / "1.png", np.full((8, 8), 255, np.uint8))
    spot = np.zeros((600, 640, 3), int)
    spot[300, 320] = 5
    png16(root / "b" / "1.png", spot[..., :1])
    red = np.zeros((60, 64, 3), int)
    red[:, 32:, 0] = 1
    png16(root / "b" / "2.png", red)
    png16(root / "b" / "3.png", red[..., :1] + 65534)
    png16(root / "b" / "4.png", red[..., :1] * 0 + 9)
    images, _ = load(root, image_size=28, channels=channels, fit=fit)
    ink = images[1, ..., 0]
    assert ink.max() == 1 and ink.sum() <= 4 and ink[13:15, 13:15].any()
    assert (images[2, 3:-3, 16:] == 1).all() and (images[2, :, :12] == 0).all()
    assert images[3, 14, 14].tolist() == [255] * channels and not images[4].any()


def test_negative_values_are_refused(root):
    tiff(root / "a" / "1.tif", np.arange(-5, 95).astype(np.int16).reshape(10, 10, 1))
    with pytest.raises(DataError, match=r"a/1\.tif .* negative values, such as -5; shift them"):
        load(root)


def test_floats_are_refused(root):
    save(root / "a" / "1.tif", np.zeros((8, 8), np.float32))
    with pytest.raises(DataError, match="floats of unknown range; save it with 8 or 16 bits"):
        load(root)


def test_deep_colours_in_separate_planes_are_refused(root):
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 8, 3)).astype(np.uint16)
    tiff(root / "a" / "1.tif", pixels, planes=2)
    with pytest.raises(
        DataError, match=r"a/1\.tif .* separate planes; save it with interleaved channels"
    ):
        load(root)
    with pytest.raises(DataError, match="separate planes"):
        decoding.decode_into(
            np.zeros((1, 8, 8, 3), np.uint8), [root / "a" / "1.tif"], ["x"], form=decoding.PLAIN
        )
    tiff(root / "a" / "1.tif", pixels.astype(np.uint8), planes=2)
    np.testing.assert_array_equal(load(root)[0][0], pixels.astype(np.uint8))


@pytest.mark.parametrize("plain", [False, True])
def test_twelve_bits_of_colour_in_ppm(root, plain):
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 12, 3)).astype(">u2")
    (root / "a").mkdir(parents=True)
    for largest in (65535, 4095):
        header = f"P{3 if plain else 6}\n# a comment\n12 16\n{largest}\n".encode()
        values = " ".join(map(str, pixels.ravel())).encode() if plain else pixels.tobytes()
        (root / "a" / "1.ppm").write_bytes(header + values)
        images, data = load(root, image_size=12, fit="crop")
        # A file that declares 12 bits spreads them over 16.
        expected = (
            pixels >> 4 if largest == 65535 else np.round(pixels / 4095 * 65535).astype(int) >> 8
        )
        np.testing.assert_array_equal(images[0], expected[2:-2])
        assert data.form.bits == (12 if largest == 65535 else 16)
        assert data.notes[1].startswith("more than 8 bits in the only file")
    (root / "a" / "1.ppm").write_bytes(b"P6\n1 1\n65535\n" + bytes(5))
    with pytest.raises(DataError, match=r"1\.ppm is not a readable image"):
        load(root)


@pytest.mark.parametrize("channels, key", [(1, [65535]), (3, [7, 0, 65535])])
def test_a_colour_that_stands_for_transparency_is_white(root, channels, key):
    pixels = RAMP.repeat(channels, -1)
    pixels[5, :9] = key
    png16(root / "a" / "1.png", pixels, key=key)
    images, data = load(root)
    expected = pixels >> 4
    expected[5, :9] = 255
    np.testing.assert_array_equal(images[0], expected)
    assert data.form.bits == 12


def test_a_postscript_file_runs_no_program(root, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.png").write_bytes(drawing)
    with pytest.raises(DataError, match=r"x\.png is not a readable image: it holds none of PNG"):
        load(root)
    with pytest.raises(DataError, match="it holds none of PNG"):
        decoding.decode_into(np.zeros((1, 8, 8, 3), np.uint8), [drawing], ["x"])
    assert not (tmp_path / "ran").exists()


def test_suffixes_of_every_format_are_read(root):
    grey = np.full((8, 8), 200, np.uint8)
    for suffix, name in [("jfif", "JPEG"), ("jpe", "JPEG"), ("pgm", "PPM"), ("pnm", "PPM")]:
        save(root / "a" / f"1.{suffix}", grey, format=name)
    save(root / "a" / "2.ppm", np.stack([grey, grey, grey], -1), format="PPM")
    Image.new("1", (8, 8), 1).save(root / "a" / "3.pbm", format="PPM")
    images, data = load(root)
    np.testing.assert_allclose(images[:, 4, 4, 0], [200, 200, 200, 200, 200, 255], atol=1)
    assert data.notes == ("grey becomes three equal channels in 5 of 6 files",)


def test_files_that_are_left_out_are_counted(root):
    save(root / "a" / "1.png", np.zeros((8, 8), np.uint8))
    save(root / "a" / ".2.png", np.zeros((8, 8), np.uint8))
    save(root / "a" / "inner" / "3.png", np.zeros((8, 8), np.uint8))
    save(root / "4.png", np.zeros((8, 8), np.uint8))
    for name in ("x.txt", "y.TXT", "z.heic", "noname"):
        (root / "a" / name).write_bytes(b"")
    (root / "a" / "5.png").symlink_to("missing.png")
    (root / "b").symlink_to("missing folder")
    (root / "README.md").write_text("About the pictures")
    images, data = load(root)
    assert len(images) == 1
    assert data.notes == (
        "left out 9: 2 .txt, 2 links to nothing, 1 .heic, 1 folder in a class, 1 hidden, "
        "1 image in no class, 1 more",
    )


def test_a_loop_of_links_ends(root):
    save(root / "a" / "1.png", np.zeros((8, 8), np.uint8))
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to("b")
    (root / "a" / "2.png").symlink_to("2.png")
    _, data = load(root)
    assert data.test.names == ("a",)
    assert data.notes == ("left out 3: 2 links to nothing, 1 folder in a class",)


def test_a_root_that_is_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop"):
        sources.load(f"folder:{tmp_path / 'loop'}")


def test_two_folders_that_are_one_by_a_link_are_refused(root):
    save(root / "train" / "a" / "1.png", np.zeros((8, 8), np.uint8))
    (root / "test").mkdir()
    (root / "test" / "b").symlink_to(root / "train" / "a", target_is_directory=True)
    with pytest.raises(DataError, match=r"'test/b', 'train/a'.* are one folder by a link"):
        load(root)


# Thirds of a picture that is three times as wide as high.
WIDE = np.repeat(np.array([[40, 100, 220]], np.uint8), [6, 6, 6], axis=1).repeat(6, 0)


def test_fits(root):
    save(root / "a" / "1.png", WIDE)
    square = np.full((18, 18), 90, np.uint8)
    save(root / "b" / "1.png", square)
    images, data = load(root, image_size=6)
    assert (images[0] == 100).all()
    assert data.notes == ("1 of 2 files not square: the middle square of each is kept",)
    images, data = load(root, image_size=18, fit="pad")
    np.testing.assert_array_equal(images[0, 6:12, :, 0], WIDE)
    assert (images[0, :6] == 120).all() and (images[0, 12:] == 120).all()  # the mean
    assert data.notes[0].endswith("padded to a square by its mean colour")
    images, _ = load(root, image_size=18, fit="stretch")
    np.testing.assert_array_equal(images[0, :, :, 0], WIDE[:1].repeat(18, 0))
    assert (images[1] == 90).all()


@pytest.mark.parametrize("fit", decoding.FITS)
def test_an_image_of_one_row_has_a_square(root, fit):
    colours = np.array([[[10, 20, 30]] * 1000], np.uint8)
    save(root / "a" / "1.png", colours)
    images, _ = load(root, image_size=7, fit=fit)
    assert images.reshape(-1, 3).tolist() == [[10, 20, 30]] * 49


def test_images_of_one_pixel(root):
    for value in (3, 250):
        save(root / "a" / f"{value}.png", np.full((1, 1), value, np.uint8))
    assert load(root)[0].ravel().tolist() == [250, 3]
    assert load(root, image_size=2)[0].reshape(2, 4).tolist() == [[250] * 4, [3] * 4]
    save(root / "a" / "4.png", np.full((9, 9), 77, np.uint8))
    assert load(root, image_size=1)[0].ravel().tolist() == [250, 3, 77]


def test_inversion_comes_last(root):
    png16(root / "a" / "1.png", RAMP)
    images, data = load(root, invert="yes", channels=3)
    np.testing.assert_array_equal(images[0], (255 - (RAMP >> 4)).repeat(3, -1))
    assert data.form == decoding.Form("crop", 12, True)
    assert load(root, invert="no")[1].form.invert is False


def test_what_changes_pixels_changes_the_fingerprint(root):
    save(root / "a" / "1.png", WIDE)
    options = [{}, {"fit": "pad"}, {"fit": "stretch"}, {"invert": "yes"}, {"channels": 3}]
    assert len({load(root, image_size=6, **given)[1].test.fingerprint() for given in options}) == 5
