"""Systems of symmetric positive-definite matrices, whose derivatives do not go through their factors."""

import jax
import jax.numpy as jnp

from metajax.types import Array


def solve(matrix: Array, right: Array) -> Array:
    """Solves a symmetric positive-definite system; derivatives solve the same system.

    Args:
      matrix: Symmetric positive-definite matrix [D, D].
      right: Right-hand sides [D, R].

    Returns:
      Solutions [D, R].

    Example:
      >>> from metajax.learners.metric.positive_definite import solve
      >>> solve(2 * jnp.eye(2), jnp.ones((2, 1))).tolist()
      [[0.5], [0.5]]
    """
    fixed = jax.lax.stop_gradient(matrix)
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x, right, solve=lambda _, b: _cholesky(fixed, b), symmetric=True
    )


@jax.custom_jvp
def inverse(matrix: Array) -> Array:
    """Inverts a symmetric positive-definite matrix; derivatives are products with the inverse.

    The derivative of A^-1 along dA is -A^-1 dA A^-1: two products, where one through a Cholesky factor takes
    several triangular systems.

    Args:
      matrix: Symmetric positive-definite matrix [D, D].

    Returns:
      Inverse [D, D].

    Example:
      >>> from metajax.learners.metric.positive_definite import inverse
      >>> inverse(4 * jnp.eye(2)).tolist()
      [[0.25, 0.0], [0.0, 0.25]]
    """
    return _cholesky(matrix, jnp.eye(matrix.shape[0], dtype=matrix.dtype))


@inverse.defjvp
def _derivative_of_inverse(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Differentiates the inverse, to any order."""
    (matrix,), (moved,) = primals, tangents
    inverted = inverse(matrix)
    return inverted, -inverted @ moved @ inverted


def _factor_and_solve(matrix: Array, right: Array) -> Array:
    """Solves a symmetric positive-definite system by a Cholesky factorization."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


# One system at a time on CPUs, where a batch may deadlock in jaxlib before 0.11.2: each call takes a thread
# of a pool and waits there for parts of its work, which no thread is left to compute.
_cholesky = jax.custom_batching.custom_vmap(_factor_and_solve)


@_cholesky.def_vmap
def _several(axis_size: int, batched: list, *operands: Array) -> tuple[Array, bool]:
    """Solves a batch of systems: one after another on CPUs, at once elsewhere."""
    matrices, rights = (
        operand if each else jnp.broadcast_to(operand, (axis_size, *operand.shape))
        for operand, each in zip(operands, batched, strict=True)
    )

    def one_by_one(*systems):
        return jax.lax.map(lambda system: _cholesky(*system), systems)

    together = jax.vmap(_factor_and_solve)
    return jax.lax.platform_dependent(matrices, rights, cpu=one_by_one, default=together), True
