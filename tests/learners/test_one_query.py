"""Predictions of one query at a time, in a batch with the support inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import batch_normed_model, classification_episode

LOSS, KEY = metajax.cross_entropy, jax.random.key(2)


def setting():
    episode = classification_episode(jax.random.key(0), queries=4, dtype=jnp.float64)
    learner = metajax.maml(batch_normed_model(3), LOSS, rule=optax.sgd(0.4))
    return learner, learner.init(jax.random.key(1), episode.support.inputs), episode


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_no_query_depends_on_another(float64):
    learner, meta, episode = setting()
    one = metajax.one_query_at_a_time(learner)
    usual, alone = (
        jax.jit(lambda episode, of=of: metajax.objectives.query_outputs(of, meta, KEY, episode))
        for of in (learner, one)
    )
    fewer = episode._replace(query=jax.tree.map(lambda leaf: leaf[:2], episode.query))
    answers = alone(episode)
    assert_close(answers[:2], alone(fewer))
    assert np.abs(usual(episode)[:2] - usual(fewer)).max() > 1e-3
    adapt_key = jax.random.split(KEY)[1]
    fast = learner.adapt(meta, learner.start(meta, KEY), adapt_key, episode.support)
    both = jnp.concatenate([episode.support.inputs, episode.query.inputs[5:6]])
    assert_close(answers[5], learner.predict(meta, fast, both)[-1])
    loss, _ = metajax.query_objective(one, LOSS)(meta, KEY, episode)
    assert_close(loss, LOSS(answers, episode.query))
    with pytest.raises(ValueError, match=r"give it `like`, .* TaskEvidence `like=`"):
        one.start(meta, KEY)


def test_padding_takes_no_room_and_empty_rooms_repeat_the_examples(float64):
    learner, meta, episode = setting()
    one = metajax.one_query_at_a_time(learner)
    support, inputs = episode.support, episode.query.inputs[:1]
    start = one.start(meta, KEY, jax.eval_shape(lambda: support))
    shown = support._replace(weights=jnp.array([1.0, 0, 1, 0, 1, 1]))
    fast = one.adapt(meta, start, KEY, shown)
    rows = support.inputs[jnp.array([0, 2, 4, 5, 0, 2])]
    np.testing.assert_array_equal(fast.inputs[:4], rows[:4])
    both = jnp.concatenate([rows, inputs])
    assert_close(one.predict(meta, fast, inputs)[0], learner.predict(meta, fast.fast, both)[-1])
    assert one.adapted(fast) is fast.fast.params


def test_inputs_that_come_in_pieces_are_those_that_come_at_once(float64):
    learner, meta, episode = setting()
    one = metajax.one_query_at_a_time(learner)
    parts = jax.tree.map(lambda leaf: leaf.reshape(3, 2, *leaf.shape[1:]), episode.support)
    start = one.start(meta, KEY, episode.support)
    fast, _ = jax.lax.scan(
        lambda fast, part: (one.adapt(meta, fast, KEY, part), None), start, parts
    )
    np.testing.assert_array_equal(fast.inputs, episode.support.inputs)


@pytest.mark.parametrize("weights", [None, np.ones(6)])
def test_integer_inputs_without_room_make_answers_nan(weights, float64):
    _, _, episode = setting()
    pixels = episode.support._replace(inputs=jnp.arange(24).reshape(6, 4), weights=weights)
    model = metajax.Model(
        lambda key, inputs: jnp.ones((4, 3)) / 9, lambda params, inputs: jnp.tanh(inputs @ params)
    )
    one = metajax.one_query_at_a_time(metajax.maml(model, LOSS, rule=optax.sgd(0.4)))
    meta = one.init(KEY, pixels.inputs)

    def answers(pieces):
        fast = one.start(meta, KEY, pixels)
        for _ in range(pieces):
            fast = one.adapt(meta, fast, KEY, pixels)
        return one.predict(meta, fast, pixels.inputs)

    for pieces, broken in ((1, False), (2, True)):
        assert (np.isnan(jax.jit(answers, static_argnums=0)(pieces)) == broken).all()
