"""Ensembles, model soups and selected members, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model, normed_model
from metajax.learners.wrappers.ensembles import (
    ensemble,
    mean_values,
    mixed_ensemble,
    model_soup,
    select_member,
)

KEY = jax.random.key(0)


def members(count):
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.4), steps=2)
    episode = classification_episode(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), count)
    metas = jax.vmap(lambda key: learner.init(key, episode.support.inputs))(keys)
    each = [
        metajax.objectives.query_outputs(
            learner, jax.tree.map(lambda leaf, i=i: leaf[i], metas), jax.random.key(2), episode
        )
        for i in range(count)
    ]
    return learner, episode, metas, jnp.stack(each)


def test_the_answer_is_the_mean_probability_of_the_members():
    learner, episode, metas, each = members(3)
    mixed_ensemble = metajax.objectives.query_outputs(
        ensemble(learner), metas, jax.random.key(2), episode
    )
    expected = jax.nn.softmax(each, axis=-1).mean(axis=0)
    np.testing.assert_allclose(jnp.exp(mixed_ensemble), expected, rtol=1e-5)


def test_values_are_averaged_as_they_are():
    learner, episode, metas, each = members(3)
    mixed_ensemble = ensemble(learner, combine=mean_values)
    outputs = metajax.objectives.query_outputs(mixed_ensemble, metas, jax.random.key(2), episode)
    np.testing.assert_allclose(outputs, each.mean(axis=0), rtol=1e-5)


def test_one_member_answers_like_itself_and_is_what_init_makes():
    learner, episode, metas, each = members(1)
    mixed_ensemble = metajax.objectives.query_outputs(
        ensemble(learner), metas, jax.random.key(2), episode
    )
    np.testing.assert_allclose(mixed_ensemble, jax.nn.log_softmax(each[0]), rtol=1e-5)
    made = ensemble(learner).init(jax.random.key(3), episode.support.inputs)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, metas)


@pytest.mark.parametrize("jitted", [False, True])
def test_members_adapt_by_themselves_under_jit_and_vmap(jitted):
    learner, _, metas, _ = members(2)
    both = ensemble(learner)
    episodes = jax.vmap(classification_episode)(jax.random.split(jax.random.key(4), 3))

    def outputs(episode):
        return metajax.objectives.query_outputs(both, metas, jax.random.key(2), episode)

    many = jax.vmap(outputs)
    many = jax.jit(many) if jitted else many
    loop = [outputs(jax.tree.map(lambda x, i=i: x[i], episodes)) for i in range(3)]
    np.testing.assert_allclose(many(episodes), jnp.stack(loop), rtol=1e-4, atol=1e-6)


def test_a_soup_of_equal_members_is_one_of_them_and_of_two_their_mean():
    learner, episode, metas, each = members(2)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf[1], leaf[1]]), metas)
    outputs = metajax.objectives.query_outputs(
        model_soup(learner), twice, jax.random.key(2), episode
    )
    np.testing.assert_allclose(outputs, each[1], rtol=1e-5)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), metas)
    expected = metajax.objectives.query_outputs(learner, mean, jax.random.key(2), episode)
    outputs = metajax.objectives.query_outputs(
        model_soup(learner), metas, jax.random.key(2), episode
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_the_member_answers_that_predicts_left_out_examples_best():
    learner, episode, metas, _ = members(2)
    objective = metajax.query_objective(learner, metajax.cross_entropy)

    def sample(data, key):
        del data
        return classification_episode(key, shots=3)

    optimizer = optax.adam(0.02)
    step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=8)
    second = jax.tree.map(lambda leaf: leaf[1], metas)
    state = metajax.init_state(second, optimizer, jax.random.key(5))
    trained, _ = jax.jit(metajax.many_steps(step, 150))(state, None)
    both = jax.tree.map(lambda a, b: jnp.stack([a[0], b]), metas, trained.meta)
    best = select_member(learner, metajax.cross_entropy)
    episode = classification_episode(jax.random.key(6), shots=3)
    fast = best.adapt(both, best.start(both, KEY), KEY, episode.support)
    assert fast.chosen == 1
    expected = learner.predict(
        trained.meta,
        learner.adapt(trained.meta, learner.start(trained.meta, KEY), KEY, episode.support),
        episode.query.inputs,
    )
    outputs = best.predict(both, fast, episode.query.inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    # The score is the mean over examples of the loss of each, adapted to all others.
    losses = []
    for place in range(9):
        rest = jax.tree.map(lambda leaf, p=place: jnp.delete(leaf, p, axis=0), episode.support)
        one = jax.tree.map(lambda leaf, p=place: leaf[p][None], episode.support)
        adapted = learner.adapt(trained.meta, learner.start(trained.meta, KEY), KEY, rest)
        losses.append(
            metajax.cross_entropy(learner.predict(trained.meta, adapted, one.inputs), one)
        )
    np.testing.assert_allclose(fast.scores[1], np.mean(losses), rtol=1e-4)


def test_learners_of_different_kinds_answer_together():
    learner, episode, *_ = members(1)
    other = metajax.anil(linear_model(4, 3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=1)
    both = mixed_ensemble(learner, other, combine=mean_values)
    meta = both.init(KEY, episode.support.inputs)
    outputs = metajax.objectives.query_outputs(both, meta, KEY, episode)
    each = [
        metajax.objectives.query_outputs(one, m, KEY, episode)
        for one, m in zip((learner, other), meta, strict=True)
    ]
    np.testing.assert_allclose(outputs, (each[0] + each[1]) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="no learner"):
        mixed_ensemble()


def test_members_that_keep_examples_have_room_for_them_in_every_combination():
    learner = metajax.matching(normed_model(5, None), ways=3)
    episode = classification_episode(jax.random.key(0))
    meta = learner.init(KEY, episode.support.inputs)
    expected = metajax.objectives.query_outputs(learner, meta, KEY, episode)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), meta)
    of_members = [make(learner) for make in (ensemble, model_soup, selecting)]

    @jax.jit
    def outputs():
        answers = [metajax.objectives.query_outputs(one, twice, KEY, episode) for one in of_members]
        both = mixed_ensemble(learner, learner)
        return [*answers, metajax.objectives.query_outputs(both, (meta, meta), KEY, episode)]

    for answers in outputs():
        np.testing.assert_allclose(answers, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_weights_of_numpy_select_as_others_do(kind):
    learner, episode, metas, _ = members(2)
    best, places = selecting(learner), np.array([1, 1, 0, 1, 1, 1])

    def scores(weights):
        support = episode.support._replace(weights=weights)
        return best.adapt(metas, best.start(metas, KEY), KEY, support).scores

    expected = scores(jnp.asarray(places, jnp.float32))
    np.testing.assert_array_equal(scores(places.astype(kind)), expected)


def selecting(learner):
    return select_member(learner, metajax.cross_entropy)
