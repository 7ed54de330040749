import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model
from metajax.inner.adjoints import ADJOINTS
from metajax.inner.hoist import hoist, reads_outside
from metajax.learners.gradient import base as gradient


def ingredients():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"head": jax.random.normal(keys[0], (6, 3)), "bias": jnp.zeros(3)}
    operands = {
        "body": jax.random.normal(keys[1], (4, 6)),
        "inputs": jax.random.normal(keys[2], (5, 4)),
        "targets": jnp.array([0, 1, 2, 0, 1]),
        "weights": None,
    }
    return params, operands


def loss(params, operands):
    features = jax.nn.relu(operands["inputs"] @ operands["body"])
    logits = jax.nn.log_softmax(features @ params["head"] + params["bias"])
    penalty = jnp.sum(operands["body"] ** 2)
    return penalty - jnp.mean(jnp.take_along_axis(logits, operands["targets"][:, None], 1))


def products(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("dot_general")


def test_the_loss_is_the_same_and_the_body_is_out_of_it(float64):
    params, operands = ingredients()
    residuals, loss_of = hoist(loss, params, operands)
    np.testing.assert_allclose(loss_of(params, residuals), loss(params, operands), rtol=1e-14)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    np.testing.assert_allclose(loss_of(moved, residuals), loss(moved, operands), rtol=1e-14)
    assert products(loss, params, operands) == 2
    assert products(loss_of, params, residuals) == 1
    # Values that only the body reads are not residuals.
    assert sorted(leaf.shape for leaf in residuals) == [(), (5, 1), (5, 6)]


def second_order(split):
    def outer(body, params, operands):
        operands = operands | {"body": body}
        if split:
            residuals, loss_of = hoist(loss, params, operands)
            grads = jax.grad(loss_of)(params, residuals)
        else:
            grads = jax.grad(loss)(params, operands)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads))

    return jax.grad(outer)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_derivatives_reach_the_operands(float64, transform):
    params, operands = ingredients()
    bodies = jnp.stack([operands["body"], 2 * operands["body"]])
    measured, expected = (
        transform(jax.vmap(second_order(split), (0, None, None)))(bodies, params, operands)
        for split in (True, False)
    )
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(measured, expected, rtol=1e-12, atol=1e-14)


def test_closed_over_values_are_differentiated_too(float64):
    params, operands = ingredients()

    def outer(body):
        residuals, loss_of = hoist(
            lambda params, rest: loss(params, rest | {"body": body}), params, operands
        )
        return loss_of(params, residuals)

    expected = jax.grad(lambda body: loss(params, operands | {"body": body}))(operands["body"])
    np.testing.assert_allclose(jax.grad(outer)(operands["body"]), expected, rtol=1e-12)


def test_a_loss_of_the_operands_alone_and_a_constant_one():
    residuals, loss_of = hoist(lambda p, o: o * 2, 1.0, 3.0)
    assert loss_of(5.0, residuals) == 6.0
    residuals, loss_of = hoist(lambda p, o: 7.0, 1.0, 3.0)
    assert loss_of(5.0, residuals) == 7.0


def test_side_effects_happen_at_every_step():
    seen = []

    def noisy(params, operands):
        jax.debug.callback(seen.append, operands)
        return params * operands

    residuals, loss_of = hoist(noisy, 1.0, 3.0)
    assert loss_of(2.0, residuals) == loss_of(2.0, residuals) == 6.0
    jax.effects_barrier()
    assert len(seen) == 2


def in_the_loop(jaxpr):
    """Counts the matrix products inside the scans of a program, which run once per step."""
    found = 0
    for eqn in jaxpr.eqns:
        for sub in jax.tree.leaves(
            eqn.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr") or hasattr(leaf, "eqns")
        ):
            sub = getattr(sub, "jaxpr", sub)
            if hasattr(sub, "eqns"):
                found += str(sub).count("dot_general") if eqn.primitive.name == "scan" else 0
                found += in_the_loop(sub) if eqn.primitive.name != "scan" else 0
    return found


@pytest.mark.parametrize("adjoint", ["reverse", "mixed", "recursive"])
def test_anil_computes_its_body_once(float64, adjoint, monkeypatch):
    def run():
        learner = metajax.anil(
            linear_model(5, 3),
            metajax.cross_entropy,
            rule=optax.sgd(0.4, momentum=0.9),
            steps=5,
            adjoint=ADJOINTS[adjoint],
        )
        episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
        meta = learner.init(jax.random.key(1), episode.support.inputs)

        def adapt(meta):
            key = jax.random.key(2)
            return learner.adapt(meta, learner.start(meta, key), key, episode.support)

        objective = metajax.query_objective(learner, metajax.cross_entropy)
        grads = jax.grad(lambda meta: objective(meta, jax.random.key(2), episode)[0])(meta)
        return in_the_loop(jax.make_jaxpr(adapt)(meta).jaxpr), grads

    hoisted, measured = run()
    monkeypatch.setattr(gradient, "hoist", lambda loss, params, operands: (operands, loss))
    whole, expected = run()
    assert 0 < hoisted < whole
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), measured, expected
    )


def test_closed_over_values_count_only_while_they_are_transformed():
    def found(outside):
        return reads_outside(lambda params, operands: params * operands * outside, 1.0, 2.0)

    inside = []
    jax.vmap(lambda x: inside.append(found(x)) or x)(jnp.ones(3))
    jax.jit(lambda x: inside.append(found(x)) or x)(1.0)
    assert inside == [True, True] and not found(jnp.ones(3))
    assert not reads_outside(lambda params, operands: params * operands, 1.0, 2.0)
