"""What each sampler draws of a key never changes: recorded numbers quote the hash of their test episodes."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.episodes.augment import AUGMENTATIONS, compose
from metajax.episodes.batches import BatchSampler
from metajax.episodes.images import LabelledImages
from metajax.episodes.pixels import PixelSampler
from metajax.episodes.sinusoids import SinusoidSampler
from metajax.episodes.store import EpisodeSampler, class_store
from metajax.episodes.tasks import label_noise
from metajax.train import draw_task, draw_tasks

STEP, TASKS = 3, 5
EVERYTHING = compose(tuple(AUGMENTATIONS))
# Mean and deviation of pixels, so that they are found again exactly.
STATISTICS = (np.array([0.25, 0.5], np.float32), np.array([0.5, 0.25], np.float32))
NOISE = functools.partial(label_noise, rate=0.5)
GOLDEN = {
    "plain": (EpisodeSampler(ways=5, shots=1, queries=3), "fab86d2f866e84aa", "496f4dbbe6b9cfaa"),
    "rotations": (
        EpisodeSampler(ways=17, shots=2, queries=2, rotations=True),
        "cf13cef3d9a07791",
        "394bec3698481b3b",
    ),
    "fewer ways": (
        EpisodeSampler(ways=6, shots=2, queries=2, min_ways=2),
        "d5b04bc902597448",
        "aac792ca42c63bd5",
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
        "accd096b217bb073",
        "83ba70fa7150a659",
    ),
    "batches": (BatchSampler(9), "6052a6bd7e477658", "2cefeb5d57ad72dc"),
    "turned batches": (
        BatchSampler(20, rotations=True, augment=EVERYTHING),
        "184221072825aa63",
        "226e85b78a972d3b",
    ),
    "pixels": (PixelSampler(7, 9, min_points=2), "b75f50d3df27600d", "5171c8ce0b18b9c9"),
    "all pixels": (PixelSampler(5), "a06f2097cffc8cee", "a3ec445e2550cbd8"),
}
# Of the classes and images that glyphs have, and of those of one test split of Omniglot.
SIZES = {"glyphs": (569, 20, "791c14d7a248c5c2"), "omniglot": (423, 20, "7c12e1746e2e9579")}


def sha256(tree):
    """Hashes integers, so that no rounding of a processor counts."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        assert array.dtype in (np.int32, np.uint8)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def integers(leaf, scale=1, offset=0):
    """Undoes a normalisation, or takes weights of zero and one; integers as they are."""
    leaf = np.asarray(leaf)
    if leaf.dtype == np.int32:
        return leaf
    exact = leaf * scale + offset
    assert np.abs(exact - np.rint(exact)).max() < 1e-2
    return np.rint(exact).astype(np.uint8)


def batch_integers(batch, height, width):
    """The pixels, labels and weights of episodes, or the places and values of completions."""
    weights = None if batch.weights is None else integers(batch.weights)
    if batch.targets.dtype == np.int32:
        pixels = (batch.inputs * STATISTICS[1] + STATISTICS[0]) * 255
        return integers(pixels), np.asarray(batch.targets), weights
    places = (batch.inputs + 1) * np.array([height, width]) / 2
    return integers(places, 1, -0.5), integers(batch.targets, 255), weights


@pytest.fixture(scope="module")
def data():
    """Twelve classes of 6 to 9 images of 6 x 6 x 2."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), rng.integers(6, 10, 12))
    images = rng.integers(0, 256, (len(labels), 6, 6, 2), np.uint8)
    return LabelledImages.from_labels(images, labels, [str(i) for i in range(12)])


@pytest.mark.parametrize("name", GOLDEN)
def test_samplers_draw_what_they_always_drew(data, name):
    sampler, drawn, seen = GOLDEN[name]
    store, key = class_store(data, statistics=STATISTICS), jax.random.key(1)

    @jax.jit
    def draw(store):
        named = draw_tasks(sampler.identify, store, key, STEP, TASKS)[1]
        return named, draw_tasks(sampler, store, key, STEP, TASKS)[1]

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
        key = jax.random.fold_in(jax.random.key(0), 0)
        return jax.vmap(lambda task: draw_task(sampler.identify, store, key, task)[1])(
            jnp.arange(50)
        )

    named = jax.tree.leaves(draw(class_store(data)))
    assert sha256([integers(leaf) for leaf in named]) == expected


def test_sinusoids_are_what_they_always_were():
    episode = SinusoidSampler(3, 4)(None, jax.random.key(0))
    np.testing.assert_allclose(
        episode.support.inputs[:, 0], [4.024495, 4.122929, -1.589524], rtol=1e-5
    )
    expected = [-1.328132, 4.201816, 0.221572, 3.539869]
    np.testing.assert_allclose(episode.query.targets[:, 0], expected, rtol=1e-4)
