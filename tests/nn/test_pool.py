import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from metajax.nn import avg_pool, global_avg_pool, max_pool


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(shape):
    """Draws distinct values, far enough apart for finite differences."""
    return jnp.asarray(np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 10.0)


def reference(inputs, window, start, combine):
    size = (1, window, window, 1)
    return lax.reduce_window(inputs, start, combine, size, size, "VALID")


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 4, 6, 3), 2), ((2, 5, 7, 2), 2), ((1, 7, 8, 2), 3)]
)
def test_matches_reduce_window(x64, shape, window):
    inputs = draw(shape)
    largest = reference(inputs, window, -jnp.inf, lax.max)
    np.testing.assert_array_equal(max_pool(inputs, window), largest)
    mean = reference(inputs, window, 0.0, lax.add) / window**2
    np.testing.assert_allclose(avg_pool(inputs, window), mean, rtol=1e-12)

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(pool(x)))))(inputs)

    want = gradient(lambda x: reference(x, window, -jnp.inf, lax.max))
    np.testing.assert_allclose(gradient(lambda x: max_pool(x, window)), want, rtol=1e-12)


@pytest.mark.parametrize("pool", [max_pool, avg_pool, global_avg_pool])
def test_derivatives_match_finite_differences(x64, pool):
    f = jax.jit(lambda x: jnp.sin(pool(x)))
    check_grads(f, (draw((1, 5, 4, 2)),), order=2, modes=["rev"])


@pytest.mark.parametrize("window", [2, 3])
def test_a_byte_an_output_is_kept_for_the_backward_pass(window):
    inputs = draw((2, 12, 12, 3)).astype(jnp.float32)
    pooled, pullback = jax.vjp(lambda x: max_pool(x, window), inputs)
    kept = {leaf.dtype.name: leaf.size for leaf in jax.tree.leaves(pullback)}
    assert kept == {"int8": pooled.size}


def test_rows_and_columns_left_over_are_cropped():
    inputs = jnp.zeros((1, 3, 3, 1)).at[0, 2, 2].set(9.0).at[0, 1, 0].set(4.0)
    np.testing.assert_array_equal(max_pool(inputs), [[[[4.0]]]])
    np.testing.assert_array_equal(avg_pool(inputs), [[[[1.0]]]])
    np.testing.assert_allclose(global_avg_pool(inputs), [[13.0 / 9.0]], rtol=1e-6)


def test_the_first_of_equals_gets_the_gradient_as_with_reduce_window():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x))))
    tile = jnp.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(gradient(tile)[0, :, :, 0], [[1.0, 0.0], [0.0, 0.0]])
    two = tile.at[0, 0].set(0.0)
    np.testing.assert_array_equal(gradient(two)[0, :, :, 0], [[0.0, 0.0], [1.0, 0.0]])
    ties = jnp.round(2 * draw((2, 6, 6, 3)))
    theirs = jax.grad(lambda x: jnp.sum(jnp.sin(reference(x, 2, -jnp.inf, lax.max))))(ties)
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x))))(ties)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_forward_over_reverse_is_reverse_over_reverse(x64):
    x, direction = draw((2, 5, 6, 2)), draw((2, 5, 6, 2))[::-1]
    grad = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x))))
    forward = jax.jvp(grad, (x,), (direction,))[1]
    reverse = jax.grad(lambda x: jnp.vdot(grad(x), direction))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_errors_say_what_does_not_fit(pool):
    with pytest.raises(ValueError, match=r"window of 4.*\(3, 5\).*from 1 to 3"):
        pool(jnp.zeros((1, 3, 5, 1)), 4)
    with pytest.raises(ValueError, match=r"\(3, 5, 1\).*vmap"):
        pool(jnp.zeros((3, 5, 1)))
