"""Implicit differentiation: the derivative of a minimum, however the inner solver reached it.

At a minimum the gradient g(params, operands) of the objective vanishes, for any operands. Hence
d params / d operands = -H^-1 dg / d operands with the Hessian H: the derivative costs one linear system, and
its memory does not grow with inner steps. The inner solver itself need not be differentiable.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.inner.linear_solvers import DEFAULT_SOLVER, LinearSolver
from metajax.inner.mixed import InnerLoss, scalar

Array = jax.Array
Tree = Any


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
    """Minimizes an objective by any means; the derivative is that of the implicit function theorem.

    The backward pass solves one linear system with Hessian-vector products, as many as `solver` takes, and
    stores only the minimum. The derivative is exact if `solve` ends at a minimum with a positive-definite
    Hessian and `solver` solves its system; its error is proportional to the distance of either from that. It
    needs forward mode and symmetric second derivatives of the objective, as mixed adjoints do: see
    `mixed_mode_error`. Only reverse mode is defined: `jax.jvp`, `jax.jacfwd` and `jax.hessian` of a function
    of the minimum raise a TypeError.

    Neither function may close over values that are being differentiated: pass them in `operands`.

    Args:
      objective: Objective, (params, operands) -> scalar.
      solve: Function (operands, init) -> params that minimize the objective, a tree of floating-point arrays.
        It is not differentiated and may be anything that JAX can trace.
      init: Tree of arrays of any structure, the start of `solve`; its gradient is zero, because a minimum
        does not depend on it.
      operands: Tree of arrays that the minimum depends on. Floating-point leaves get a gradient; integers and
        keys have none.
      solver: Linear solver of Hessian @ u = cotangent of the params, for the backward pass:
        `conjugate_gradient`, `neumann` or `identity_solver`.
      tolerance: Relative residual of that system, above 0; a larger one, or NaN, gives a RuntimeWarning, one
        per task under `vmap`. None adds nothing to the compiled program.
      has_aux: Whether `solve` returns a pair (params, aux); aux is any tree, and a constant for derivatives.

    Returns:
      The result of `solve`.

    Raises:
      ValueError: If `tolerance` is not positive, the objective is not a scalar, or the result of `solve` has
        leaves that are not floating-point.

    Example:
      Learns the penalty of a ridge regression, whose minimum is x y / (x^2 + penalty) for a single pair.

      >>> def objective(weight, operands):
      ...     penalty, x, y = operands
      ...     return (weight * x - y) ** 2 + penalty * weight**2
      >>> def solve(operands, init):
      ...     penalty, x, y = operands
      ...     return x * y / (x**2 + penalty)
      >>> def outer(penalty):
      ...     return argmin(objective, solve, (), (penalty, jnp.array(1.0), jnp.array(4.0)))
      >>> float(jax.grad(outer)(1.0))
      -1.0

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
            def value(params, floats):
                return scalar(objective)(params, trees.merge(floats, others))

            return jax.grad(value, (0, 1))(params, floats)

        # The derivative of both gradients along a direction v of the params is (H v, v dg / d operands).
        # Linearized once: all Hessian-vector products share the part that does not depend on the direction.
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
    """Returns the result of `solve` if it is a pair."""
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(
            f"solve returns {type(found).__name__}; return a pair (params, aux), or leave has_aux out."
        )
    return found


def _warn(residual: Array, *, tolerance: float) -> None:
    """Warns of a relative residual above the tolerance."""
    # Not `residual > tolerance`, which NaN would pass.
    if not residual <= tolerance:
        warnings.warn(
            f"The linear system of an implicit gradient has a relative residual of {residual:.2g}, and "
            f"{tolerance:.2g} is allowed; use more steps of the linear solver, more damping, or a larger "
            "regularization of the proximal term.",
            RuntimeWarning,
            stacklevel=2,
        )
