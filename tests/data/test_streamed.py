"""Images on disk equal images in memory: the same pixels, order, statistics and fingerprint."""

import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from metajax.data import sources
from metajax.data.files import decoding
from metajax.data.images import LabelledImages
from metajax.data.streamed import StreamedImages
from metajax.data.tfds import source as tfds_source
from metajax.episodes.store import EpisodeSampler, class_store, pixel_statistics
from metajax.errors import DataError

DATA_DIR = os.environ.get("METAJAX_DATA_DIR", "")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Writes ten classes of three to five PNG and JPEG files of several sizes."""
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "pictures" / f"klasse {number} ä"
        folder.mkdir(parents=True)
        for index in range(3 + number % 3):
            pixels = rng.integers(0, 256, (9 + index, 12, 3), np.uint8)
            name = f"{index}.{'jpg' if (number + index) % 2 else 'png'}"
            Image.fromarray(pixels).save(folder / name)
    return tmp_path / "pictures"


def both(dataset, **options):
    """Reads the data set on disk and in memory."""
    return [sources.load(dataset, resident=resident, **options) for resident in ("never", "always")]


def assert_same(streamed, resident, *, rows=None):
    assert isinstance(streamed, StreamedImages) and isinstance(resident, LabelledImages)
    for name in ("names", "groups", "shape", "num_images"):
        assert getattr(streamed, name) == getattr(resident, name)
    np.testing.assert_array_equal(streamed.counts, resident.counts)
    assert streamed.counts.dtype == resident.counts.dtype
    rows = np.arange(len(streamed)) if rows is None else rows
    pixels = streamed.read(rows)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, resident.images[rows])
    assert streamed.fingerprint() == resident.fingerprint()
    for ours, theirs in zip(pixel_statistics(streamed), pixel_statistics(resident), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_on_disk_is_the_folder_in_memory(root):
    streamed, resident = both(f"folder:{root}", image_size=8)
    assert streamed.description == resident.description
    for ours, theirs in zip(streamed[:3], resident[:3], strict=True):
        assert_same(ours, theirs)


def test_the_size_of_images_is_found_out(root):
    streamed, resident = both(f"folder:{root}")
    assert streamed.train.shape == resident.train.shape == (84, 84, 3)
    assert_same(streamed.valid, resident.valid)


def test_rows_of_any_shape_are_read_and_repeats_are_decoded_once(root, monkeypatch):
    streamed, resident = (data.train for data in both(f"folder:{root}", image_size=8))
    decoded, decode_into = [], decoding.decode_into
    monkeypatch.setattr(
        decoding,
        "decode_into",
        lambda images, *args, **kw: decoded.append(len(images)) or decode_into(images, *args, **kw),
    )
    for rows in (np.array([[3, 0], [3, -1], [7, 3]]), np.int32(2), np.zeros((0, 2), int)):
        np.testing.assert_array_equal(streamed.read(rows), resident.images[rows])
    assert decoded == [4, 1, 0]


def test_classes_are_selected_alike(root):
    streamed, resident = (
        data.train.select([4, 0, 2]) for data in both(f"folder:{root}", image_size=8)
    )
    assert_same(streamed, resident)
    assert_same(streamed.select([1]), resident.select([1]))
    assert streamed.select([]).num_images == 0
    assert streamed.select([1]).fingerprint() != streamed.fingerprint()


def test_what_is_finished_after_decoding_is_the_same(root):
    streamed, resident = (data.test for data in both(f"folder:{root}", image_size=8))
    turned = StreamedImages(
        **{name: getattr(streamed, name) for name in ("source", "order", "counts", "names")},
        **{name: getattr(streamed, name) for name in ("groups", "shape")},
        key="turned",
        form=decoding.Form(invert=True),
    )
    assert_same(turned, resident._replace(images=255 - resident.images))


def test_every_image_is_looked_at_once_and_for_all(root, monkeypatch):
    train, blocks = sources.load(f"folder:{root}", image_size=8, resident="never").train, []
    found = train.statistics(workers=0, progress=lambda *done: blocks.append(done))
    assert blocks == [(len(train), len(train))]
    assert found.histogram.sum() == len(train) * 8 * 8 * 3
    monkeypatch.setattr(decoding, "decode_into", None)  # Calling it would fail.
    again = sources.load(f"folder:{root}", image_size=8, resident="never")
    assert again.train.fingerprint() == train.fingerprint()
    with pytest.raises(TypeError):
        again.valid.statistics()


def test_the_statistics_of_several_processes_are_the_same(root, monkeypatch):
    pytest.importorskip("grain")
    monkeypatch.setattr("metajax.data.streamed._BLOCK_IMAGES", 5)
    streamed, resident = (data.train for data in both(f"folder:{root}", image_size=8))
    blocks = []
    found = streamed.statistics(workers=2, progress=lambda *done: blocks.append(done))
    assert found.fingerprint == resident.fingerprint()
    np.testing.assert_array_equal(found.histogram, resident.histogram())
    assert [done for done, _ in blocks] == [*range(5, len(streamed), 5), len(streamed)]


def test_images_that_are_gone_or_broken_are_named(root):
    streamed = sources.load(f"folder:{root}", image_size=8, resident="never").train
    files, _ = streamed.source.encoded(streamed.order[:2])
    files[0].unlink()
    files[1].write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"klasse . ä/0\..*No such file"):
        streamed.read(np.array([0]))
    with pytest.raises(DataError, match=r"klasse . ä/1\.... is not a readable image"):
        streamed.read(np.array([1]))
    with pytest.raises(DataError, match="is not a readable image"):
        streamed.fingerprint()


@pytest.mark.parametrize("share, kind", [(0.34, StreamedImages), (0.33, LabelledImages)])
def test_what_takes_more_than_a_third_of_memory_stays_on_disk(root, monkeypatch, share, kind):
    images = sources.load(f"folder:{root}", image_size=8, resident="always")
    taken = sum(part.images.nbytes for part in images[:3])
    given = sources.load(f"folder:{root}", image_size=8, memory=taken / share)
    assert isinstance(given.train, kind)
    monkeypatch.setattr(decoding, "memory", lambda: taken / share)
    assert isinstance(sources.load(f"folder:{root}", image_size=8).train, kind)


def test_headers_of_a_folder_are_read_once(root, monkeypatch):
    first = sources.load(f"folder:{root}")
    monkeypatch.setattr(decoding, "header", None)  # Calling it would fail.
    for resident in ("always", "never"):
        again = sources.load(f"folder:{root}", resident=resident, image_size=8, fit="pad")
        assert again.train.names == first.train.names


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resident": "never"}, "glyphs has no files to stream from; use resident='auto'"),
        ({"resident": "sometimes"}, "resident is 'sometimes'; use one of: auto, always, never"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(DataError, match=message):
        sources.load("glyphs", **options)


def test_a_store_of_images_on_disk_holds_all_but_pixels(root):
    streamed, resident = (data.train for data in both(f"folder:{root}", image_size=8))
    ours, theirs = class_store(streamed), class_store(resident)
    assert ours.features.shape == (0, 8, 8, 3) and theirs.features.shape[1:] == (8, 8, 3)
    jax.tree.map(np.testing.assert_array_equal, ours[1:], theirs[1:])
    with pytest.raises(DataError, match="need 9 rows per group"):
        EpisodeSampler(ways=2, shots=4, queries=5, rotations=True).check(ours)


class TestTfds:
    """Makes records of several splits, some without a label."""

    @pytest.fixture
    def folder(self, tmp_path):
        prepared = pytest.importorskip("prepared")
        rng = np.random.default_rng(1)
        kinds = prepared.tfds.features.ClassLabel(names=["insect", "mammal", "bird"])
        names = [f"class {i}" for i in range(8)]

        def record(label):
            image = prepared.png(tuple(int(value) for value in rng.integers(0, 256, 3)))
            return {"image": image, "label": label, "coarse_label": abs(label) % 3}

        labels = {"train": rng.integers(0, 6, 40).tolist(), "test": [3, -1, 7, 5, -1, 7, 0]}
        records = {split: [record(label) for label in of] for split, of in labels.items()}
        features = prepared.features_of(names=names, coarse_label=kinds)
        prepared.prepare(tmp_path, records, features=features, path="cifar100/1.0.0")
        return tmp_path

    def test_records_on_disk_are_those_in_memory(self, folder):
        streamed, resident = both("cifar100", data_dir=str(folder), split="random")
        for ours, theirs in zip(streamed[:3], resident[:3], strict=True):
            assert_same(ours, theirs)
        parts = streamed[:3]
        assert sum(len(part) for part in parts) == 45
        assert {name for part in parts for name in part.names} == {
            f"class {i}" for i in (0, 1, 2, 3, 4, 5, 7)
        }
        assert {group for part in parts for group in part.groups} == {"insect", "mammal", "bird"}

    def test_conversions_are_those_in_memory(self, folder):
        plain = sources.load("cifar100", data_dir=str(folder), split="random").train.images
        options = {"fit": "pad", "invert": "yes", "channels": 1, "split": "random", "image_size": 8}
        streamed, resident = both("cifar100", data_dir=str(folder), **options)
        assert_same(streamed.train, resident.train)
        assert streamed.notes == resident.notes == ("colour becomes grey",)
        luma = plain[:, :1, :1] @ np.array([[0.299], [0.587], [0.114]])
        np.testing.assert_allclose(
            resident.train.images, 255 - luma.repeat(8, 1).repeat(8, 2), atol=1
        )

    def test_labels_are_read_once(self, folder, monkeypatch):
        first = sources.load("cifar100", data_dir=str(folder), split="random", resident="never")
        monkeypatch.setattr(tfds_source.Records, "read", None)  # Calling it would fail.
        again = sources.load("cifar100", data_dir=str(folder), split="random", resident="never")
        np.testing.assert_array_equal(again.train.order, first.train.order)

    def test_what_is_pickled_is_small_and_opens_its_files_anew(self, folder):
        train = sources.load(
            "cifar100", data_dir=str(folder), split="random", resident="never"
        ).train
        pixels = train.read(np.arange(3))
        content = pickle.dumps(train)
        assert len(content) < 3000
        np.testing.assert_array_equal(pickle.loads(content).read(np.arange(3)), pixels)

    def test_broken_files_are_named(self, folder):
        train = sources.load(
            "cifar100", data_dir=str(folder), split="random", resident="never"
        ).train
        (records,) = folder.glob("cifar100/1.0.0/*train.array_record*")
        records.unlink()
        with pytest.raises(DataError, match="files of train are broken or missing"):
            pickle.loads(pickle.dumps(train)).read(np.arange(3))

    def test_metadata_decide_without_reading(self, folder, monkeypatch):
        monkeypatch.setattr("metajax.data.tfds.source.load", None)
        taken = 47 * 8 * 8 * 3
        options = {"data_dir": str(folder), "split": "random", "image_size": 8}
        images = sources.load("cifar100", memory=2.9 * taken, **options)
        assert isinstance(images.train, StreamedImages)
        with pytest.raises(TypeError):
            sources.load("cifar100", memory=3.1 * taken, **options)


@pytest.mark.parametrize("name", ["omniglot", "tiny_imagenet32"])
def test_real_images_on_disk_are_those_in_memory(name, session_cache, monkeypatch):
    if not (DATA_DIR and Path(DATA_DIR, name).is_dir()):
        pytest.skip(f"METAJAX_DATA_DIR holds no {name}")
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(session_cache))
    streamed, resident = both(name, data_dir=DATA_DIR)
    assert streamed.description == resident.description
    rows = np.random.default_rng(0).integers(0, resident.train.num_images, 500)
    assert_same(streamed.train, resident.train, rows=rows)
    assert_same(streamed.valid, resident.valid, rows=rows % resident.valid.num_images)
