"""Meta-curvature: inner gradients multiplied by learned matrices along each of their modes."""

import math

import jax
import jax.numpy as jnp
import optax

from metajax.deprecation import renamed_arguments
from metajax.inner.rules.base import learned_transformation
from metajax.types import Array


@renamed_arguments(rate="learning_rate")
def curvature_rule(
    learning_rate: float, *, largest: int | None = 2048
) -> optax.GradientTransformationExtraArgs:
    """Makes the rule of meta-curvature: gradients are multiplied by one learned matrix per mode.

    A mode is an axis of a gradient, or several merged axes:

    | leaf | modes |
    |---|---|
    | scalar | 1 |
    | vector [n] | n |
    | matrix [I, O] | I, O |
    | kernel [h, w, I, O], or any [..., I, O] | h * w (all other axes merged), I, O |

    Together the matrices are one matrix of the whole leaf, their Kronecker product, of which only the factors
    are stored: a [3, 3, 64, 64] kernel learns 9^2 + 2 * 64^2 numbers, not 36864^2. Nothing keeps them
    positive: a learned matrix may turn a gradient around.

    Args:
      learning_rate: Step size, a constant; training changes the matrices instead.
      largest: Longest mode with a full matrix [n, n]; a longer one learns only a diagonal [n]. 0 makes
        every factor a diagonal, None makes every factor a matrix.

    Returns:
      A rule with `params <- params - learning_rate * (grads x_1 M_1 ... x_k M_k)`. Its parameters hold a
      tuple of factors for each leaf, [n, n] or [n] and of the leaf's dtype, in the order of the modes. They
      start as identities: until they are trained, the rule is `optax.sgd(learning_rate)`.

    Raises:
      ValueError: If `largest` is negative.

    Example:
      >>> rule = curvature_rule(0.1)
      >>> state = rule.init({"kernel": jnp.ones((2, 3))})
      >>> [factor.shape for factor in state.learned.value["kernel"]]
      [(2, 2), (3, 3)]

    Reference: Park and Oliva, 2019 (https://arxiv.org/abs/1902.03356), section 3: of its two transformations
    MC2, `G x_3 M_f x_2 M_i x_1 M_o`, whose kernels are [O, I, h * w]. The authors' code gives vectors a
    diagonal.
    """
    if largest is not None and largest < 0:
        raise ValueError(f"largest is {largest}; use 0 or more, or None for matrices everywhere.")

    def identity(length, dtype):
        full = largest is None or length <= largest
        return jnp.eye(length, dtype=dtype) if full else jnp.ones(length, dtype)

    def init(params):
        return jax.tree.map(
            lambda p: tuple(identity(length, p.dtype) for length in _modes(p.shape)), params
        )

    def update(factors, grads, state, params, **extra):
        del params, extra
        updates = jax.tree.map(
            lambda grad, factors: -learning_rate * _transform(grad, factors), grads, factors
        )
        return updates, state

    return learned_transformation(init, update)


def _modes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Merges all axes of a leaf but its last two; a scalar has one mode, of length 1."""
    return (math.prod(shape[:-2]), *shape[-2:]) if len(shape) > 2 else shape or (1,)


def _transform(grad: Array, factors: tuple[Array, ...]) -> Array:
    """Multiplies a gradient by the factor of each of its modes."""
    tensor = grad.reshape(_modes(grad.shape))
    for mode, factor in enumerate(factors):
        tensor = _multiply(tensor, factor, mode)
    return tensor.reshape(grad.shape)


def _multiply(tensor: Array, factor: Array, mode: int) -> Array:
    """Multiplies one mode of a tensor by a matrix [n, n], or by a diagonal [n]."""
    if factor.ndim == 1:
        return tensor * jnp.expand_dims(factor, range(1, tensor.ndim - mode))
    # In fewer bits, the default of some devices, even the identity would round gradients.
    product = jnp.tensordot(factor, tensor, axes=(1, mode), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, mode)
