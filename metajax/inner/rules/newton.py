"""Hessian-free Newton steps, the inner solver of iMAML HF."""

import jax
import jax.numpy as jnp
import optax

from metajax.inner.linear_solvers import add_scaled, conjugate_gradient, inner_product

# Armijo's condition: the decrease that a step has to bring, as a share of the one that its slope promises.
SUFFICIENT = 1e-4


def hessian_free(
    cg_steps: int = 5, *, damping: float = 0.0, backtracks: int = 10
) -> optax.GradientTransformationExtraArgs:
    """Takes Newton steps without forming a Hessian: conjugate gradients, then a backtracking line search.

    If the Newton direction does not descend, as where the curvature along the gradient is not positive, the
    step is along the gradient. Its length is halved from 1 until the value falls enough (Armijo's condition);
    if no length does, the parameters stay.

    Args:
      cg_steps: Number of products with the Hessian per step, an int of 1 or more.
      damping: Number of 0 or more that is added to the Hessian's diagonal.
      backtracks: Most halvings of a length, an int of 0 or more.

    Returns:
      An optax transformation; like optax's line searches, its `update` needs `value` and `value_fn`.

    Raises:
      ValueError: If `cg_steps` is below 1, or `damping` or `backtracks` is negative.

    Example:
      >>> rule, loss = hessian_free(), lambda x: jnp.sum((x - 3) ** 2)
      >>> def step(x):
      ...     value, grads = jax.value_and_grad(loss)(x)
      ...     return x + rule.update(grads, rule.init(x), x, value=value, value_fn=loss)[0]
      >>> jax.jit(step)(jnp.zeros(1)).tolist()
      [3.0]

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
        descends = inner_product(newton, grads) > 0
        direction = optax.tree.where(descends, newton, grads)
        slope = inner_product(direction, grads)
        # Near a minimum, where Newton steps are at their best, the decrease is smaller than the rounding of
        # the value: accept an increase of a few units in the last place.
        rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

        def fails(length):
            needed = value - SUFFICIENT * length * slope + rounding
            # Not `value_fn(...) > needed`, which NaN would pass.
            return ~(value_fn(add_scaled(params, -length, direction)) <= needed)

        def halve(search):
            length, _ = search
            return length / 2, fails(length / 2)

        one = jnp.ones_like(value)
        shortest = 0.5**backtracks
        length, failed = jax.lax.while_loop(
            lambda search: search[1] & (search[0] > shortest), halve, (one, fails(one))
        )
        length = jnp.where(failed, 0, length)
        return add_scaled(optax.tree.zeros_like(params), -length, direction), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        # optax's type has no required keyword arguments, though its own line searches need these two.
        update,  # pyright: ignore[reportArgumentType]
    )
