"""The draws of each sampler never change: recorded numbers quote the hash of their test episodes."""

import functools
import hashlib

import jax
import numpy as np
import pytest

from metajax.data.images import LabelledImages
from metajax.episodes.augment import AUGMENTATIONS, compose
from metajax.episodes.batches import BatchSampler
from metajax.episodes.changes import label_noise
from metajax.episodes.pixels import PixelSampler
from metajax.episodes.sinusoids import SinusoidSampler
from metajax.episodes.store import EpisodeSampler, class_store

EVERYTHING = compose(tuple(AUGMENTATIONS))
# Mean and deviation of pixels, so that they are found again exactly.
STATISTICS = (np.array([0.25, 0.5], np.float32), np.array([0.5, 0.25], np.float32))
NOISE = functools.partial(label_noise, rate=0.5)
GOLDEN = {
    "plain": (EpisodeSampler(ways=5, shots=1, queries=3), "9707214d56b12d52", "e9b5e2caaf285df9"),
    "rotations": (
        EpisodeSampler(ways=17, shots=2, queries=2, rotations=True),
        "f7d810f601ee878e",
        "9320eda0a7c90aeb",
    ),
    "fewer ways": (
        EpisodeSampler(ways=6, shots=2, queries=2, min_ways=2),
        "4df94261fd4eda8c",
        "3e966e4f864389da",
    ),
    "everything": (
        EpisodeSampler(
            ways=6,
            shots=3,
            queries=2,
            rotations=True,
            min_ways=2,
            min_shots=1,
            augment=EVERYTHING,
            changes=(NOISE, NOISE),
        ),
        "fd5cdb7a789bfb3a",
        "dd560a607129d138",
    ),
    "batches": (BatchSampler(9), "924403f5d9cd15fe", "341943ba95430ec5"),
    "turned batches": (
        BatchSampler(20, rotations=True, augment=EVERYTHING),
        "e23583fa4e289a97",
        "951e1e1807e318f1",
    ),
    "pixels": (PixelSampler(7, 9, min_points=2), "6c30cb7a60992e43", "bec55e0235382fcd"),
    "all pixels": (PixelSampler(5), "687d311ea60fd786", "450a49bac0e1977f"),
}
# Numbers of classes and images: glyphs, and one test split of Omniglot.
SIZES = {"glyphs": (569, 20, "bb1e8c0762996765"), "omniglot": (423, 20, "9d34a53f9fc6f21b")}


def sha256(tree):
    """Hashes integers, so that the rounding of a processor does not matter."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        assert array.dtype in (np.int32, np.uint8)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def integers(leaf, scale=1, offset=0):
    """Rounds normalized pixels, or weights of zero and one, to integers; integers stay as they are."""
    leaf = np.asarray(leaf)
    if leaf.dtype == np.int32:
        return leaf
    exact = leaf * scale + offset
    assert np.abs(exact - np.rint(exact)).max() < 1e-2
    return np.rint(exact).astype(np.uint8)


def batch_integers(batch, height, width):
    """Collects pixels, labels and weights of episodes, or places and values of completions."""
    weights = None if batch.weights is None else integers(batch.weights)
    if batch.targets.dtype == np.int32:
        pixels = (batch.inputs * STATISTICS[1] + STATISTICS[0]) * 255
        return integers(pixels), np.asarray(batch.targets), weights
    places = (batch.inputs + 1) * np.array([height, width]) / 2
    return integers(places, 1, -0.5), integers(batch.targets, 255), weights


@pytest.fixture(scope="module")
def data():
    """Makes twelve classes of 6 to 9 images of 6 x 6 x 2."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), rng.integers(6, 10, 12))
    images = rng.integers(0, 256, (len(labels), 6, 6, 2), np.uint8)
    return LabelledImages.from_labels(images, labels, [str(i) for i in range(12)])


@pytest.mark.parametrize("name", GOLDEN)
def test_samplers_draw_what_they_always_drew(data, name):
    sampler, drawn, seen = GOLDEN[name]
    store, keys = class_store(data, statistics=STATISTICS), jax.random.split(jax.random.key(1), 5)

    @jax.jit
    def draw(store):
        return jax.vmap(lambda key: (sampler.identify(store, key), sampler(store, key)))(keys)

    named, episodes = draw(store)
    assert sha256([integers(leaf) for leaf in jax.tree.leaves(named)]) == drawn
    assert sha256([batch_integers(batch, 6, 6) for batch in episodes]) == seen


@pytest.mark.parametrize("name", SIZES)
def test_episodes_of_benchmarks_are_what_they_always_were(name):
    classes, images, expected = SIZES[name]
    labels = np.repeat(np.arange(classes), images)
    pixels = np.zeros((len(labels), 1, 1, 1), np.uint8)
    data = LabelledImages.from_labels(pixels, labels, [str(i) for i in range(classes)])
    sampler = EpisodeSampler(ways=5, shots=1, queries=15, rotations=True)

    @jax.jit
    def draw(store):
        keys = jax.random.split(jax.random.key(0), 50)
        return jax.vmap(lambda key: sampler.identify(store, key))(keys)

    named = jax.tree.leaves(draw(class_store(data)))
    assert sha256([integers(leaf) for leaf in named]) == expected


def test_sinusoids_are_what_they_always_were():
    episode = SinusoidSampler(3, 4)(None, jax.random.key(0))
    np.testing.assert_allclose(
        episode.support.inputs[:, 0], [4.024495, 4.122929, -1.589524], rtol=1e-5
    )
    expected = [-1.328132, 4.201816, 0.221572, 3.539869]
    np.testing.assert_allclose(episode.query.targets[:, 0], expected, rtol=1e-4)
