"""Inner losses, and their gradients in mixed mode: differentiated forward over reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import trees

Array = jax.Array
Tree = Any
InnerLoss = Callable[[Tree, Tree], Array]


def scalar(loss: InnerLoss) -> InnerLoss:
    """Checks, when a loss is traced, that its value is one scalar.

    Args:
      loss: Loss, (params, operands) -> scalar.

    Returns:
      The same loss, which raises a ValueError for any other value.

    Raises:
      ValueError: (from the returned loss) If the value is not a scalar.
    """

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
    """Replaces `jax.grad` where its result is differentiated once more, and stores nothing for that.

    The vector-Jacobian product v -> (v H, v d grad / d operands) of the gradient is, by the symmetry of
    second derivatives, a Jacobian-vector product of the whole gradient: forward over reverse mode, whose
    only residuals are its arguments. Use it in a hand-written loop; `unroll` has it as `adjoint="mixed"`.

    Args:
      loss: Loss, (params, operands) -> scalar, that closes over no value that is being differentiated. Its
        second derivatives have to be symmetric: see `mixed_mode_error`.

    Returns:
      Function (params, operands) -> grads, which reverse mode differentiates and forward mode does not.

    Example:
      >>> gradient = mixed_gradient(lambda weights, data: jnp.sum(weights**2 * data))
      >>> def step(rate):
      ...     return 1.0 - rate * gradient(1.0, 3.0)
      >>> float(jax.grad(step)(0.1))
      -6.0

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

            # With v = cotangent: d/d params (dL/d params, dL/d operands) v = (H v, v d grad / d operands).
            _, products = jax.jvp(gradients, (params,), (cotangent,))
            return *products, None

        grad.defvjp(forward, backward)
        return grad(params, floats, others)

    return gradient


def mixed_mode_error(loss: InnerLoss, params: Tree, operands: Tree, *, key: Array) -> float:
    """Measures the error of mixed mode for a loss, in one random direction at the given parameters.

    Mixed mode is exact if the inner gradient is the gradient of one function of both arguments. It is not if
    a custom derivative differs from the true one: a straight-through estimator by `jax.custom_vjp`, a clipped
    or a reversed gradient. (`jax.lax.stop_gradient` does no harm: derivatives of all orders see the same
    constant.)

    Args:
      loss: Loss, (params, operands) -> scalar.
      params: Parameters that inner steps adapt, a tree of floating-point arrays.
      operands: Tree of arrays, the other argument of the loss; only floating-point leaves count.
      key: Random key of the direction; consumed.

    Returns:
      The largest relative difference, over leaves of both trees, between the forward-over-reverse and the
      reverse-over-reverse derivative of <direction, gradient>. Leaves far smaller than the largest one are
      compared relative to it, since they may hold nothing but rounding.

    Raises:
      TypeError: If the loss has a `jax.custom_vjp`, which has no forward mode at all.

    Example:
      >>> loss = lambda weights, data: jnp.mean((data @ weights) ** 2)
      >>> mixed_mode_error(loss, jnp.ones(2), jnp.ones((3, 2)), key=jax.random.key(0)) < 1e-4
      True
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
    # Below sqrt(eps) of the largest norm a leaf may be rounding alone; `tiny` keeps 0 / 0 away.
    rounding = jnp.sqrt(jnp.finfo(norms[0].dtype).eps)
    floor = jnp.maximum(rounding * jnp.max(jnp.stack(norms)), jnp.finfo(norms[0].dtype).tiny)
    return max(
        float(jnp.linalg.norm((mixed - reverse).ravel()) / jnp.maximum(norm, floor))
        for (mixed, reverse), norm in zip(pairs, norms, strict=True)
    )
