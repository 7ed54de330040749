import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metajax.nn import batch_norm, group_norm, layer_norm, max_pool, norm_relu_pool

NORMS = {
    "batch": batch_norm,
    "group": functools.partial(group_norm, groups=2),
    "layer": layer_norm,
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(shape):
    rng = np.random.default_rng(0)
    channels = shape[-1:]
    x, scale, bias = (rng.normal(size=s) for s in (shape, channels, channels))
    return jnp.asarray(3.0 + 2.0 * x), jnp.asarray(scale), jnp.asarray(bias)


def expected(x, scale, bias, axes, epsilon):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axes, keepdims=True) + epsilon) * scale + bias


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (3, 4)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_values_match_numpy(x64, shape, epsilon):
    x, scale, bias = draw(shape)
    channels = shape[-1]
    got = {name: norm(x, scale, bias, epsilon=epsilon) for name, norm in NORMS.items()}
    x, scale, bias = (np.asarray(a) for a in (x, scale, bias))

    want = expected(x, scale, bias, tuple(range(x.ndim - 1)), epsilon)
    np.testing.assert_allclose(got["batch"], want, rtol=1e-10)
    want = expected(x, scale, bias, tuple(range(1, x.ndim)), epsilon)
    np.testing.assert_allclose(got["layer"], want, rtol=1e-10)
    halves = [
        expected(x[..., part], scale[part], bias[part], tuple(range(1, x.ndim)), epsilon)
        for part in (slice(0, channels // 2), slice(channels // 2, channels))
    ]
    np.testing.assert_allclose(got["group"], np.concatenate(halves, -1), rtol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_derivatives_match_finite_differences(x64, name):
    f = jax.jit(lambda *a: jnp.sin(NORMS[name](*a)))
    check_grads(f, draw((2, 2, 2, 4)), order=2, modes=["rev"])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 1, 4), (2, 3, 3, 4)])
def test_constant_input_gives_the_bias_and_finite_second_derivatives(name, shape):
    scale, bias = jnp.arange(1.0, 5.0), jnp.arange(4.0)
    x = jnp.full(shape, 7.0)
    norm = NORMS[name]
    np.testing.assert_allclose(norm(x, scale, bias), jnp.broadcast_to(bias, shape), atol=1e-6)

    def loss(x, scale, bias):
        return jnp.sum(jnp.sin(norm(x, scale, bias) + jnp.arange(x.size).reshape(x.shape)))

    def squared(*args):
        gradients = jax.grad(loss, (0, 1, 2))(*args)
        return sum(jnp.sum(g**2) for g in gradients), gradients

    second, first = jax.jit(jax.grad(squared, (0, 1, 2), has_aux=True))(x, scale, bias)
    for leaf in (*first, *second):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(("name", "alone"), [("batch", False), ("group", True), ("layer", True)])
def test_only_batch_norm_mixes_examples(name, alone):
    x, scale, bias = (a.astype(jnp.float32) for a in draw((3, 2, 2, 4)))
    together = NORMS[name](x, scale, bias)[:1]
    by_itself = NORMS[name](x[:1], scale, bias)
    assert np.allclose(together, by_itself, atol=1e-5) == alone


def test_a_large_mean_does_not_cancel():
    x, scale, bias = draw((8, 3))
    shifted = batch_norm(x.astype(jnp.float32) + 4096.0, scale, bias)
    np.testing.assert_allclose(shifted, batch_norm(x, scale, bias), atol=2e-3)


def test_errors_say_what_does_not_fit():
    ones = jnp.ones(6)
    with pytest.raises(ValueError, match=r"6 channels.*4 groups.*divisor of 6.*multiple of 4"):
        group_norm(jnp.zeros((2, 6)), ones, ones, groups=4)
    with pytest.raises(ValueError, match=r"\(6,\).*\(5,\)"):
        batch_norm(jnp.zeros((2, 5)), ones, ones)
    with pytest.raises(ValueError, match=r"\(6,\).*batch axis"):
        layer_norm(jnp.zeros(6), ones, ones)


@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_norm_relu_pool_and_its_derivatives_equal_the_three_in_sequence(x64, groups, window):
    x, scale, bias = draw((3, 7, 6, 4))
    assert (scale < 0).any() and (scale > 0).any()

    def one_by_one(x, scale, bias):
        norm = functools.partial(group_norm, groups=groups) if groups else batch_norm
        return max_pool(jax.nn.relu(norm(x, scale, bias)), window)

    def fused(x, scale, bias):
        return norm_relu_pool(x, scale, bias, groups=groups, window=window)

    args = (x, scale, bias)
    along = tuple(jnp.flip(a) for a in args)

    def derivatives(f):
        grad = jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))

        def slope(*args):
            return sum(jnp.vdot(g, v) for g, v in zip(grad(*args), along, strict=True))

        second = jax.jvp(grad, args, along)[1], jax.grad(slope, (0, 1, 2))(*args)
        return f(*args), grad(*args), second

    measured, expected = (jax.jit(derivatives, static_argnums=0)(f) for f in (fused, one_by_one))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), measured, expected
    )


def test_norm_relu_pool_by_finite_differences(x64):
    x, scale, bias = draw((2, 4, 4, 2))
    check_grads(jax.jit(norm_relu_pool), (x, scale, bias), order=2, modes=["fwd", "rev"])
