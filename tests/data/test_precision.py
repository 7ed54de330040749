"""Episodes are the same, bit for bit and in type, whether JAX computes in 64 bits or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.toys import classification_episode, labelled_images
from metajax.episodes.augment import AUGMENTATIONS, compose
from metajax.episodes.batches import BatchSampler
from metajax.episodes.changes import label_noise, mix_classes, project
from metajax.episodes.pixels import PixelSampler, coordinates
from metajax.episodes.sinusoids import SinusoidSampler
from metajax.episodes.store import EpisodeSampler, class_store
from metajax.inner.per_step import draw_minibatches
from metajax.train import draw_tasks

EVERYTHING = compose(tuple(AUGMENTATIONS))
# Of few classes, with every option that draws.
SAMPLERS = {
    "episodes": EpisodeSampler(
        ways=3,
        shots=2,
        queries=2,
        rotations=True,
        min_ways=2,
        min_shots=1,
        augment=EVERYTHING,
        changes=(functools.partial(label_noise, rate=0.5),),
    ),
    "plain episodes": EpisodeSampler(ways=3, shots=2, queries=2),
    "batches": BatchSampler(6, rotations=True, augment=EVERYTHING),
    "pixels": PixelSampler(5, 6, min_points=2),
    "all pixels": PixelSampler(5),
    "sinusoids": SinusoidSampler(3, 4),
}


def in_both_precisions(make):
    """Returns the results of `make()` without and with 64 bits, as NumPy arrays."""
    found = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            found.append(jax.tree.map(np.asarray, make()))
    return found


def assert_same(narrow, wide):
    assert jax.tree.structure(narrow) == jax.tree.structure(wide)
    for before, after in zip(*map(jax.tree.leaves, (narrow, wide)), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_same(name):
    sampler, data = SAMPLERS[name], labelled_images(classes=6, size=4)

    def drawn():
        # Statistics of the users' own are as wide as NumPy's.
        store = class_store(data, statistics=(np.full(1, 0.4), np.full(1, 0.3)))

        @jax.jit
        def draw(key):
            _, episodes = draw_tasks(sampler, store, key, 3, jnp.arange(4))
            return episodes, draw_tasks(sampler.identify, store, key, 3, jnp.arange(4))[1]

        return draw(jax.random.key(1))

    narrow, wide = in_both_precisions(drawn)
    assert_same(narrow, wide)
    assert len(np.unique(narrow[0].query.inputs[0])) > 1


@pytest.mark.parametrize("change", [mix_classes, project])
def test_every_change_is_the_same(change):
    def changed():
        episode = classification_episode(jax.random.key(4))
        # Not compiled: a compiler may round sums of products otherwise where indices are wider.
        return [change(jax.random.key(5), episode, 3)[i].inputs for i in range(2)]

    assert_same(*in_both_precisions(changed))


def test_minibatches_and_coordinates_are_the_same():
    def drawn():
        weights = jnp.array([1, 0, 1, 1, 1], jnp.float32)
        key = jax.random.key(2)
        of_all = draw_minibatches(key, None, 5, 2, 4)
        return of_all, draw_minibatches(key, weights, 5, 2, 4), coordinates(jnp.arange(6), 2, 3)

    (of_all, some, places), wide = in_both_precisions(drawn)
    for narrow, other in zip((of_all, some, places), wide, strict=True):
        np.testing.assert_array_equal(narrow, other)
    assert wide[2].dtype == np.float32
