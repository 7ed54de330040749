import jax
import jax.numpy as jnp
import numpy as np

from metajax.learners.metric.positive_definite import inverse, solve


def matrices(count, size, seed=0):
    x = jax.random.normal(jax.random.key(seed), (count, size, size), jnp.float32)
    return x @ jnp.swapaxes(x, 1, 2) + 0.5 * jnp.eye(size)


def test_batches_are_inverted_and_solved_one_by_one():
    a, right = matrices(3, 4), jnp.ones((4, 2))
    np.testing.assert_allclose(jax.vmap(inverse)(a), np.linalg.inv(a), rtol=2e-4, atol=1e-5)
    found = jax.jit(jax.vmap(solve, (0, None)))(a, right)
    np.testing.assert_allclose(
        found, np.linalg.solve(a, np.stack([right] * 3)), rtol=2e-4, atol=1e-5
    )


def test_both_derivatives_of_the_inverse_are_those_of_another_way_to_it():
    a = matrices(1, 3)[0]
    weights = jax.random.normal(jax.random.key(5), (3, 3))

    def through(invert):
        # Symmetric in its argument, since a factorization reads one triangle alone.
        return lambda x: jnp.sum(weights * invert(a + x @ x.T)) ** 2

    x = 0.3 * jax.random.normal(jax.random.key(6), (3, 2))
    ours, theirs = through(inverse), through(jnp.linalg.inv)
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jax.hessian(ours)(x), jax.hessian(theirs)(x), rtol=1e-2, atol=1e-3)
