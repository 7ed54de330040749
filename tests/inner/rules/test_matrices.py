import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import bound, classification_episode, conv_model, linear_model
from metajax import trees
from metajax.inner.rules.base import as_rule
from metajax.inner.rules.matrices import curvature_rule
from metajax.types import Batch, Model

SHAPES = [(), (3,), (2, 3), (2, 2, 3, 4), (2, 2, 2, 3, 2)]


def gradients(dtype=jnp.float32):
    return noisy({str(shape): np.zeros(shape, dtype) for shape in SHAPES}, 1)


@pytest.mark.parametrize("largest", [2048, 3])
def test_untrained_it_is_plain_gradient_descent_to_the_bit(largest):
    grads = gradients()
    rule = as_rule(curvature_rule(0.3, largest=largest))
    transform, sgd = bound(rule, rule.init(grads)), optax.sgd(0.3)
    measured, _ = jax.jit(transform.update)(grads, transform.init(grads), grads)
    expected, _ = sgd.update(grads, sgd.init(grads), grads)
    jax.tree.map(np.testing.assert_array_equal, measured, expected)


@pytest.mark.parametrize("largest", [None, 3, 0])
def test_the_factors_are_one_kronecker_product_of_the_leaf(float64, largest):
    grads = gradients(jnp.float64)
    rule = as_rule(curvature_rule(0.3, largest=largest))
    factors = noisy(rule.init(grads), 0.5)
    transform = bound(rule, factors)
    updates, _ = jax.jit(transform.update)(grads, transform.init(grads), grads)
    for name, grad in grads.items():
        matrix = np.eye(1)
        for factor in factors[name]:
            matrix = np.kron(matrix, factor if factor.ndim == 2 else np.diag(factor))
        expected = -0.3 * (matrix @ grad.ravel()).reshape(grad.shape)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-12, atol=1e-14)


def test_long_modes_get_diagonals_and_factors_the_dtype_of_their_leaf():
    params = {
        "bias": jnp.zeros(600, jnp.bfloat16),
        "kernel": jnp.zeros((3, 3, 4, 600)),
        "scale": jnp.zeros(()),
    }
    factors = curvature_rule(0.3, largest=599).init(params).learned.value
    assert jax.tree.map(jnp.shape, factors) == {
        "bias": ((600,),),
        "kernel": ((9, 9), (4, 4), (600,)),
        "scale": ((1, 1),),
    }
    assert factors["bias"][0].dtype == jnp.bfloat16
    assert curvature_rule(0.3, largest=600).init(params).learned.value["bias"][0].shape == (
        600,
        600,
    )
    with pytest.raises(ValueError, match="largest is -1; use 0 or more, or None"):
        curvature_rule(0.3, largest=-1)


def test_with_the_inverse_hessian_one_step_is_newtons(float64):
    # The gradient of tr(A (W - C) B (W - C)^T) / 2 is A (W - C) B: the factors A^-1 and B^-1 leave W - C.
    rng = np.random.default_rng(0)
    left, right = (m @ m.T + np.eye(len(m)) for m in (rng.normal(size=(n, n)) for n in (3, 4)))
    center = rng.normal(size=(3, 4))

    def loss(outputs, batch):
        error = (outputs - batch.targets)[0]
        return jnp.trace(left @ error @ right @ error.T) / 2

    model = Model(
        init=lambda key, inputs: jax.random.normal(key, (3, 4), inputs.dtype),
        apply=lambda params, inputs: params[None],
    )
    learner = metajax.learners.gradient_learner(model, loss, rule=curvature_rule(1.0), steps=1)
    batch = Batch(jnp.zeros((1, 1)), jnp.asarray(center)[None])
    meta = learner.init(jax.random.key(0), batch.inputs)

    def adapted(meta):
        return learner.adapt(meta, learner.start(meta, jax.random.key(1)), jax.random.key(2), batch)

    inverse = meta._replace(rule=tuple(jnp.linalg.inv(m) for m in (left, right)))
    np.testing.assert_allclose(adapted(inverse).params, center, rtol=1e-11)
    assert np.abs(adapted(meta).params - center).max() > 1


@pytest.mark.parametrize(
    ("model", "largest"),
    [(linear_model(5, 3), 4), (conv_model(2, 3, implementation=None), None)],
    ids=["linear", "conv"],
)
def test_meta_gradient_against_finite_differences(float64, model, largest):
    rule = curvature_rule(0.4, largest=largest)
    learner = metajax.learners.gradient_learner(model, metajax.cross_entropy, rule=rule, steps=2)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    episode = classification_episode(jax.random.key(0), dtype=jnp.float64)
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    factors = noisy(meta.rule, 0.2)

    def loss(factors):
        return objective(meta._replace(rule=factors), jax.random.key(2), episode)[0]

    assert relative_error(loss, factors) < 1e-6


def test_only_leaves_that_adapt_have_factors():
    learner = metajax.learners.gradient_learner(
        linear_model(5, 3),
        metajax.cross_entropy,
        rule=curvature_rule(0.4),
        steps=1,
        adapts=trees.under("head"),
    )
    meta = learner.init(jax.random.key(1), jnp.zeros((1, 4)))
    assert trees.paths(meta.rule) == ["head/kernel/0", "head/kernel/1"]
