import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from metajax.nn import conv2d


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def reference(inputs, kernel, *, strides, padding):
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(image, kernel, dtype=np.float64):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=image), dtype), jnp.asarray(rng.normal(size=kernel), dtype)


CASES = [
    # image, kernel, strides, padding
    ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    ((2, 6, 6, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    ((2, 7, 5, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    ((1, 6, 7, 1), (2, 4, 1, 2), (2, 3), "SAME"),
    ((1, 4, 4, 2), (5, 5, 2, 2), (1, 1), "SAME"),
    ((2, 4, 5, 3), (1, 1, 3, 4), (1, 1), "SAME"),
    ((2, 4, 5, 3), (1, 1, 3, 4), (2, 2), "SAME"),
    ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "VALID"),
    ((2, 6, 7, 2), (3, 3, 2, 3), (2, 2), "VALID"),
    ((1, 6, 7, 1), (2, 4, 1, 2), (2, 3), "VALID"),
]


@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CASES)
def test_values_and_derivatives_match_lax(x64, image, kernel, strides, padding):
    args = draw(image, kernel)
    options = {"strides": strides, "padding": padding}

    def derivatives(conv):
        def loss(inputs, weights):
            return jnp.sum(jnp.sin(conv(inputs, weights, **options)))

        gradient = jax.grad(loss, (0, 1))
        directions = (jnp.cos(args[0]), jnp.cos(args[1]))
        value, second = jax.jvp(gradient, args, directions)

        def along(*at):
            return sum(jnp.vdot(g, d) for g, d in zip(gradient(*at), directions, strict=True))

        # Reverse over reverse, the order that backpropagation through an inner step takes.
        return conv(*args, **options), value, second, jax.grad(along, (0, 1))(*args)

    got, want = (jax.jit(derivatives, static_argnums=0)(c) for c in (conv2d, reference))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), got, want)
    assert jax.tree.leaves(got)[0].dtype == jnp.float64


def test_derivatives_match_finite_differences(x64):
    args = draw((1, 4, 4, 2), (3, 3, 2, 2))
    f = jax.jit(lambda *a: jnp.sin(conv2d(*a, strides=(2, 2))))
    check_grads(f, args, order=2, modes=["rev"])


def test_by_hand():
    inputs = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    # 0*1 + 1*2 + 3*3 + 4*4 = 27, and one step right or down adds 10 or 30.
    valid = conv2d(inputs, kernel, padding="VALID")
    np.testing.assert_array_equal(valid[0, :, :, 0], [[27.0, 37.0], [57.0, 67.0]])
    # An even kernel is padded at the bottom and on the right alone.
    same = conv2d(inputs, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(same, [[27, 37, 2 + 15], [57, 67, 5 + 24], [20, 23, 8]])


def test_vmap_over_kernels_is_a_loop_and_jit_changes_nothing():
    inputs, kernels = draw((3, 2, 6, 6, 2), (3, 3, 3, 2, 4), np.float32)
    f = functools.partial(conv2d, strides=(2, 2))
    looped = jnp.stack([f(x, w) for x, w in zip(inputs, kernels, strict=True)])
    np.testing.assert_allclose(jax.vmap(f)(inputs, kernels), looped, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(inputs, kernels), looped, rtol=1e-5, atol=1e-5)


def test_compiles_to_matrix_products_alone():
    inputs, kernels = draw((3, 2, 6, 6, 2), (3, 3, 3, 2, 4), np.float32)

    def loss(x, w):
        return jnp.sum(jax.grad(lambda w: jnp.sum(jnp.sin(conv2d(x, w))))(w) ** 2)

    text = str(jax.make_jaxpr(jax.vmap(jax.grad(loss, (0, 1))))(inputs, kernels))
    assert "conv_general_dilated" not in text
    assert "dot_general" in text


@pytest.mark.parametrize(
    ("image", "kernel", "options", "message"),
    [
        ((5, 5, 3), (3, 3, 3, 4), {}, r"\(5, 5, 3\).*vmap"),
        ((1, 5, 5, 3), (3, 3, 4), {}, r"kernel \[h, w, C, F\]"),
        ((1, 5, 5, 3), (3, 3, 1, 4), {}, r"3 channels.*reads 1"),
        ((1, 5, 5, 3), (3, 3, 3, 4), {"padding": "FULL"}, "'FULL'.*SAME, VALID"),
        ((1, 5, 5, 3), (3, 3, 3, 4), {"strides": (0, 1)}, r"\(0, 1\).*at least 1"),
        ((1, 2, 5, 3), (3, 3, 3, 4), {"padding": "VALID"}, r"\(3, 3\).*\(2, 5\)"),
    ],
)
def test_errors_say_what_does_not_fit(image, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(image), jnp.zeros(kernel), **options)
