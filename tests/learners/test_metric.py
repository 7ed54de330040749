"""Metric learners, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, normed_model
from metajax.inner.scalars import learned
from metajax.learners.metric.context import full_context_embeddings
from metajax.learners.metric.matching_networks import matching
from metajax.learners.metric.prototypes import protonet
from metajax.learners.metric.relation_networks import relation, relation_loss
from metajax.learners.states import ABSENT
from metajax.types import Batch, Model

IDENTITY = Model(init=lambda key, inputs: {}, apply=lambda params, inputs: inputs)
ENCODER = normed_model(5, None)
KEY = jax.random.key(0)
LEARNERS = {
    "euclidean": protonet(ENCODER, ways=3, scale=learned(1.0)),
    "cosine": protonet(ENCODER, ways=3, distance="cosine", scale=10.0),
    "matching": matching(ENCODER, ways=3, scale=learned(1.0)),
    "matching in context": matching(ENCODER, ways=3, context=full_context_embeddings(2)),
    "relation": relation(ENCODER, normed_model(4, 1), ways=3),
}


@pytest.fixture(params=list(LEARNERS))
def learner(request):
    return LEARNERS[request.param]


def answers(learner, meta, support, inputs):
    fast = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support)
    return learner.predict(meta, fast, inputs)


def part_of(batch, part):
    return jax.tree.map(lambda leaf: leaf[part], batch)


def test_one_shot_and_cosine_is_the_nearest_neighbour():
    learner = protonet(IDENTITY, ways=4, distance="cosine")
    points, queries = jax.random.normal(KEY, (4, 6)), jax.random.normal(jax.random.key(1), (20, 6))
    support = Batch(points, jnp.array([2, 0, 3, 1]))
    logits = answers(learner, learner.init(KEY, points), support, queries)
    cosines = np.asarray(queries @ points.T) / np.linalg.norm(points, axis=1)
    np.testing.assert_array_equal(logits.argmax(1), support.targets[cosines.argmax(1)])


def test_logits_are_minus_squared_distances_from_means(float64):
    learner = protonet(IDENTITY, ways=2, scale=0.5)
    support = Batch(
        jnp.array([[0.0, 0], [2, 0], [0, 4], [9, 9]]),
        jnp.array([0, 0, 1, 1]),
        jnp.array([1.0, 1, 1, 0]),
    )
    logits = answers(learner, learner.init(KEY, support.inputs), support, jnp.array([[1.0, 1]]))
    np.testing.assert_allclose(logits, [[-0.5 * 1, -0.5 * (1 + 9)]], rtol=1e-12)


def test_matching_at_one_shot_is_a_softmax_over_cosines():
    learner = matching(IDENTITY, ways=3, scale=4.0)
    points, queries = jax.random.normal(KEY, (3, 6)), jax.random.normal(jax.random.key(1), (5, 6))
    logits = answers(learner, learner.init(KEY, points), Batch(points, jnp.arange(3)), queries)
    units = [np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, points)]
    expected = jax.nn.log_softmax(4 * units[0] @ units[1].T)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_matching_adds_the_attention_of_a_class():
    learner = matching(IDENTITY, ways=2)
    support = Batch(jnp.array([[1.0, 0], [0, 1], [0, -1]]), jnp.array([0, 1, 1]))
    logits = answers(learner, learner.init(KEY, support.inputs), support, jnp.array([[3.0, 0]]))
    weights = np.exp([1.0, 0, 0])
    np.testing.assert_allclose(np.exp(logits[0, 0]), weights[0] / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits).sum(), 1, rtol=1e-5)


def test_relation_loss_is_the_squared_error_of_scores():
    outputs = jnp.array([[0.0, 0.0], [jnp.log(3.0), 0.0]])
    batch = Batch(jnp.zeros((2, 1)), jnp.array([0, 1]), jnp.array([1.0, 3.0]))
    expected = (0.5 + 3 * (0.75**2 + 0.25)) / 4
    np.testing.assert_allclose(relation_loss(outputs, batch), expected, rtol=1e-6)


def test_a_class_without_examples_is_never_the_answer(learner):
    episode = classification_episode(KEY)
    meta = learner.init(KEY, episode.support.inputs)
    some = part_of(episode.support, episode.support.targets != 1)

    def loss(meta):
        logits = answers(learner, meta, some, some.inputs)
        return metajax.cross_entropy(logits, some), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(meta)
    np.testing.assert_array_equal(logits[:, 1], ABSENT)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_learners_of_other_ways_share_meta_parameters():
    train, test = (protonet(ENCODER, ways=ways) for ways in (7, 3))
    episode = classification_episode(KEY)
    meta = train.init(KEY, episode.support.inputs)
    outputs = [answers(one, meta, episode.support, episode.query.inputs) for one in (train, test)]
    np.testing.assert_allclose(outputs[0][:, :3], outputs[1], rtol=1e-5)


def test_meta_gradient_against_finite_differences(float64, learner):
    episode = classification_episode(KEY, dtype=jnp.float64)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    meta = noisy(learner.init(KEY, episode.support.inputs), 0.1)
    assert relative_error(lambda meta: objective(meta, KEY, episode)[0], meta) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 0}, "ways is 0; use 1 or more"),
        ({"ways": 2, "scale": 0.0}, "scale is 0.0; use a finite number above 0"),
        ({"ways": 2, "distance": "manhattan"}, "'manhattan'; use one of euclidean, cosine"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        protonet(ENCODER, **options)
