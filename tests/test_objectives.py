import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from toys import classification_episode, linear_model

METRICS = {"accuracy": metajax.accuracy}


def episode_with(weights, dtype=jnp.float64):
    """Three ways, seven queries a class: 21 queries."""
    episode = classification_episode(jax.random.key(0), queries=7, dtype=dtype)
    if weights == "none":
        return episode
    values = jax.random.uniform(jax.random.key(1), (21,), dtype)
    if weights == "some zero":
        values = values.at[3:14].set(0)
    return episode._replace(query=episode.query._replace(weights=values))


def scored(episode, queries_at_once, *, vmapped=False):
    """The meta-gradient and the metrics."""
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=1)
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    objective = metajax.query_objective(
        learner, metajax.cross_entropy, metrics=METRICS, queries_at_once=queries_at_once
    )
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (jax.random.key(3), episode))
    if vmapped:
        return jax.jit(metajax.backprop(objective))(meta, *tasks)
    grads, metrics = jax.jit(jax.grad(objective, has_aux=True))(meta, jax.random.key(3), episode)
    return grads, metrics


@pytest.mark.parametrize("weights", ["none", "random", "some zero"])
@pytest.mark.parametrize("queries_at_once", [4, 7])
def test_chunks_give_the_loss_metrics_and_meta_gradient_of_all(float64, weights, queries_at_once):
    episode = episode_with(weights)
    whole, chunked = scored(episode, None), scored(episode, queries_at_once)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), chunked, whole
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[0])) > 1e-3


def test_chunks_work_for_many_tasks(float64):
    episode = episode_with("random")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        scored(episode, 4, vmapped=True),
        scored(episode, None),
    )


@pytest.mark.parametrize("queries_at_once", [21, 100])
def test_one_chunk_is_no_scan(queries_at_once):
    episode = episode_with("none", jnp.float32)
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=0)
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    programs = [
        str(
            jax.make_jaxpr(
                metajax.query_objective(learner, metajax.cross_entropy, queries_at_once=count)
            )(meta, jax.random.key(3), episode)
        )
        for count in (None, queries_at_once)
    ]
    assert programs[0] == programs[1]


def test_regression_targets_are_chunked_too(float64):
    inputs = jax.random.normal(jax.random.key(0), (9, 4))
    batch = metajax.Batch(inputs, jnp.sin(inputs[:, :3]))
    learner = metajax.maml(linear_model(5, 3), metajax.squared_error, rule=optax.sgd(0.1), steps=1)
    meta = learner.init(jax.random.key(1), inputs)
    values = [
        metajax.query_objective(learner, metajax.squared_error, queries_at_once=count)(
            meta, jax.random.key(2), metajax.Episode(batch, batch)
        )[0]
        for count in (None, 2)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


def test_memory_is_that_of_a_chunk():
    learner = metajax.maml(linear_model(64, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=1)
    episode = classification_episode(jax.random.key(0), queries=2000)
    meta = learner.init(jax.random.key(1), episode.support.inputs)

    def temporary_bytes(queries_at_once):
        objective = metajax.query_objective(
            learner, metajax.cross_entropy, queries_at_once=queries_at_once
        )
        grad = jax.jit(jax.grad(objective, has_aux=True))
        compiled = grad.lower(meta, jax.random.key(2), episode).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(None)
    assert whole > 6000 * 64 * 4, "the hidden layer of every query"
    assert temporary_bytes(200) < whole / 4


def test_all_weights_zero_is_nan_as_in_a_mean_of_nothing():
    episode = episode_with("random", jnp.float32)
    empty = episode.query._replace(weights=jnp.zeros(21))
    _, metrics = scored(episode._replace(query=empty), 4)
    assert np.isnan(metrics["loss"])


def test_no_query_at_once_is_refused():
    with pytest.raises(ValueError, match="queries_at_once is 0; use 1 or more, or None"):
        metajax.query_objective(None, metajax.cross_entropy, queries_at_once=0)
