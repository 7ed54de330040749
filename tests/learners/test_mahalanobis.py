import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.learners.metric.mahalanobis import mahalanobis_protonet
from metajax.learners.states import ABSENT
from metajax.objectives import query_outputs
from metajax.toys import toy_episode, toy_model
from metajax.types import Model

IDENTITY = Model(lambda key, inputs: {}, lambda params, inputs: inputs)
KEY = jax.random.key(0)


def task_of(shots):
    return toy_episode(jax.random.key(1), ways=2, shots=shots, queries=3, features=3)


@pytest.mark.parametrize("own", [0.1, 1.0])
@pytest.mark.parametrize("shots", [1, 4])
def test_logits_are_the_distances_of_the_paper(own, shots):
    task = task_of(shots)
    learner = mahalanobis_protonet(IDENTITY, ways=2, ridge=0.3, own=own)
    found = query_outputs(learner, learner.init(KEY, task.support.inputs), KEY, task)
    support, labels = np.asarray(task.support.inputs), np.asarray(task.support.targets)
    for k in (0, 1):
        mine = support[labels == k]
        spread = np.cov(mine.T) if shots > 1 else np.zeros((3, 3))
        share = min(shots / (shots + 1), own)
        shape = share * spread + (1 - share) * np.cov(support.T) + 0.3 * np.eye(3)
        away = np.asarray(task.query.inputs) - mine.mean(0)
        want = -np.einsum("bd,de,be->b", away, np.linalg.inv(shape), away)
        np.testing.assert_allclose(found[:, k], want, rtol=1e-4)


def test_a_large_ridge_is_the_euclidean_distance_and_padding_changes_nothing():
    task = task_of(4)
    learner = mahalanobis_protonet(IDENTITY, ways=2, ridge=1e6)
    meta = learner.init(KEY, task.support.inputs)
    euclidean = metajax.protonet(IDENTITY, ways=2)
    want = query_outputs(euclidean, euclidean.init(KEY, task.support.inputs), KEY, task)
    np.testing.assert_allclose(1e6 * query_outputs(learner, meta, KEY, task), want, rtol=1e-3)
    learner = mahalanobis_protonet(IDENTITY, ways=2)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:2]]), task.support)
    padded = padded._replace(weights=jnp.array([1.0] * 8 + [0.0] * 2))
    np.testing.assert_allclose(
        query_outputs(learner, meta, KEY, task._replace(support=padded)),
        query_outputs(learner, meta, KEY, task),
        rtol=1e-5,
    )


def test_the_ridge_is_learned_and_an_absent_class_has_no_chance():
    task = task_of(2)
    learner = mahalanobis_protonet(toy_model(None), ways=3, ridge=metajax.learned(0.1))
    meta = learner.init(KEY, task.support.inputs)
    assert (query_outputs(learner, meta, KEY, task)[:, 2] == ABSENT).all()
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    grads = jax.grad(lambda meta: objective(meta, KEY, task)[0])(meta)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)) and grads.scale != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways is 1"),
        ({"ways": 2, "own": 1.5}, r"own is 1\.5"),
        ({"ways": 2, "ridge": 0.0}, "ridge"),
    ],
)
def test_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        mahalanobis_protonet(IDENTITY, **options)
