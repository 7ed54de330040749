import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.toys import labelled_images
from metajax.data.images import LabelledImages
from metajax.episodes.choose import choose
from metajax.episodes.store import (
    EpisodeSampler,
    class_store,
    pixel_statistics,
)
from metajax.errors import DataError
from metajax.train import draw_tasks

KEY = jax.random.key(0)


def pixels(store, inputs):
    """Undoes the normalization, and returns the value of each constant image."""
    return np.rint(np.asarray(inputs * store.constants.scale + store.constants.mean) * 255).astype(
        int
    )[:, 0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 2**31 - 1), st.integers(0, 5000))
def test_choose_draws_different_integers_in_range(count, seed, more):
    size = count + more
    drawn = np.asarray(choose(jax.random.key(seed), size, count))
    assert len(set(drawn)) == count
    assert drawn.min() >= 0 and drawn.max() < size


def test_choose_is_uniform_over_ordered_samples():
    keys = jax.random.split(KEY, 60_000)
    drawn = jax.jit(jax.vmap(lambda key: choose(key, 5, 3)))(keys)
    counts = collections.Counter(map(tuple, np.asarray(drawn)))
    assert len(counts) == 60
    # Chi-squared of 59 degrees of freedom: 99.99% lie below 109.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 109


def test_choose_takes_a_traced_size():
    sizes = jnp.array([3, 30, 300])
    drawn = jax.vmap(lambda size: choose(KEY, size, 3))(sizes)
    assert sorted(np.asarray(drawn[0])) == [0, 1, 2]


def test_episodes_hold_differentimagesof_different_classes():
    data = labelled_images()
    store = class_store(data)
    sampler = EpisodeSampler(ways=4, shots=2, queries=3)
    episodes = jax.jit(lambda key: draw_tasks(sampler, store, key, 0, jnp.arange(50)))(KEY)[1]
    seen = set()
    for task in range(50):
        support, query = (
            pixels(store, batch.inputs[task]).reshape(4, -1)
            for batch in (episodes.support, episodes.query)
        )
        images = np.concatenate([support, query], axis=1)
        classes = images // 20
        assert (classes == classes[:, :1]).all(), "a row is one class"
        assert len(set(classes[:, 0])) == 4
        assert len(set(images.ravel())) == images.size, "support and query are disjoint"
        assert (images % 20 < data.counts[classes]).all()
        seen |= set(images.ravel())
    assert len(seen) == len(data.images), "every image gets its turn"
    np.testing.assert_array_equal(episodes.support.targets[0], [0, 0, 1, 1, 2, 2, 3, 3])


def test_labels_do_not_betray_the_order_of_classes():
    store = class_store(labelled_images())
    sampler = EpisodeSampler(ways=2, shots=1, queries=1)
    draws = jax.vmap(lambda key: sampler.identify(store, key))(jax.random.split(KEY, 2000))
    ascending = np.mean(np.asarray(draws.rows[:, 0, 0] < draws.rows[:, 1, 0]))
    assert abs(ascending - 0.5) < 0.05


def test_an_episode_is_a_function_of_seed_step_and_task():
    store = class_store(labelled_images())
    sampler = EpisodeSampler(ways=3, shots=1, queries=2)
    four = draw_tasks(sampler.identify, store, KEY, 7, jnp.arange(4))[1]
    eight = jax.jit(lambda: draw_tasks(sampler.identify, store, KEY, 7, jnp.arange(8)))()[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:4]), four, eight)
    other_step = draw_tasks(sampler.identify, store, KEY, 8, jnp.arange(4))[1]
    assert (four.rows != other_step.rows).any()


def test_identify_names_the_images_of_the_episode():
    store = class_store(labelled_images())
    sampler = EpisodeSampler(ways=3, shots=1, queries=2)
    draw, episode = sampler.identify(store, KEY), sampler(store, KEY)
    values = np.asarray(store.features)[np.asarray(draw.rows)][..., 0, 0, 0]
    np.testing.assert_array_equal(values[:, 0], pixels(store, episode.support.inputs))
    np.testing.assert_array_equal(values[:, 1:].ravel(), pixels(store, episode.query.inputs))


def test_rotations_are_further_classes():
    corner = np.zeros((2, 4, 4, 1), np.uint8)
    corner[:, 0, 1] = 255
    store = class_store(LabelledImages.from_labels(corner, np.array([0, 0]), ["corner"]))
    episode = EpisodeSampler(ways=4, shots=1, queries=1, rotations=True)(store, KEY)
    images = np.asarray(episode.support.inputs[..., 0])
    expected = [np.rot90(images[0], k) for k in range(4)]
    found = {k for image in images for k in range(4) if np.array_equal(image, expected[k])}
    assert found == {0, 1, 2, 3}
    np.testing.assert_array_equal(episode.query.inputs, episode.support.inputs)


def test_normalisation_is_that_of_the_training_split():
    data = labelled_images(channels=2)
    mean, deviation = pixel_statistics(data)
    np.testing.assert_allclose(mean, (data.images / 255).mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(deviation, (data.images / 255).std((0, 1, 2)), rtol=1e-5)
    store = class_store(data, statistics=(np.array([0.25, 0.5]), np.array([0.5, 2.0])))
    episode = EpisodeSampler(ways=2, shots=1, queries=1)(store, KEY)
    raw = np.asarray(episode.support.inputs) * [0.5, 2.0] + [0.25, 0.5]
    np.testing.assert_allclose(raw[..., 0], raw[..., 1], rtol=1e-5)


def test_variable_ways_and_shots_stay_in_bounds_and_keep_real_images():
    store = class_store(labelled_images())
    sampler = EpisodeSampler(ways=5, shots=3, queries=2, min_ways=2, min_shots=1)
    episodes = draw_tasks(sampler, store, KEY, 0, jnp.arange(200))[1]
    support = np.asarray(episodes.support.weights).reshape(200, 5, 3)
    query = np.asarray(episodes.query.weights).reshape(200, 5, 2)
    ways, shots = (support.sum(2) > 0).sum(1), support.max(1).sum(1)
    assert set(ways) == {2, 3, 4, 5} and set(shots) == {1, 2, 3}
    np.testing.assert_array_equal(support.sum((1, 2)), ways * shots)
    np.testing.assert_array_equal(query.sum((1, 2)), ways * 2)
    images = [pixels(store, x) for x in episodes.support.inputs]
    for values, weights in zip(images, support.reshape(200, -1), strict=True):
        kept = values[weights > 0]
        assert len(set(kept)) == len(kept)
        assert set(values) == set(kept), "padding repeats the task's own images"


def test_augmentation_changesimagesone_by_one():
    store = class_store(labelled_images())
    sampler = EpisodeSampler(
        ways=2,
        shots=2,
        queries=2,
        augment=lambda key, x: x + jax.random.bernoulli(key).astype(jnp.uint8),
    )
    plain = EpisodeSampler(ways=2, shots=2, queries=2)
    keys = jax.random.split(KEY, 50)
    changed, original = (jax.vmap(s, (None, 0))(store, keys).query.inputs for s in (sampler, plain))
    moved = np.abs(np.asarray(changed - original)).max((2, 3, 4)) > 1e-4
    assert 0.3 < moved.mean() < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ways": 13},
            "13 ways are more than the 12 groups of the store of test; use fewer",
        ),
        (
            {"shots": 6, "queries": 4},
            "need 10 rows per group, but a group of test has 6; use fewer",
        ),
    ],
)
def test_episodes_that_do_not_fit_are_refused(options, message):
    sizes = {"ways": 5, "shots": 1, "queries": 1, **options}
    with pytest.raises(DataError, match=message):
        EpisodeSampler(**sizes).check(class_store(labelled_images()), name="test")


def test_rotated_classes_count_four_times():
    sampler = EpisodeSampler(ways=48, shots=1, queries=1, rotations=True)
    sampler.check(class_store(labelled_images()))
    oblong = class_store(
        LabelledImages.from_labels(np.zeros((2, 4, 6, 1), np.uint8), np.zeros(2, int), ["a"])
    )
    with pytest.raises(DataError, match="Rotations need square images, and these are 4 x 6"):
        EpisodeSampler(ways=1, shots=1, queries=1, rotations=True)(oblong, KEY)


def test_select_and_fingerprint_follow_the_classes():
    data = labelled_images()
    chosen = data.select([3, 1])
    assert chosen.names == ("class 3", "class 1")
    assert set(chosen.images[: chosen.counts[0]].ravel() // 20) == {3}
    assert data.fingerprint() == labelled_images().fingerprint() != chosen.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots is 0; use 1 or more"),
        ({"queries": 0}, "queries is 0; use 1 or more"),
        ({"min_ways": 6}, "min_ways is 6; use 1 to 5"),
        ({"min_shots": 0}, "min_shots is 0; use 1 to 1"),
    ],
)
def test_samplers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(**{"ways": 5, "shots": 1, "queries": 1, **options})


def test_features_with_swapped_axes_are_refused():
    sampler, store = EpisodeSampler(ways=5, shots=1, queries=3), class_store(labelled_images())
    rows = sampler.identify(store, KEY).rows
    with pytest.raises(AssertionError, match="shape"):
        sampler(store, KEY, store.take(rows.T))


def test_counts_that_do_not_sum_to_the_images_are_refused():
    data = labelled_images()
    with pytest.raises(DataError, match=r"The classes have \d+ images in all, but there are 3"):
        class_store(data._replace(images=data.images[:3]))
