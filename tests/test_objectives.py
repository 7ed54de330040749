import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.objectives import at_step
from toys import classification_episode, linear_model

METRICS = {"accuracy": metajax.accuracy, "auroc": metajax.metrics.auroc()}


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


def multi_step(weights, *, steps=1, dtype=jnp.float64):
    episode = classification_episode(jax.random.key(0), dtype=dtype)
    learner = metajax.maml(
        linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=steps
    )
    meta = learner.init(jax.random.key(2), episode.support.inputs)
    objective = metajax.multi_step_objective(
        learner, metajax.cross_entropy, weights=weights, metrics=METRICS
    )
    return objective, meta, episode


def plain(steps):
    learner = metajax.maml(
        linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=steps
    )
    return metajax.query_objective(learner, metajax.cross_entropy, metrics=METRICS)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14), a, b)


def test_all_weight_on_the_last_call_is_the_objective_of_all_its_steps(float64):
    objective, meta, episode = multi_step(lambda step: jnp.array([0.0, 0, 1]), steps=2)
    multi = jax.value_and_grad(objective.at(jnp.int32(0)), has_aux=True)
    single = jax.value_and_grad(plain(6), has_aux=True)
    key = jax.random.key(3)
    assert_same(multi(meta, key, episode), single(meta, key, episode))


def test_the_loss_is_the_weighted_sum_over_calls(float64):
    weights = jnp.array([0.2, 0.3, 0.5])
    objective, meta, episode = multi_step(lambda step: weights)
    key = jax.random.key(3)
    losses = [plain(steps)(meta, key, episode)[0] for steps in (1, 2, 3)]
    value, metrics = objective.at(jnp.int32(0))(meta, key, episode)
    np.testing.assert_allclose(value, weights @ jnp.stack(losses), rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], losses[-1], rtol=1e-12)


def test_weights_move_to_the_last_call_and_always_sum_to_one():
    weights = metajax.annealed_weights(4, over=100)
    np.testing.assert_allclose(weights(0), np.full(4, 0.25), rtol=1e-6)
    np.testing.assert_allclose(weights(50), [0.125, 0.125, 0.125, 0.625], rtol=1e-6)
    for step in (97, 100, 10_000):
        np.testing.assert_allclose(weights(step)[:3], np.full(3, 0.0075), rtol=1e-5)
        np.testing.assert_allclose(weights(step).sum(), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="calls is 0 and over is 5"):
        metajax.annealed_weights(0, over=5)


@pytest.mark.parametrize("tasks_at_once", [None, 1])
@pytest.mark.parametrize("shards", [None, 2])
def test_a_switch_takes_each_objective_at_its_time(float64, tasks_at_once, shards):
    first_order = metajax.maml(
        linear_model(5, 3),
        metajax.cross_entropy,
        rule=optax.sgd(0.5),
        adjoint=metajax.ADJOINTS["first_order"],
    )
    before = metajax.query_objective(first_order, metajax.cross_entropy, metrics=METRICS)
    keys = jax.random.split(jax.random.key(3), 4)
    episodes = jax.vmap(lambda key: classification_episode(key, dtype=jnp.float64))(keys)
    meta = first_order.init(jax.random.key(2), episodes.support.inputs[0])

    def grads(objective, *step):
        meta_grad = metajax.backprop(objective, tasks_at_once=tasks_at_once)
        if shards:
            meta_grad = metajax.over_tasks(metajax.task_mesh(jax.devices()[:shards]), meta_grad)
        return jax.jit(meta_grad)(meta, keys, episodes, *step)

    switch = metajax.switch_at(10, before, plain(1))
    assert_same(grads(switch, jnp.int32(9)), grads(before))
    assert_same(grads(switch, jnp.int32(10)), grads(plain(1)))
    difference = optax.tree.sub(grads(before)[0], grads(plain(1))[0])
    assert optax.tree.norm(difference) > 1e-3


def test_a_switch_of_a_switch_takes_each_at_its_time(float64):
    third = metajax.Scheduled(lambda step: scaled(plain(3), step))
    switch = metajax.switch_at(2, plain(1), metajax.switch_at(4, plain(2), third))
    tasks = jax.tree.map(
        lambda leaf: leaf[None],
        (jax.random.key(3), classification_episode(jax.random.key(0), dtype=jnp.float64)),
    )
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    meta = learner.init(jax.random.key(2), tasks[1].support.inputs[0])
    expected = {1: plain(1), 2: plain(2), 3: plain(2), 4: scaled(plain(3), 4)}
    switched = jax.jit(metajax.backprop(switch))
    for step, objective in expected.items():
        found = switched(meta, *tasks, jnp.int32(step))
        assert_same(found, metajax.backprop(objective)(meta, *tasks))


def scaled(objective, factor):
    def scaled_objective(meta, key, episode):
        loss, metrics = objective(meta, key, episode)
        return factor * loss, metrics

    return scaled_objective


def test_a_switch_keeps_the_intermediate_results_of_one_objective_only():
    def learner(steps):
        return metajax.maml(
            linear_model(64, 3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=steps
        )

    every = metajax.multi_step_objective(
        learner(1), metajax.cross_entropy, weights=lambda step: jnp.full(4, 1 / 4)
    )
    last = metajax.query_objective(learner(5), metajax.cross_entropy)
    keys = jax.random.split(jax.random.key(3), 2)
    episodes = jax.vmap(lambda key: classification_episode(key, queries=40))(keys)
    meta = learner(1).init(jax.random.key(2), episodes.support.inputs[0])

    def temporaries(objective):
        grad = jax.jit(metajax.backprop(objective))
        compiled = grad.lower(meta, keys, episodes, jnp.int32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    switch = metajax.switch_at(5, every, last)
    # The same choice, but differentiated.
    inside = metajax.Scheduled(lambda step: at_step(switch, step))
    alone = max(temporaries(objective) for objective in (every, last))
    assert temporaries(switch) < 1.1 * alone < temporaries(inside)


def test_a_switch_at_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="boundary is -1; use 0 or more"):
        metajax.switch_at(-1, plain(1), plain(2))


def test_a_scheduled_objective_asks_for_the_step():
    switch = metajax.switch_at(10, plain(1), plain(2))
    meta_grad = metajax.backprop(switch)
    episodes = jax.tree.map(lambda leaf: leaf[None], classification_episode(jax.random.key(0)))
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))
    meta = learner.init(jax.random.key(2), episodes.support.inputs[0])
    with pytest.raises(ValueError, match="scheduled, it depends on the outer step"):
        meta_grad(meta, jax.random.key(0)[None], episodes)


def test_a_penalty_is_added_to_the_loss_and_reported_apart():
    objective, meta, episode = multi_step(lambda step: jnp.ones(1), dtype=jnp.float32)
    del objective
    learner = metajax.maml(linear_model(5, 3), metajax.cross_entropy, rule=optax.sgd(0.5))

    def penalty(meta, fast):
        return 3 * jnp.sum((fast.params["body"] - meta.params["body"]) ** 2)

    objective = metajax.query_objective(learner, metajax.cross_entropy, penalty=penalty)
    value, metrics = objective(meta, jax.random.key(3), episode)
    assert metrics["penalty"] > 0
    np.testing.assert_allclose(value, metrics["loss"] + metrics["penalty"], rtol=1e-6)


def test_recomputing_keeps_no_more_of_many_calls_than_of_few(float64):
    def temporaries(calls, recompute):
        learner = metajax.maml(linear_model(64, 3), metajax.cross_entropy, rule=optax.sgd(0.1))
        episode = classification_episode(jax.random.key(0), queries=40)
        meta = learner.init(jax.random.key(2), episode.support.inputs)
        objective = metajax.multi_step_objective(
            learner,
            metajax.cross_entropy,
            weights=lambda step: jnp.full(calls, 1 / calls),
            recompute=recompute,
        ).at(jnp.int32(0))
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
        metajax.query_objective(
            learner, metajax.cross_entropy, metrics=metrics, queries_at_once=count
        )(meta, jax.random.key(3), episode)[1]
        for count in (None, 4)
    )
    assert 1 < whole["hits"] <= 21
    assert chunked["hits"] == whole["hits"]
    np.testing.assert_allclose(chunked["spread"], whole["spread"], rtol=1e-12)


def as_dict(batch):
    """Inputs [B, 4] as a dict of two arrays."""
    return batch._replace(inputs={"left": batch.inputs[:, :1], "right": batch.inputs[:, 1:]})


def reading_dicts(model):
    def joined(inputs):
        return jnp.concatenate([inputs["left"], inputs["right"]], axis=1)

    return metajax.types.Model(
        lambda key, inputs: model.init(key, joined(inputs)),
        lambda params, inputs: model.apply(params, joined(inputs)),
    )


@pytest.mark.parametrize(
    "kind", ["whole", "chunks", "beside", "minibatch", "multi_step", "sequence", "reptile"]
)
def test_inputs_may_be_a_dict(kind):
    episode = classification_episode(jax.random.key(0))
    metas = []
    plain, dicts = linear_model(5, 3), reading_dicts(linear_model(5, 3))
    for model, wrap in ((plain, lambda batch: batch), (dicts, as_dict)):
        minibatch = 2 if kind == "minibatch" else None
        learner = metajax.maml(
            model, metajax.cross_entropy, rule=optax.sgd(0.5), minibatch=minibatch
        )
        loss, tasks = metajax.cross_entropy, metajax.Episode(*map(wrap, episode))
        options = {
            "chunks": {"queries_at_once": 4},
            "beside": {"beside_support": True},
        }.get(kind, {})
        if kind == "multi_step":
            weights = metajax.annealed_weights(2, over=9)
            objective = metajax.multi_step_objective(
                learner, loss, weights=weights, queries_at_once=4
            ).at(jnp.int32(0))
        elif kind == "sequence":
            objective = metajax.sequence_objective(learner, loss, presentations=2)
        else:
            objective = metajax.query_objective(learner, loss, **options)
        meta = learner.init(jax.random.key(2), tasks.support.inputs)
        key = jax.random.key(3)
        if kind == "reptile":
            stacked = jax.tree.map(lambda leaf: leaf[None], (key, tasks))
            metas.append(metajax.reptile(learner, loss, queries_at_once=4)(meta, *stacked))
        else:
            metas.append(jax.value_and_grad(objective, has_aux=True)(meta, key, tasks))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *metas)


def test_inputs_of_different_lengths_are_refused():
    episode = classification_episode(jax.random.key(0))
    query = as_dict(episode.query)
    query.inputs["left"] = query.inputs["left"][:-1]
    learner = metajax.maml(
        reading_dicts(linear_model(5, 3)), metajax.cross_entropy, rule=optax.sgd(0.5)
    )
    support = as_dict(episode.support)
    meta = learner.init(jax.random.key(2), support.inputs)
    with pytest.raises(ValueError, match="inputs are of 5 and 6 examples"):
        metajax.query_objective(learner, metajax.cross_entropy)(
            meta, jax.random.key(3), metajax.Episode(support, query)
        )
