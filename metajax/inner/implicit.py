"""Implicit differentiation: the derivative of where an inner solver ends, not of how it got there.

At a minimum of an objective the gradient g(params, operands) vanishes, and does so for any operands. Hence
d params / d operands = -H^-1 dg / d operands, where H is the Hessian: the derivative costs one linear system,
and memory does not grow with inner steps. What `argmin` finds its way with need not be differentiable.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.inner.mixed import InnerLoss, scalar

Array = jax.Array
Tree = Any
MatVec = Callable[[Tree], Tree]

# Of Armijo's condition, the share of the decrease promised by the slope that a step has to bring.
SUFFICIENT = 1e-4


class Solution(NamedTuple):
    """What a linear solver found, and how far that is from solving the system.

    Attributes:
      value: the solution, shaped like the target.
      residual: |target - matvec(value)| / |target|, a scalar, damping included; 0 where the target is 0.
    """

    value: Tree
    residual: Array


class LinearSolver(Protocol):
    """Solves a symmetric system that is known by its products alone."""

    def __call__(self, matvec: MatVec, target: Tree) -> Solution:
        """Finds a tree of which `matvec` makes the target."""


def _check(*, steps: int, damping: float) -> None:
    if steps < 1:
        raise ValueError(f"steps of a linear solver are {steps}; use 1 or more.")
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping is {damping}; use 0 or more.")


def conjugate_gradient(steps: int = 5, *, damping: float = 0.0) -> LinearSolver:
    """Conjugate gradients from zero: exact after as many steps as the matrix has distinct eigenvalues.

    Args:
      steps: products with the matrix.
      damping: is added to the diagonal.

    Returns:
      A solver. It stops early, and stays finite, at a residual of zero, and at a direction in which the
      curvature is not positive: the first such direction leaves zero.

    Reference: Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), eq. 7.
    """
    _check(steps=steps, damping=damping)

    def solve(matvec: MatVec, target: Tree) -> Solution:
        matvec = _damped(matvec, damping)

        def step(_, state):
            value, rest, direction, size = state
            product = matvec(direction)
            curvature = _dot(direction, product)
            # Written so that a NaN does not stop, which would leave a finite solution of no system.
            stops = (curvature <= 0) | (size <= 0)
            length = jnp.where(stops, 0, size / jnp.where(stops, 1, curvature))
            value, rest = _add(value, length, direction), _add(rest, -length, product)
            left = _dot(rest, rest)
            onward = _add(rest, left / jnp.where(stops, 1, size), direction)
            return value, rest, optax.tree.where(stops, direction, onward), left

        zeros = optax.tree.zeros_like(target)
        state = zeros, target, target, _dot(target, target)
        return _solution(matvec, target, jax.lax.fori_loop(0, steps, step, state)[0])

    return solve


def neumann(steps: int = 16, *, learning_rate: float = 1.0, damping: float = 0.0) -> LinearSolver:
    """The first terms of the Neumann series A^-1 = rate * sum_k (I - learning_rate * A)^k.

    Args:
      steps: products with the matrix, one less than terms.
      learning_rate: below 2 / (the largest eigenvalue), or the series diverges. Its error falls by max |1 -
        learning_rate * eigenvalue| a step. 1 suits a matrix I + H / strength: a series in -H / strength,
        for H smaller than the strength.
      damping: is added to the diagonal.

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
            term = _add(term, -learning_rate, matvec(term))
            return _add(total, 1, term), term

        total, _ = jax.lax.fori_loop(0, steps, step, (target, target))
        return _solution(matvec, target, jax.tree.map(lambda leaf: learning_rate * leaf, total))

    return solve


def identity_solver() -> LinearSolver:
    """Takes the matrix for the identity, at no cost: T1-T2.

    Reference: Luketina et al., 2016 (https://arxiv.org/abs/1511.06727).
    """
    return lambda matvec, target: _solution(matvec, target, target)


DEFAULT_SOLVER = conjugate_gradient(5)


def argmin(
    objective: InnerLoss,
    solve: Callable[[Tree, Tree], Any],
    init: Tree,
    operands: Tree,
    *,
    solver: LinearSolver = DEFAULT_SOLVER,
    tolerance: float | None = None,
    has_aux: bool = False,
) -> Any:
    """Minimises an objective by any means, and is differentiable by the implicit function theorem.

    The backward pass costs one linear system of as many Hessian-vector products as `solver` takes, and keeps
    nothing but the minimum, however `solve` got there. Here the penalty of a ridge regression is learned:

        def objective(weights, operands):
            log_penalty, (inputs, targets) = operands
            errors = inputs @ weights - targets
            return jnp.sum(errors**2) + jnp.exp(log_penalty) * jnp.sum(weights**2)

        def solve(operands, start):
            log_penalty, (inputs, targets) = operands
            penalty = jnp.exp(log_penalty) * jnp.eye(len(start))
            return jnp.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)

        def outer(log_penalty, start, train, test):
            weights = metajax.argmin(objective, solve, start, (log_penalty, train))
            return jnp.mean((test[0] @ weights - test[1]) ** 2)

        slope = jax.grad(outer)(0.0, start, train, test)

    The derivative is exact where `solve` ends at a minimum with a positive-definite Hessian and the solver
    solves its system; the error is in proportion to how far either is from that. It needs forward mode and
    symmetric second derivatives of the objective, as mixed adjoints do: see `mixed_mode_error`. It is one of
    reverse mode: `jax.jvp`, `jax.jacfwd` and `jax.hessian` of what depends on the minimum raise a TypeError.

    Neither function may close over values that are being differentiated: those belong in `operands`.

    Args:
      objective: Objective, (params, operands) -> scalar.
      solve: (operands, init) -> the params that minimise the objective, a tree of floating-point arrays. It
        is not differentiated, so that it may be anything that JAX can trace.
      init: Tree of arrays of any structure, where `solve` starts; a minimum does not depend on it, and its
        gradient is zero.
      operands: Tree of arrays, whatever the minimum depends on. Floating-point leaves get a gradient,
        integers and keys have none.
      solver: Solver of Hessian @ u = the cotangent of the params, in the backward pass: `conjugate_gradient`,
        `neumann` or `identity`.
      tolerance: Relative residual of that system above which, or at NaN, a RuntimeWarning is given: for each
        task by itself under `vmap`. None adds nothing to the compiled program.
      has_aux: Whether `solve` returns (params, aux), of which aux, any tree, counts as a constant.

    Returns:
      What `solve` returns.

    Raises:
      ValueError: if `tolerance` is not positive, the objective is no scalar, or what `solve` returns has
        leaves that are not floating-point.

    References:
      Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), lemma 1 and eq. 6.
      Lorraine et al., 2020 (https://arxiv.org/abs/1911.02590), theorem 1.
    """
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; use one above 0, or None for no warning.")
    floats, others = trees.split_floats(operands)

    @jax.custom_vjp
    def minimum(floats, others, init):
        found = solve(trees.merge(floats, others), init)
        params, aux = _pair(found) if has_aux else (found, ())
        return trees.require_floats(params), aux

    def forward(floats, others, init):
        params, aux = minimum(floats, others, init)
        return (params, aux), (params, floats, others)

    def backward(residuals, cotangents):
        params, floats, others = residuals

        def gradients(params):
            def of(params, floats):
                return scalar(objective)(params, trees.merge(floats, others))

            return jax.grad(of, (0, 1))(params, floats)

        # Linearised once: the products with the Hessian share what does not depend on their direction.
        _, derivative = jax.linearize(gradients, params)
        found = solver(lambda direction: derivative(direction)[0], cotangents[0])
        if tolerance is not None:
            jax.debug.callback(functools.partial(_warn, tolerance=tolerance), found.residual)
        _, products = derivative(jax.tree.map(jnp.negative, found.value))
        return products, None, None

    minimum.defvjp(forward, backward)
    params, aux = minimum(floats, others, init)
    return (params, aux) if has_aux else params


def _pair(found: Any) -> tuple[Tree, Tree]:
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(
            f"solve returns {type(found).__name__}; return a pair (params, aux), or leave has_aux out."
        )
    return found


def hessian_free(
    cg_steps: int = 5, *, damping: float = 0.0, backtracks: int = 10
) -> optax.GradientTransformationExtraArgs:
    """Newton steps without a Hessian: directions by conjugate gradients, lengths by backtracking.

    Where the curvature is not positive in the direction of the gradient, the step is along that. A length is
    halved from 1 until the value falls enough (Armijo's condition); where none will do, nothing moves.

    Args:
      cg_steps: products with the Hessian, a step.
      damping: is added to the Hessian's diagonal.
      backtracks: how often the length may be halved.

    Returns:
      An optax transformation; like line searches there, it asks `update` for `value` and `value_fn`.

    References:
      Martens, 2010 (https://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf), sections 3 and 4.
      Rajeswaran et al., 2019 (https://arxiv.org/abs/1909.04630), section 4: the inner solver of iMAML HF.
    """
    solver = conjugate_gradient(cg_steps, damping=damping)
    if backtracks < 0:
        raise ValueError(f"backtracks is {backtracks}; use 0 or more.")

    def update(grads, state, params, *, value, value_fn, **others):
        del others
        _, hessian = jax.linearize(jax.grad(value_fn), params)
        newton = solver(hessian, grads).value
        falls = _dot(newton, grads) > 0
        direction = optax.tree.where(falls, newton, grads)
        slope = _dot(direction, grads)
        # Near a minimum decreases drown in rounding, where Newton's steps are the best.
        rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

        def fails(length):
            needed = value - SUFFICIENT * length * slope + rounding
            return ~(value_fn(_add(params, -length, direction)) <= needed)

        def halve(search):
            length, _ = search
            return length / 2, fails(length / 2)

        one = jnp.ones_like(value)
        shortest = 0.5**backtracks
        length, failed = jax.lax.while_loop(
            lambda search: search[1] & (search[0] > shortest), halve, (one, fails(one))
        )
        length = jnp.where(failed, 0, length)
        return _add(optax.tree.zeros_like(params), -length, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _warn(residual: Array, *, tolerance: float) -> None:
    # Written so that a NaN does not pass.
    if not residual <= tolerance:
        warnings.warn(
            f"The linear system of an implicit gradient has a relative residual of {residual:.2g}, and "
            f"{tolerance:.2g} is allowed; use more steps of the linear solver, more damping, or a larger "
            "strength of the proximal term.",
            RuntimeWarning,
            stacklevel=2,
        )


def _damped(matvec: MatVec, damping: float) -> MatVec:
    if not damping:
        return matvec
    return lambda direction: _add(matvec(direction), damping, direction)


def _solution(matvec: MatVec, target: Tree, value: Tree) -> Solution:
    rest = _add(target, -1, matvec(value))
    size = jnp.sqrt(_dot(target, target))
    zero = size == 0
    residual = jnp.sqrt(_dot(rest, rest)) / jnp.where(zero, 1, size)
    return Solution(value, jnp.where(zero, 0, residual))


def _add(tree: Tree, scale: Any, other: Tree) -> Tree:
    """tree + scale * other, in the types of `tree`."""
    return jax.tree.map(lambda a, b: (a + scale * b).astype(a.dtype), tree, other)


def _dot(a: Tree, b: Tree) -> Array:
    """The inner product of two trees, summed in float32 at least."""

    def dot(a, b):
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.vdot(a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(dot, a, b)))
