"""Losses of inner loops, and their gradients in mixed mode: differentiated forward over reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import trees

Array = jax.Array
Tree = Any
InnerLoss = Callable[[Tree, Tree], Array]


def scalar(loss: InnerLoss) -> InnerLoss:
    """The same loss, which is refused where it is traced if it is no scalar."""

    def checked(params: Tree, operands: Tree) -> Array:
        value = loss(params, operands)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        if shapes != [()]:
            raise ValueError(
                f"The loss has the shape {', '.join(map(str, shapes))}; return one scalar, such as a mean."
            )
        return value

    return checked


def mixed_gradient(loss: InnerLoss) -> Callable[[Tree, Tree], Tree]:
    """Replaces `jax.grad` where its result is differentiated once more, and keeps nothing for that.

    The vector-Jacobian product v -> (v H, v d grad / d operands) is by symmetry of second derivatives a
    Jacobian-vector product of the whole gradient: forward over reverse mode, whose residuals are the
    arguments. For a loop of one's own; `unroll` has it as `adjoint="mixed"`:

        gradient = metajax.mixed_gradient(loss)  # for jax.grad(loss)
        weights = weights - rate * gradient(weights, data)

    Args:
      loss: Loss, (params, operands) -> scalar, which closes over nothing that is being differentiated. Its
        second derivatives have to be symmetric: see `mixed_mode_error`.

    Returns:
      Function (params, operands) -> grads. Reverse mode differentiates it, forward mode does not.

    Reference: Kemaev et al., 2025 (https://arxiv.org/abs/2505.00793), section 3.
    """

    def gradient(params: Tree, operands: Tree) -> Tree:
        floats, others = trees.split_floats(operands)

        def loss_of(params, floats, others):
            return loss(params, trees.merge(floats, others))

        @jax.custom_vjp
        def grad(params, floats, others):
            return jax.grad(loss_of)(params, floats, others)

        def forward(*args):
            return grad(*args), args

        def backward(args, cotangent):
            params, *rest = args

            def gradients(params):
                return jax.grad(loss_of, (0, 1))(params, *rest)

            _, products = jax.jvp(gradients, (params,), (cotangent,))
            return *products, None

        grad.defvjp(forward, backward)
        return grad(params, floats, others)

    return gradient


def mixed_mode_error(loss: InnerLoss, params: Tree, operands: Tree, *, key: Array) -> float:
    """Measures how wrong mixed mode is for a loss: in one random direction, at these parameters.

    It is right where the inner gradient is the gradient of one function of both arguments. That does not hold
    where a custom derivative differs from the true one: a straight-through estimator by `jax.custom_vjp`, a
    clipped or reversed gradient. (`jax.lax.stop_gradient` does no harm: derivatives of every order take what
    it stops for the same constant.)

    Args:
      loss: (params, operands) -> scalar.
      params: Parameters that inner steps move, a tree of floating-point arrays.
      operands: Tree of arrays that the loss reads beside; only floating-point leaves count.
      key: draws the direction.

    Returns:
      The largest relative difference, over leaves of both, between forward-over-reverse and
      reverse-over-reverse derivatives of <direction, gradient>. Leaves far smaller than the largest are
      compared relative to that, since all they hold may be rounding.

    Raises:
      TypeError: where the loss has a `jax.custom_vjp` that has no forward mode at all.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    direction = treedef.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )
    floats, others = trees.split_floats(operands)

    def vjp(gradient_of):
        def gradient(params, floats):
            return gradient_of(loss)(params, trees.merge(floats, others))

        product = jax.jit(lambda *args: jax.vjp(gradient, *args)[1](direction))
        return jax.tree.leaves(product(params, floats))

    pairs = list(zip(vjp(mixed_gradient), vjp(jax.grad), strict=True))
    norms = [jnp.maximum(*(jnp.linalg.norm(leaf.ravel()) for leaf in pair)) for pair in pairs]
    rounding = jnp.sqrt(jnp.finfo(norms[0].dtype).eps)
    floor = jnp.maximum(rounding * jnp.max(jnp.stack(norms)), jnp.finfo(norms[0].dtype).tiny)
    return max(
        float(jnp.linalg.norm((mixed - reverse).ravel()) / jnp.maximum(norm, floor))
        for (mixed, reverse), norm in zip(pairs, norms, strict=True)
    )
