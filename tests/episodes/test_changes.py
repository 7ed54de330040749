"""Augmentation of whole tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.toys import labelled_images
from metajax.episodes import store
from metajax.episodes.changes import label_noise, mix_classes, project
from metajax.types import Batch, Episode

KEY = jax.random.key(0)


def episode(ways=4, shots=3, queries=2):
    def batch(count):
        labels = jnp.repeat(jnp.arange(ways), count)
        return Batch(jnp.eye(ways)[labels], labels)

    return Episode(batch(shots), batch(queries))


def test_mixed_classes_are_blends_of_two_alike_in_support_and_query():
    mixed = mix_classes(KEY, episode(), 4)
    support, query = (np.asarray(b.inputs).reshape(4, -1, 4) for b in mixed)
    for label in range(4):
        # All inputs of a class are the same blend, with at least half of the class itself.
        np.testing.assert_array_equal(support[label], support[label][:1].repeat(3, 0))
        np.testing.assert_array_equal(query[label], support[label][:2])
        blend = support[label][0]
        assert blend[label] >= 0.5 and np.isclose(blend.sum(), 1)
        assert np.count_nonzero(blend) == 2
    np.testing.assert_array_equal(mixed.support.targets, episode().support.targets)


def test_a_projection_is_one_matrix_a_task_and_keeps_the_size_of_inputs():
    inputs = jax.random.normal(KEY, (12, 8, 8, 2))
    batch = Batch(inputs, jnp.repeat(jnp.arange(4), 3))
    made = project(KEY, Episode(batch, batch._replace(inputs=-2 * inputs)), 4)
    assert made.support.inputs.shape == inputs.shape
    np.testing.assert_allclose(made.query.inputs, -2 * made.support.inputs, rtol=1e-4, atol=1e-5)
    # A random matrix keeps lengths and angles of 128 numbers, in about, and no pixel.
    before, after = (np.asarray(x).reshape(12, -1) for x in (inputs, made.support.inputs))
    assert abs(np.square(after).mean() / np.square(before).mean() - 1) < 0.1
    assert np.abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.1
    other = project(jax.random.key(1), Episode(batch, batch), 4)
    assert not np.allclose(other.support.inputs, made.support.inputs)
    np.testing.assert_array_equal(made.support.targets, batch.targets)


def test_noisy_labels_are_others_at_the_rate_asked_for_and_queries_keep_theirs():
    clean = episode(shots=500)
    noisy = label_noise(KEY, clean, 4, rate=0.3)
    wrong = noisy.support.targets != clean.support.targets
    assert abs(float(wrong.mean()) - 0.3) < 0.05
    assert set(np.asarray(noisy.support.targets)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(noisy.query.targets, clean.query.targets)


def test_a_sampler_changes_what_it_has_drawn():
    data = store.class_store(labelled_images())
    shape = {"ways": 3, "shots": 2, "queries": 2}
    plain = store.EpisodeSampler(**shape)(data, KEY)
    changed = store.EpisodeSampler(**shape, changes=(mix_classes, label_noise))
    twice = [jax.jit(changed)(data, KEY) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *twice)
    assert not np.allclose(twice[0].query.inputs, plain.query.inputs)
    np.testing.assert_array_equal(twice[0].query.targets, plain.query.targets)


def tree_episode():
    """Replaces the inputs by several leaves, one of which holds categories."""
    whole = episode()

    def split(batch):
        parts = {"a": batch.inputs[:, :1, None], "b": batch.inputs[:, 1:]}
        return batch._replace(inputs=parts)

    return Episode(*(split(batch) for batch in whole))


@pytest.mark.parametrize("change", [mix_classes, project])
def test_inputs_of_several_leaves_change_as_one_vector(change):
    whole, parts = change(KEY, episode(), 4), change(KEY, tree_episode(), 4)
    for one, other in zip(whole, parts, strict=True):
        joined = np.concatenate([other.inputs["a"][:, :, 0], other.inputs["b"]], axis=1)
        np.testing.assert_allclose(joined, one.inputs, rtol=1e-6)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_categories_are_not_blended_and_only_labels_get_noise():
    support = episode().support
    inputs = {"number": support.inputs, "category": support.targets}
    mixed = Episode(*[support._replace(inputs=inputs)] * 2)
    for change in (mix_classes, project):
        with pytest.raises(
            ValueError, match="needs inputs of floats, and category is int32; embed"
        ):
            change(KEY, mixed, 4)
    noisy = label_noise(KEY, mixed, 4, rate=1.0)
    assert (noisy.support.targets != support.targets).all() and noisy.support.inputs is inputs
    for targets, found in ((support.inputs, "float32"), ({"a": support.targets}, "int32")):
        rated = Episode(support._replace(targets=targets), support)
        with pytest.raises(ValueError, match=f"an array of labels, and the targets are of {found}"):
            label_noise(KEY, rated, 4)
