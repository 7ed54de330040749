"""Solvers of symmetric linear systems that are given by matrix-vector products.

They solve the system of an implicit derivative (`metajax.argmin`) and compute Newton directions
(`metajax.rules.hessian_free`). The matrix, a Hessian, is never formed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.deprecation import renamed_arguments

Array = jax.Array
Tree = Any
MatVec = Callable[[Tree], Tree]


class Solution(NamedTuple):
    """An approximate solution of a linear system and its error.

    Attributes:
      value: Solution, a tree like the target.
      residual: Relative residual |target - matvec(value)| / |target|, a scalar, damping included; 0 if the
        target is 0.
    """

    value: Tree
    residual: Array


class LinearSolver(Protocol):
    """Solves a symmetric system that is given by its matrix-vector products."""

    def __call__(self, matvec: MatVec, target: Tree) -> Solution:
        """Solves matvec(value) = target.

        Args:
          matvec: Product with the matrix, a linear function of trees like the target.
          target: Right-hand side, a tree of arrays.

        Returns:
          The solution and its relative residual.
        """
        ...


def conjugate_gradient(steps: int = 5, *, damping: float = 0.0) -> LinearSolver:
    """Solves by conjugate gradients that start at zero.

    The solution is exact after as many steps as the matrix has distinct eigenvalues. The solver stops early,
    and stays finite, at a residual of zero and at a direction without positive curvature; if the first
    direction is one, the solution is zero.

    Args:
      steps: Number of products with the matrix, an int of 1 or more.
      damping: Number of 0 or more that is added to the diagonal of the matrix.

    Returns:
      A linear solver.

    Raises:
      ValueError: If `steps` is below 1, or `damping` is negative or not finite.

    Example:
      >>> solve = conjugate_gradient(1)
      >>> solve(lambda x: 2 * x, jnp.array([2.0, 4.0])).value.tolist()
      [1.0, 2.0]

    Reference: Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), eq. 7.
    """
    _check(steps=steps, damping=damping)

    def solve(matvec: MatVec, target: Tree) -> Solution:
        matvec = _damped(matvec, damping)

        def step(_, state):
            value, rest, direction, size = state
            product = matvec(direction)
            curvature = inner_product(direction, product)
            # A comparison with NaN is false: NaN does not stop, and so never passes as a finite solution.
            stops = (curvature <= 0) | (size <= 0)
            length = jnp.where(stops, 0, size / jnp.where(stops, 1, curvature))
            value, rest = add_scaled(value, length, direction), add_scaled(rest, -length, product)
            left = inner_product(rest, rest)
            onward = add_scaled(rest, left / jnp.where(stops, 1, size), direction)
            return value, rest, optax.tree.where(stops, direction, onward), left

        zeros = optax.tree.zeros_like(target)
        state = zeros, target, target, inner_product(target, target)
        return _solution(matvec, target, jax.lax.fori_loop(0, steps, step, state)[0])

    return solve


@renamed_arguments(rate="learning_rate")
def neumann(steps: int = 16, *, learning_rate: float = 1.0, damping: float = 0.0) -> LinearSolver:
    """Solves by the first terms of the Neumann series A^-1 = rate * sum_k (I - rate * A)^k.

    The error falls by a factor of max |1 - rate * eigenvalue| per step. A rate of 1 suits a matrix
    I + H / regularization, where the series is one in -H / regularization, for H smaller than the
    regularization.

    Args:
      steps: Number of products with the matrix, an int of 1 or more; the series has one more term.
      learning_rate: Rate of the series, a number above 0; it diverges from 2 / (largest eigenvalue) on.
      damping: Number of 0 or more that is added to the diagonal of the matrix.

    Returns:
      A linear solver.

    Raises:
      ValueError: If `steps` is below 1, `damping` is negative or not finite, or `learning_rate` is not
        positive or not finite.

    Example:
      >>> solve = neumann(2, learning_rate=0.5)  # 0.5 * (1 + 0.5 + 0.25) for A = 1
      >>> float(solve(lambda x: x, jnp.array(1.0)).value)
      0.875

    Reference: Lorraine et al., 2020 (https://arxiv.org/abs/1911.02590), algorithm 3.
    """
    _check(steps=steps, damping=damping)
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"learning_rate is {learning_rate}; use one above 0 and below 2 / (largest eigenvalue)."
        )

    def solve(matvec: MatVec, target: Tree) -> Solution:
        matvec = _damped(matvec, damping)

        def step(_, state):
            total, term = state
            term = add_scaled(term, -learning_rate, matvec(term))
            return add_scaled(total, 1, term), term

        total, _ = jax.lax.fori_loop(0, steps, step, (target, target))
        return _solution(matvec, target, jax.tree.map(lambda leaf: learning_rate * leaf, total))

    return solve


def identity_solver() -> LinearSolver:
    """Solves as if the matrix were the identity, at no cost: T1-T2.

    Returns:
      A linear solver whose solution is the target.

    Example:
      >>> found = identity_solver()(lambda x: 2 * x, jnp.array([3.0]))
      >>> found.value.tolist(), float(found.residual)
      ([3.0], 1.0)

    Reference: Luketina et al., 2016 (https://arxiv.org/abs/1511.06727).
    """
    return lambda matvec, target: _solution(matvec, target, target)


def add_scaled(tree: Tree, scale: Any, other: Tree) -> Tree:
    """Computes tree + scale * other in the dtypes of `tree`.

    Args:
      tree: Tree of arrays.
      scale: Scalar.
      other: Tree like `tree`.

    Returns:
      A tree like `tree`.
    """
    return jax.tree.map(lambda a, b: (a + scale * b).astype(a.dtype), tree, other)


def inner_product(a: Tree, b: Tree) -> Array:
    """Computes the inner product of two trees of arrays.

    Args:
      a: Tree of arrays.
      b: Tree like `a`.

    Returns:
      A scalar, of at least float32: sums of many squares lose too much in half precision.
    """

    def dot(a, b):
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.vdot(a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST)

    return cast(Array, sum(jax.tree.leaves(jax.tree.map(dot, a, b))))


def _check(*, steps: int, damping: float) -> None:
    """Checks the options that linear solvers share."""
    if steps < 1:
        raise ValueError(f"steps of a linear solver are {steps}; use 1 or more.")
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping is {damping}; use 0 or more.")


def _damped(matvec: MatVec, damping: float) -> MatVec:
    """Adds `damping` to the diagonal of a matrix."""
    if not damping:
        return matvec
    return lambda direction: add_scaled(matvec(direction), damping, direction)


def _solution(matvec: MatVec, target: Tree, value: Tree) -> Solution:
    """Measures the relative residual of a solution."""
    product = matvec(value)
    chex.assert_trees_all_equal_shapes(product, target)
    rest = add_scaled(target, -1, product)
    size = jnp.sqrt(inner_product(target, target))
    zero = size == 0
    residual = jnp.sqrt(inner_product(rest, rest)) / jnp.where(zero, 1, size)
    return Solution(value, jnp.where(zero, 0, residual))


DEFAULT_SOLVER = conjugate_gradient(5)
