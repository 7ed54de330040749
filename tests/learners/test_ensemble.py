import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.learners.ensemble import ensemble, mean_values
from toys import classification_episode, linear_model


def members(count):
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.4), steps=2)
    episode = classification_episode(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), count)
    metas = jax.vmap(lambda key: learner.init(key, episode.support.inputs))(keys)
    each = [
        metajax.query_outputs(
            learner, jax.tree.map(lambda leaf, i=i: leaf[i], metas), jax.random.key(2), episode
        )
        for i in range(count)
    ]
    return learner, episode, metas, jnp.stack(each)


def test_the_answer_is_the_mean_probability_of_the_members():
    learner, episode, metas, each = members(3)
    together = metajax.query_outputs(ensemble(learner), metas, jax.random.key(2), episode)
    expected = jax.nn.softmax(each, axis=-1).mean(axis=0)
    np.testing.assert_allclose(jnp.exp(together), expected, rtol=1e-5)


def test_values_are_averaged_as_they_are():
    learner, episode, metas, each = members(3)
    together = ensemble(learner, combine=mean_values)
    outputs = metajax.query_outputs(together, metas, jax.random.key(2), episode)
    np.testing.assert_allclose(outputs, each.mean(axis=0), rtol=1e-5)


def test_one_member_answers_like_itself_and_is_what_init_makes():
    learner, episode, metas, each = members(1)
    together = metajax.query_outputs(ensemble(learner), metas, jax.random.key(2), episode)
    np.testing.assert_allclose(together, jax.nn.log_softmax(each[0]), rtol=1e-5)
    made = ensemble(learner).init(jax.random.key(3), episode.support.inputs)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, metas)


@pytest.mark.parametrize("jitted", [False, True])
def test_members_adapt_by_themselves_under_jit_and_vmap(jitted):
    learner, _, metas, _ = members(2)
    both = ensemble(learner)
    episodes = jax.vmap(classification_episode)(jax.random.split(jax.random.key(4), 3))

    def outputs(episode):
        return metajax.query_outputs(both, metas, jax.random.key(2), episode)

    many = jax.vmap(outputs)
    many = jax.jit(many) if jitted else many
    loop = [outputs(jax.tree.map(lambda x, i=i: x[i], episodes)) for i in range(3)]
    np.testing.assert_allclose(many(episodes), jnp.stack(loop), rtol=1e-4, atol=1e-6)
