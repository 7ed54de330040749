"""Equalities between learners, and closed forms of their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import (
    batch_normed_model,
    classification_episode,
    linear_model,
    normed_model,
    point_model,
)
from metajax import trees
from metajax.inner.reparametrise import low_rank, with_context
from metajax.types import Batch, Model

LOSS = metajax.cross_entropy


def meta_gradient(learner, meta, episode):
    objective = metajax.query_objective(learner, LOSS)
    return jax.jit(jax.grad(lambda meta: objective(meta, jax.random.key(2), episode)[0]))(meta)


def answers(learner, meta, episode):
    return jax.jit(
        lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), episode)
    )(meta)


def assert_close(a, b, **tolerance):
    tolerance = {"rtol": 1e-9, "atol": 1e-12, **tolerance}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def setting(dtype=jnp.float64):
    model = normed_model(5, 3)
    episode = classification_episode(jax.random.key(0), dtype=dtype)
    return model, episode, model.init(jax.random.key(1), episode.support.inputs)


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_plus_plus_without_norms_at_equal_rates_is_maml(float64, steps):
    model, episode = (
        linear_model(5, 3),
        classification_episode(jax.random.key(0), dtype=jnp.float64),
    )
    plus, plain = (
        metajax.learners.maml_plus_plus(model, LOSS, learning_rate=0.4, steps=steps),
        metajax.maml(model, LOSS, rule=optax.sgd(0.4), steps=steps),
    )
    metas = [each.init(jax.random.key(1), episode.support.inputs) for each in (plus, plain)]
    assert_close(answers(plus, metas[0], episode), answers(plain, metas[1], episode))
    assert_close(
        meta_gradient(plus, metas[0], episode).params,
        meta_gradient(plain, metas[1], episode).params,
    )


def test_maml_plus_plus_with_equal_rows_is_a_learner_with_fixed_norms(float64):
    model, episode, _ = setting()
    plus = metajax.learners.maml_plus_plus(model, LOSS, learning_rate=0.4, steps=3)
    fixed = metajax.learners.gradient_learner(
        model, LOSS, rule=optax.sgd(0.4), steps=3, adapts=trees.but(trees.in_norms)
    )
    meta = plus.init(jax.random.key(1), episode.support.inputs)
    assert meta.params["norm"]["scale"].shape == (3, 5)
    plain = fixed.init(jax.random.key(1), episode.support.inputs)
    assert_close(answers(plus, meta, episode), answers(fixed, plain, episode))
    grads, expected = meta_gradient(plus, meta, episode), meta_gradient(fixed, plain, episode)
    # The gradient of a norm shared by all steps is the sum of the gradients per step.
    summed = {**grads.params, "norm": {"scale": grads.params["norm"]["scale"].sum(0)}}
    assert_close(summed, expected.params)
    assert (jnp.abs(grads.params["norm"]["scale"]).max(axis=1) > 1e-6).all()
    assert {trees.size(rates) for rates in jax.tree.leaves(grads.rule)} == {3}


def test_later_steps_than_there_are_rows_take_the_last(float64):
    model, episode, _ = setting()
    few, many = (
        metajax.learners.maml_plus_plus(model, LOSS, learning_rate=0.4, steps=4, rows=rows)
        for rows in (2, 4)
    )
    meta = few.init(jax.random.key(1), episode.support.inputs)
    scale = jnp.array([1.0, 2.0])[:, None] * jnp.ones(5)
    rates = jax.tree.map(lambda rate: rate * jnp.array([1.0, 0.5]), meta.rule)
    meta = meta._replace(params={**meta.params, "norm": {"scale": scale}}, rule=rates)

    def longer(leaf):
        return jnp.concatenate([leaf, leaf[-1:], leaf[-1:]])

    longer_meta = meta._replace(
        params={**meta.params, "norm": {"scale": longer(scale)}},
        rule=jax.tree.map(longer, rates),
    )
    assert_close(answers(few, meta, episode), answers(many, longer_meta, episode))


@pytest.mark.parametrize("outputs", [6, 3])
def test_lora_at_full_rank_is_one_step_of_maml_on_that_layer(float64, outputs):
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    square = Model(
        lambda key, inputs: {"kernel": jax.random.normal(key, (4, outputs), inputs.dtype)},
        lambda params, inputs: inputs @ params["kernel"],
    )
    lora = metajax.learners.lora(square, LOSS, rule=optax.sgd(0.4), rank=6)
    plain = metajax.maml(square, LOSS, rule=optax.sgd(0.4))
    meta = lora.init(jax.random.key(1), episode.support.inputs)
    assert meta.params["factors"]["down"]["kernel"].shape == (4, 4)
    expected = plain.init(jax.random.key(1), episode.support.inputs)
    expected = expected._replace(params=meta.params["model"])
    assert_close(answers(lora, meta, episode), answers(plain, expected, episode))
    assert_close(
        meta_gradient(lora, meta, episode).params["model"],
        meta_gradient(plain, expected, episode).params,
    )


def test_low_rank_moves_a_kernel_along_its_rank_only(float64):
    model, episode, _ = setting()
    learner = metajax.learners.lora(model, LOSS, rule=optax.sgd(0.4), steps=4, rank=1)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    fast = learner.adapt(
        meta, learner.start(meta, jax.random.key(2)), jax.random.key(3), episode.support
    )
    factors = fast.params["factors"]
    moved = factors["down"]["body"] @ factors["up"]["body"]
    assert np.linalg.matrix_rank(moved, tol=1e-12) == 1
    assert factors["up"]["norm"]["scale"] is None


def test_cavia_with_a_context_that_is_the_last_bias_is_anil_on_that_bias(float64):
    model, episode, _ = setting()
    bias = trees.under("bias")
    cavia = metajax.learners.cavia(
        model, LOSS, rule=optax.sgd(0.4), steps=3, context_size=3, modulates=bias
    )
    meta = cavia.init(jax.random.key(1), episode.support.inputs)
    identity = {**meta.params["modulation"], "head": {"bias": jnp.eye(3), "kernel": None}}
    meta = meta._replace(params={**meta.params, "modulation": identity})
    anil = metajax.learners.gradient_learner(model, LOSS, rule=optax.sgd(0.4), steps=3, adapts=bias)
    plain = anil.init(jax.random.key(1), episode.support.inputs)
    plain = plain._replace(params=meta.params["model"])
    assert_close(answers(cavia, meta, episode), answers(anil, plain, episode))
    grads = meta_gradient(cavia, meta, episode)
    assert_close(grads.params["model"], meta_gradient(anil, plain, episode).params)
    assert_close(grads.params["context"], jnp.zeros(3))


def test_a_context_on_the_first_bias_is_more_inputs(float64):
    def apply(params, inputs):
        return jnp.tanh(inputs @ params["kernel"] + params["bias"]).sum(axis=1, keepdims=True)

    def init(key, inputs):
        return {"kernel": jax.random.normal(key, (2, 5)), "bias": jnp.ones(5)}

    model = with_context(Model(init, apply), 3)
    inputs = jax.random.normal(jax.random.key(0), (4, 2))
    params = model.init(jax.random.key(1), inputs)
    context = jnp.array([0.3, -1.0, 2.0])
    wide = {**params["model"]}
    wide["kernel"] = jnp.concatenate([wide["kernel"], params["modulation"]["bias"]])
    both = jnp.concatenate([inputs, jnp.broadcast_to(context, (4, 3))], axis=1)
    assert_close(model.apply({**params, "context": context}, inputs), apply(wide, both))


def test_warpgrad_preconditions_the_gradient_by_the_warp(float64):
    # Effective kernel K W: one step changes K by -rate G W^T, and so K W by -rate G W^T W.
    square = Model(
        lambda key, inputs: {"kernel": jax.random.normal(key, (4, 3), inputs.dtype)},
        lambda params, inputs: inputs @ params["kernel"],
    )
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    learner = metajax.learners.warpgrad(square, LOSS, rule=optax.sgd(0.4))
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    kernel, warp = meta.params["model"]["kernel"], jax.random.normal(jax.random.key(5), (3, 3))
    meta = meta._replace(params={**meta.params, "warp": {"kernel": warp}})
    effective = kernel @ warp
    grads = jax.grad(lambda k: LOSS(episode.support.inputs @ k, episode.support))(effective)
    moved = effective - 0.4 * grads @ warp.T @ warp
    assert_close(answers(learner, meta, episode), episode.query.inputs @ moved)


def test_warps_at_the_identity_are_maml(float64):
    model, episode, _ = setting()
    warped = metajax.learners.warpgrad(model, LOSS, rule=optax.sgd(0.4), steps=2)
    plain = metajax.maml(model, LOSS, rule=optax.sgd(0.4), steps=2)
    meta = warped.init(jax.random.key(1), episode.support.inputs)
    expected = plain.init(jax.random.key(1), episode.support.inputs)
    expected = expected._replace(params=meta.params["model"])
    assert_close(answers(warped, meta, episode), answers(plain, expected, episode))
    grads = meta_gradient(warped, meta, episode)
    assert_close(grads.params["model"], meta_gradient(plain, expected, episode).params)
    assert optax.tree.norm(grads.params["warp"]) > 1e-3


def test_boil_moves_everything_but_the_head():
    model, episode, _ = setting(jnp.float32)
    learner = metajax.learners.boil(model, LOSS, rule=optax.sgd(0.4))
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    fast = learner.adapt(
        meta, learner.start(meta, jax.random.key(2)), jax.random.key(3), episode.support
    )
    assert trees.paths(fast.params) == ["body", "norm/scale"]
    assert np.abs(fast.params["body"] - meta.params["body"]).max() > 1e-3


def test_learned_rates_of_each_step(float64):
    # x_k = c + prod (1 - rate_i a) (x - c).
    rule = metajax.learned_rates(0.1, per="leaf", steps=3)
    learner = metajax.maml(
        point_model(2),
        lambda outputs, batch: 0.35 * jnp.sum((outputs - batch.targets) ** 2),
        rule=rule,
        steps=5,
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    x, center = jnp.array([0.4, -2.0]), jnp.array([[1.5, 0.3]])
    meta = meta._replace(params=x, rule=jnp.array([0.1, 0.2, 0.5]))
    batch = Batch(jnp.zeros((1, 1)), center)
    fast = learner.start(meta, jax.random.key(0))
    fast = learner.adapt(meta, fast, jax.random.key(0), batch)
    shrunk = np.prod(1 - 0.7 * np.array([0.1, 0.2, 0.5, 0.5, 0.5]))
    assert_close(fast.params, center[0] + shrunk * (x - center[0]))


def test_low_rank_and_context_refuse_invalid_options():
    model = linear_model(5, 3)
    with pytest.raises(ValueError, match="rank is 0"):
        low_rank(model, 0)
    with pytest.raises(ValueError, match="context has 0 numbers"):
        with_context(model, 0)
    vectors = Model(
        lambda key, inputs: {"bias": jnp.ones(3)}, lambda params, inputs: params["bias"]
    )
    with pytest.raises(ValueError, match=r"No kernel is selected.*the leaves are bias"):
        metajax.learners.lora(vectors, LOSS, rule=optax.sgd(0.1)).init(
            jax.random.key(0), jnp.ones((2, 3))
        )
    with pytest.raises(ValueError, match=r"selects no leaf; the leaves are body, head/kernel"):
        metajax.learners.cavia(model, LOSS, rule=optax.sgd(0.1)).init(
            jax.random.key(0), jnp.ones((2, 4))
        )


def test_a_stream_of_batches_continues_from_where_it_was():
    model, episode, _ = setting(jnp.float32)
    learner = metajax.learners.maml_plus_plus(model, LOSS, learning_rate=0.4, steps=1, rows=3)
    meta = learner.init(jax.random.key(1), episode.support.inputs)

    def hear(fast, key):
        fast = learner.adapt(meta, fast, key, episode.support)
        loss = LOSS(learner.predict(meta, fast, episode.support.inputs), episode.support)
        return fast, (fast.step, loss)

    keys = jax.random.split(jax.random.key(3), 30)
    _, (steps, losses) = jax.lax.scan(hear, learner.start(meta, jax.random.key(2)), keys)
    np.testing.assert_array_equal(steps, np.arange(1, 31))
    assert (np.diff(losses) < 0).mean() > 0.8 and losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "rule", [optax.sgd(0.4), optax.adam(0.05, eps_root=1e-8), optax.sgd(0.1, momentum=0.9)]
)
def test_a_task_of_one_class_and_one_image_is_finite_under_batch_norm(rule):
    model, episode = (
        batch_normed_model(1),
        classification_episode(jax.random.key(0), ways=1, shots=1),
    )
    learner = metajax.maml(model, LOSS, rule=rule, steps=3)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    grads = meta_gradient(learner, meta, episode)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
