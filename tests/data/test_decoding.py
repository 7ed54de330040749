"""Decoding of the pixels of image files."""

import io

import numpy as np
import pytest
from PIL import Image

from metajax.data.files import decoding
from metajax.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _decoded(image, size, *, format="png", channels=3, **options):
    """Saves an image as a file in memory, and decodes it to [size, size, channels]."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    images = np.zeros((1, size, size, channels), np.uint8)
    decoding.decode_into(images, [file.getvalue()], ["image"])
    return images[0]


@pytest.mark.parametrize("format", ["jpeg", "gif", "webp", "tiff", "bmp"])
def test_reads_format(format):
    image = _decoded(Image.new("RGB", (8, 8), (200, 100, 50)), 8, format=format)
    np.testing.assert_allclose(image[4, 4], [200, 100, 50], atol=4)


def test_keeps_the_middle_of_the_longer_side():
    wide = np.zeros((6, 12, 3), np.uint8)
    wide[:, :3] = RED
    wide[:, 3:9] = GREEN
    wide[:, 9:] = BLUE
    for picture in (wide, wide.swapaxes(0, 1)):
        assert (_decoded(Image.fromarray(picture), 6) == GREEN).all()


def test_shrinking_averages():
    board = np.indices((60, 60)).sum(0) % 2 * np.uint8(255)
    image = _decoded(Image.fromarray(board.astype(np.uint8)), 20, channels=1)
    assert image.shape == (20, 20, 1)
    np.testing.assert_allclose(image[2:-2, 2:-2], 127.5, atol=6)


def test_sixteen_bits_keep_the_high_byte():
    image = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert _decoded(image, 8, channels=1)[4, 4, 0] == 0x80


def test_transparent_parts_are_white():
    assert (_decoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 8) == 255).all()
    assert (_decoded(Image.new("P", (8, 8), 0), 8, transparency=0) == 255).all()


def test_turns_photographs_upright():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held so that the left of the file is the top.
    image = _decoded(Image.fromarray(picture), 8, exif=exif)
    assert image[0, :, 0].min() == 255 and image[-1, :, 0].max() == 0


def test_files_and_bytes_are_decoded_alike_and_in_order(tmp_path):
    for i, colour in enumerate((RED, GREEN, BLUE)):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.iterdir())
    for encoded in (files, [file.read_bytes() for file in files]):
        images = np.zeros((3, 8, 8, 3), np.uint8)
        decoding.decode_into(images, encoded, files)
        assert images[:, 4, 4].tolist() == [list(RED), list(GREEN), list(BLUE)]
    assert decoding.header(files[0]) == ((8, 8), False, False)


def test_a_broken_image_is_named():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="second is not a readable image"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, format="png")
        decoding.decode_into(images, [file.getvalue(), b"not an image"], ["first", "second"])


def test_native_size_is_that_of_small_squares():
    assert decoding.native_size([(40, 40), (40, 40)]) == 40
    assert decoding.native_size([(84, 84)]) == 84
    assert decoding.native_size([(85, 85)]) == 84
    assert decoding.native_size([(20, 30)]) == 84
    assert decoding.native_size([(40, 40), (40, 41)]) == 84
    assert decoding.native_size([(0, 0)]) == 84


def test_too_large_for_the_machine_is_said_before_decoding():
    with pytest.raises(DataError, match="smaller image size"):
        decoding.allocate(10**9, image_size=1000, channels=3)
