import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data.images import LabelledImages
from metajax.episodes.pixels import PixelSampler, coordinates
from metajax.episodes.store import class_store
from metajax.errors import DataError
from metajax.train import draw_tasks

KEY = jax.random.key(0)
HEIGHT, WIDTH = 4, 6


# Three classes of 2, 3 and 5 images of 4 x 6 x 3.
IMAGES = LabelledImages.from_labels(
    np.random.default_rng(0).integers(0, 256, (10, HEIGHT, WIDTH, 3), np.uint8),
    np.repeat(np.arange(3), [2, 3, 5]),
    ["a", "b", "c"],
)


@pytest.fixture(scope="module")
def store():
    return class_store(IMAGES)


def drawn(sampler, store, count):
    """Returns the draws of some tasks, and their episodes."""
    every = jax.jit(
        lambda: [
            draw_tasks(f, store, KEY, 0, jnp.arange(count))[1] for f in (sampler.identify, sampler)
        ]
    )
    return jax.tree.map(np.asarray, every())


def places(inputs):
    """Computes the row and column of each pixel from coordinates in (-1, 1)."""
    return np.rint((np.asarray(inputs) + 1) * [HEIGHT / 2, WIDTH / 2] - 0.5).astype(int)


def test_coordinates_are_the_middles_of_pixels():
    found = coordinates(jnp.array([0, 5, 23]), HEIGHT, WIDTH)
    expected = [[-3 / 4, -5 / 6], [-3 / 4, 5 / 6], [3 / 4, 5 / 6]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_targets_are_the_pixels_at_the_inputs(store):
    draws, tasks = drawn(PixelSampler(points=5, queries=7), store, 200)
    images = np.asarray(store.features)[draws.rows] / 255
    for batch, pixels in ((tasks.support, draws.context), (tasks.query, draws.queries)):
        assert batch.weights is None
        rows, columns = np.moveaxis(places(batch.inputs), -1, 0)
        np.testing.assert_array_equal(rows * WIDTH + columns, pixels)
        expected = images[np.arange(200)[:, None], rows, columns]
        np.testing.assert_allclose(batch.targets, expected, rtol=1e-6)
        assert all(len(set(task)) == len(task) for task in pixels), "no pixel twice"
    shares = np.bincount(draws.rows, minlength=10) / 200
    np.testing.assert_allclose([shares[:2].sum(), shares[2:5].sum()], 1 / 3, atol=0.1)
    assert shares.min() > 0, "every image gets its turn"
    shared = [len(set(c) & set(q)) for c, q in zip(draws.context, draws.queries, strict=True)]
    # Seven of 24 pixels are asked for, whether or not they are among the five that are seen.
    assert np.mean(shared) == pytest.approx(5 * 7 / 24, abs=0.3)


def test_all_pixels_are_queries_unless_some_are_asked_for(store):
    draws, tasks = drawn(PixelSampler(points=2), store, 3)
    expected = np.asarray(store.features)[draws.rows] / 255
    np.testing.assert_allclose(tasks.query.targets, expected.reshape(3, -1, 3), rtol=1e-6)
    every = np.argwhere(np.ones((HEIGHT, WIDTH)))
    np.testing.assert_array_equal(places(tasks.query.inputs), [every] * 3)


def test_padding_repeats_at_weight_zero_what_are_the_first_of_more_points(store):
    draws, tasks = drawn(PixelSampler(points=6, queries=2, min_points=2), store, 300)
    np.testing.assert_array_equal(tasks.support.weights, draws.weights)
    counts = draws.weights.sum(1).astype(int)
    np.testing.assert_array_equal(draws.weights, np.arange(6) < counts[:, None])
    np.testing.assert_allclose(np.bincount(counts)[2:] / 300, [1 / 5] * 5, atol=0.08)
    more, _ = drawn(PixelSampler(points=20), store, 300)
    np.testing.assert_array_equal(draws.rows, more.rows)
    for count, context, order in zip(counts, draws.context, more.context, strict=True):
        np.testing.assert_array_equal(context, np.resize(order[:count], 6))


def test_what_cannot_be_drawn_is_refused(store):
    with pytest.raises(DataError, match="25 points are more than the 24 pixels of a 4 x 6 image"):
        PixelSampler(points=25).identify(store, KEY)
    with pytest.raises(DataError, match="30 queries are more than the 24 pixels"):
        PixelSampler(points=3, queries=30).check(IMAGES)
    with pytest.raises(DataError, match="The valid split has no images"):
        PixelSampler(points=3).check(IMAGES.select([]), name="valid")
    with pytest.raises(ValueError, match="min_points is 4; use 1 to 3"):
        PixelSampler(points=3, min_points=4)
    with pytest.raises(ValueError, match="queries is 0; use 1 or more"):
        PixelSampler(points=3, queries=0)
