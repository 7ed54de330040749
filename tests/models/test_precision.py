import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, linear_model
from metajax.models import in_precision
from metajax.types import Model
from metajax.zoo import build_model


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    ("name", "options"), [("mlp", {}), ("conv4_stride", {"filters": 8, "norm": "layer"})]
)
def test_outputs_are_float32_and_near_the_ones_computed_in_float32(name, options):
    model = build_model(name, outputs=3, **options)
    inputs = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    half = in_precision(model, jnp.bfloat16)
    params = jax.jit(half.init)(jax.random.key(1), inputs)
    assert half.init is model.init
    assert dtypes(params) == {jnp.dtype("float32")}
    outputs, fine = jax.jit(half.apply)(params, inputs), jax.jit(model.apply)(params, inputs)
    assert outputs.dtype == jnp.float32
    # Eight bits of mantissa through a few layers.
    np.testing.assert_allclose(outputs, fine, atol=0.05 * float(jnp.abs(fine).max()))
    assert np.abs(outputs - fine).max() > 0


def test_every_matrix_product_is_in_bfloat16():
    half = in_precision(linear_model(5, 3), jnp.bfloat16)
    inputs = jnp.ones((2, 4))
    params = half.init(jax.random.key(0), inputs)

    def loss(params):
        return jnp.sum(half.apply(params, inputs) ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program)
    assert len(products) >= 4 and set(products) == {"bf16"}
    assert dtypes(jax.grad(loss)(params)) == {jnp.dtype("float32")}


def test_updates_too_small_for_bfloat16_are_kept():
    half = in_precision(linear_model(5, 3), jnp.bfloat16)
    learner = metajax.maml(half, metajax.cross_entropy, rule=optax.sgd(1e-5), steps=1)
    episode = classification_episode(jax.random.key(0))
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    fast = learner.adapt(meta, learner.start(meta, None, episode.support), None, episode.support)
    assert dtypes(fast.params) == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda a, b: jnp.mean(a != b), fast.params, meta.params)
    assert min(jax.tree.leaves(moved)) > 0.5


def test_maml_learns_in_bfloat16():
    half = in_precision(linear_model(16, 3), jnp.bfloat16)
    learner = metajax.maml(half, metajax.cross_entropy, rule=optax.sgd(0.1), steps=1)
    objective = metajax.query_objective(learner, metajax.cross_entropy)
    optimizer = optax.adam(1e-2)
    step = metajax.make_step(
        metajax.backprop(objective),
        optimizer,
        lambda data, key: classification_episode(key),
        num_tasks=8,
    )
    meta = learner.init(jax.random.key(2), jnp.zeros((1, 4)))
    state = metajax.init_state(meta, optimizer, jax.random.key(1))
    state, metrics = jax.jit(metajax.many_steps(step, 200))(state, None)
    assert dtypes((state.meta, metrics["loss"])) == {jnp.dtype("float32")}
    assert metrics["loss"][-20:].mean() < 0.5 * metrics["loss"][:5].mean()


def test_integers_stay_and_other_precisions_are_refused():
    table = Model(
        init=lambda key, inputs: {"rows": jnp.eye(3), "order": jnp.array([2, 0, 1])},
        apply=lambda params, inputs: params["rows"][params["order"][inputs]],
    )
    half = in_precision(table, jnp.bfloat16)
    outputs = half.apply(half.init(None, None), jnp.array([0, 1]))
    np.testing.assert_array_equal(outputs, np.eye(3)[[2, 0]])
    with pytest.raises(ValueError, match="dtype is int8; use a floating one"):
        in_precision(table, jnp.int8)
