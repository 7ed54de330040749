"""Batches of single images for supervised training."""

import jax
import numpy as np
import pytest

from helpers.toys import labelled_images
from metajax.episodes import store
from metajax.episodes.batches import BatchSampler
from metajax.errors import DataError

DATA = labelled_images(classes=5)
STORE = store.class_store(DATA, statistics=(np.zeros(1, np.float32), np.ones(1, np.float32)))


def test_every_image_has_the_number_of_its_class_and_none_comes_twice():
    batch = jax.jit(BatchSampler(20))(STORE, jax.random.key(0)).query
    pixels = np.round(np.asarray(batch.inputs)[:, 0, 0, 0] * 255).astype(int)
    np.testing.assert_array_equal(pixels // 20, batch.targets)  # as `labelled_images` draws them
    assert len(set(pixels)) == 20
    assert batch.inputs.shape == (20, 8, 8, 1) and batch.targets.dtype == np.int32


def test_every_image_is_drawn_alike():
    sampler, keys = BatchSampler(4), jax.random.split(jax.random.key(1), 2000)
    rows, _ = jax.jit(jax.vmap(lambda key: sampler.identify(STORE, key)))(keys)
    counts = np.bincount(np.asarray(rows).ravel(), minlength=len(DATA.images))
    expected = rows.size / len(DATA.images)
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_a_turned_class_is_another():
    images = labelled_images(classes=3)
    corner = images.images.copy()
    corner[:, 0, 0] = 255  # where it ends tells how often it was turned
    data = store.class_store(images._replace(images=corner))
    sampler = BatchSampler(18, rotations=True)
    assert sampler.num_classes(data) == 12
    batch = sampler(data, jax.random.key(2)).query
    for image, label in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        bright = [image[0, 0], image[-1, 0], image[-1, -1], image[0, -1]]
        assert int(np.argmax(bright)) == label // 3
    assert len(set(np.asarray(batch.targets) // 3)) == 4


def test_too_many_images_are_refused():
    with pytest.raises(DataError, match="A batch of 500 images is more than the"):
        BatchSampler(500).check(DATA)
    with pytest.raises(ValueError, match="images is 0"):
        BatchSampler(0)
