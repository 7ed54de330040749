"""Query and multi-step objectives, chunks of queries, penalties, and trees of inputs and metrics."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model
from metajax import Scoring

METRICS = {"accuracy": metajax.accuracy, "auroc": metajax.metrics.auroc()}


def episode_with(weights, dtype=jnp.float64):
    """Draws an episode of three ways and seven queries per class: 21 queries."""
    episode = classification_episode(jax.random.key(0), queries=7, dtype=dtype)
    if weights == "none":
        return episode
    values = jax.random.uniform(jax.random.key(1), (21,), dtype)
    if weights == "some zero":
        values = values.at[3:14].set(0)
    return episode._replace(query=episode.query._replace(weights=values))


def scored(episode, chunk, *, vmapped=False):
    """Computes the meta-gradient and the metrics."""
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=1)
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    objective = metajax.query_objective(
        learner, Scoring(metajax.cross_entropy, METRICS, chunk=chunk)
    )
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (jax.random.key(3), episode))
    if vmapped:
        return jax.jit(metajax.backprop(objective))(meta, *tasks)
    grads, metrics = jax.jit(jax.grad(objective, has_aux=True))(meta, jax.random.key(3), episode)
    return grads, metrics


@pytest.mark.parametrize("weights", ["none", "random", "some zero"])
@pytest.mark.parametrize("chunk", [4, 7])
def test_chunks_give_the_loss_metrics_and_meta_gradient_of_all(float64, weights, chunk):
    episode = episode_with(weights)
    whole, chunked = scored(episode, None), scored(episode, chunk)
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


@pytest.mark.parametrize("chunk", [21, 100])
def test_one_chunk_is_no_scan(chunk):
    episode = episode_with("none", jnp.float32)
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=0)
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    programs = [
        str(
            jax.make_jaxpr(
                metajax.query_objective(learner, Scoring(metajax.cross_entropy, chunk=count))
            )(meta, jax.random.key(3), episode)
        )
        for count in (None, chunk)
    ]
    assert programs[0] == programs[1]


def test_regression_targets_are_chunked_too(float64):
    inputs = jax.random.normal(jax.random.key(0), (9, 4))
    batch = metajax.Batch(inputs, jnp.sin(inputs[:, :3]))
    learner = metajax.maml(linear_model(5, 3), metajax.squared_error, rule=optax.sgd(0.1), steps=1)
    meta = learner.init(jax.random.key(1), inputs)
    values = [
        metajax.query_objective(learner, Scoring(metajax.squared_error, chunk=count))(
            meta, jax.random.key(2), metajax.Episode(batch, batch)
        )[0]
        for count in (None, 2)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


def test_memory_is_that_of_a_chunk():
    learner = metajax.maml(linear_model(64, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=1)
    episode = classification_episode(jax.random.key(0), queries=2000)
    meta = learner.init(jax.random.key(1), episode.support.inputs)

    def temporary_bytes(chunk):
        objective = metajax.query_objective(learner, Scoring(metajax.cross_entropy, chunk=chunk))
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


def test_chunks_of_no_query_are_refused():
    with pytest.raises(ValueError, match="chunk is 0; use 1 or more, or None"):
        Scoring(metajax.cross_entropy, chunk=0)


def multi_step(weights, *, steps=1, penalty=None):
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    learner = metajax.maml(
        linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=steps
    )
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    objective = metajax.multi_step_objective(
        learner, Scoring(metajax.cross_entropy, METRICS, penalty), weights=weights
    )
    return objective, meta, episode


def plain(steps, penalty=None):
    learner = metajax.maml(
        linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=steps
    )
    return metajax.query_objective(learner, Scoring(metajax.cross_entropy, METRICS, penalty))


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14), a, b)


def test_all_weight_on_the_last_call_is_the_objective_of_all_its_steps(float64):
    objective, meta, episode = multi_step(jnp.array([0.0, 0, 1]), steps=2)
    multi = jax.jit(jax.value_and_grad(objective, has_aux=True))
    single = jax.jit(jax.value_and_grad(plain(6), has_aux=True))
    key = jax.random.key(3)
    assert_same(multi(meta, key, episode), single(meta, key, episode))


def test_the_loss_is_the_weighted_sum_over_calls(float64):
    weights = jnp.array([0.2, 0.3, 0.5])
    objective, meta, episode = multi_step(weights)
    key = jax.random.key(3)
    losses = [plain(steps)(meta, key, episode)[0] for steps in (1, 2, 3)]
    value, metrics = objective(meta, key, episode)
    np.testing.assert_allclose(value, weights @ jnp.stack(losses), rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], losses[-1], rtol=1e-12)


def test_weights_move_to_the_last_call_and_always_sum_to_one():
    weights = metajax.objectives.annealed_weights(4, over=100)
    np.testing.assert_allclose(weights(0), np.full(4, 0.25), rtol=1e-6)
    np.testing.assert_allclose(weights(50), [0.125, 0.125, 0.125, 0.625], rtol=1e-6)
    for step in (97, 100, 10_000):
        np.testing.assert_allclose(weights(step)[:3], np.full(3, 0.0075), rtol=1e-5)
        np.testing.assert_allclose(weights(step).sum(), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="calls is 0 and over is 5"):
        metajax.objectives.annealed_weights(0, over=5)


def test_a_penalty_is_added_to_the_loss_and_reported_apart(float64):
    def penalty(meta, fast):
        return 3 * jnp.sum((fast.params["body"] - meta.params["body"]) ** 2)

    objective, meta, episode = multi_step(jnp.array([0.25, 0.75]), penalty=penalty)
    ends = []
    for steps in (1, 2):
        value, metrics = plain(steps, penalty=penalty)(meta, jax.random.key(3), episode)
        assert metrics["penalty"] > 0
        np.testing.assert_allclose(value, metrics["loss"] + metrics["penalty"], rtol=1e-12)
        ends.append(value)
    value, found = objective(meta, jax.random.key(3), episode)
    np.testing.assert_allclose(value, 0.25 * ends[0] + 0.75 * ends[1], rtol=1e-12)
    assert_same(found, metrics)


def test_recomputing_keeps_no_more_of_many_calls_than_of_few(float64):
    def temporaries(calls, recompute):
        learner = metajax.maml(linear_model(64, 3), metajax.cross_entropy, rule=optax.sgd(0.1))
        episode = classification_episode(jax.random.key(0), queries=40)
        meta = learner.init(jax.random.key(2), episode.support.inputs)
        objective = metajax.multi_step_objective(
            learner,
            metajax.cross_entropy,
            weights=jnp.full(calls, 1 / calls),
            recompute=recompute,
        )
        grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
        compiled = grad.lower(meta, jax.random.key(3), episode).compile()
        value = compiled(meta, jax.random.key(3), episode)
        return compiled.memory_analysis().temp_size_in_bytes, value

    (few, _), (many, value) = (temporaries(calls, True) for calls in (4, 32))
    kept, expected = temporaries(32, False)
    assert many - few < 0.2 * (kept - few)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), value, expected
    )


def test_metrics_see_the_whole_query_set_whatever_the_chunks(float64):
    episode = episode_with("random")
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    metrics = {
        "hits": lambda outputs, batch: jnp.sum(jnp.argmax(outputs, -1) == batch.targets),
        "spread": lambda outputs, batch: jnp.max(outputs) - jnp.median(outputs),
    }
    whole, chunked = (
        metajax.query_objective(learner, Scoring(metajax.cross_entropy, metrics, chunk=count))(
            meta, jax.random.key(3), episode
        )[1]
        for count in (None, 4)
    )
    assert 1 < whole["hits"] <= 21
    assert chunked["hits"] == whole["hits"]
    np.testing.assert_allclose(chunked["spread"], whole["spread"], rtol=1e-12)


def as_dict(batch):
    """Turns inputs [B, 4] into a dict of two arrays."""
    return batch._replace(inputs={"left": batch.inputs[:, :1], "right": batch.inputs[:, 1:]})


def reading_dicts(model):
    """Wraps a model to read dicts of two arrays."""

    def joined(inputs):
        return jnp.concatenate([inputs["left"], inputs["right"]], axis=1)

    return metajax.types.Model(
        lambda key, inputs: model.init(key, joined(inputs)),
        lambda params, inputs: model.apply(params, joined(inputs)),
    )


class Label(NamedTuple):
    label: jax.Array
    far: jax.Array


def as_tree(batch):
    """Turns inputs [B, 4] into a dict of two arrays, and labels into a pair of label and number."""
    return as_dict(batch)._replace(targets=Label(batch.targets, batch.inputs.sum(axis=1)))


def loss_of_tree(outputs, batch):
    return metajax.cross_entropy(outputs, batch._replace(targets=batch.targets.label))


KINDS = {
    "whole": metajax.query_objective,
    "chunks": lambda learner, loss: metajax.query_objective(learner, Scoring(loss, chunk=4)),
    "one_query": lambda learner, loss: metajax.query_objective(
        metajax.one_query_at_a_time(learner), loss
    ),
    "minibatch": metajax.query_objective,
    "multi_step": lambda learner, loss: metajax.multi_step_objective(
        learner, Scoring(loss, chunk=4), weights=jnp.array([0.5, 0.5])
    ),
    "sequence": functools.partial(metajax.objectives.sequence_objective, presentations=2),
    "adversarial": functools.partial(
        metajax.objectives.adversarial_objective,
        attack=metajax.objectives.Attack(0.2),
        attack_support=True,
    ),
}


@pytest.mark.parametrize("kind", [*KINDS, "reptile"])
def test_inputs_and_targets_may_be_trees(kind):
    episode, key = classification_episode(jax.random.key(0)), jax.random.key(3)
    found = []
    for model, wrap, loss in (
        (linear_model(5, 3), lambda batch: batch, metajax.cross_entropy),
        (reading_dicts(linear_model(5, 3)), as_tree, loss_of_tree),
    ):
        minibatch = 2 if kind == "minibatch" else None
        learner = metajax.maml(model, loss, rule=optax.sgd(0.5), minibatch=minibatch)
        task = metajax.Episode(*map(wrap, episode))
        meta = learner.init(jax.random.key(2), task.support.inputs)
        if kind == "reptile":
            stacked = jax.tree.map(lambda leaf: leaf[None], (key, task))
            found.append(jax.jit(metajax.reptile(learner, Scoring(loss, chunk=4)))(meta, *stacked))
        else:
            objective = jax.value_and_grad(KINDS[kind](learner, loss), has_aux=True)
            found.append(jax.jit(objective)(meta, key, task))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)


def test_inputs_of_different_lengths_are_refused():
    episode = classification_episode(jax.random.key(0))
    query = as_dict(episode.query)
    query.inputs["left"] = query.inputs["left"][:-1]
    learner = metajax.maml(
        reading_dicts(linear_model(5, 3)), metajax.cross_entropy, rule=optax.sgd(0.5)
    )
    support = as_dict(episode.support)
    meta = learner.init(jax.random.key(2), support.inputs)
    with pytest.raises(ValueError, match="inputs have 5 and 6 examples"):
        metajax.query_objective(learner, metajax.cross_entropy)(
            meta, jax.random.key(3), metajax.Episode(support, query)
        )


def test_metrics_may_be_trees_of_arrays():
    def metric(outputs, batch):
        hits = jnp.argmax(outputs, -1) == batch.targets
        return {"by_query": hits, "both": (jnp.sum(hits), jnp.max(outputs))}

    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    scoring = Scoring(metajax.cross_entropy, {"some": metric})
    keys = jax.random.split(jax.random.key(3), 2)
    tasks = jax.vmap(classification_episode)(keys)
    meta = learner.init(jax.random.key(2), tasks.support.inputs[0])
    objective = metajax.query_objective(learner, scoring)
    each = jax.vmap(objective, (None, 0, 0))(meta, keys, tasks)[1]
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
    assert mean["some"]["by_query"].shape == (6,) and 0 < mean["some"]["by_query"].mean() < 1
    for meta_grad in (
        metajax.backprop(objective),
        metajax.backprop(objective, tasks_at_once=1),
        metajax.reptile(learner, scoring),
    ):
        assert_close(jax.jit(meta_grad)(meta, keys, tasks)[1], mean)
    # With a tiny sigma both particles have the metrics of the unperturbed meta-parameters.
    of_particles = jax.jit(metajax.metagrads.evolution(objective, sigma=1e-7))(meta, keys, tasks)[1]
    estimator = metajax.metagrads.pes(learner, scoring, sigma=1e-7, unrolls=1)
    of_lives = jax.jit(estimator.update)(meta, estimator.init(meta, keys, tasks), keys, tasks)[2]
    for found in (of_particles, of_lives):
        del found["grad_variance"]
        assert_close(found, mean)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
