"""A learned optimizer: the inner rule is a small network, the same for every parameter."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.inner.rules.base import learned_transformation
from metajax.types import Array, Params

# Features beside the momenta: the gradient in three ways, and the value of the parameter.
_FEATURES = 4


class LearnedOptimizer(NamedTuple):
    """What there is to learn; nothing of it depends on the shapes of the parameters that it moves.

    Attributes:
      log_gain: [] logarithm of the step size, relative to the rule's `learning_rate`.
      kernel: [4 + momenta, width] first layer.
      bias: [width] of the first layer.
      output: [width] last layer.
    """

    log_gain: Array
    kernel: Array
    bias: Array
    output: Array


def learned_rule(
    learning_rate: float,
    *,
    momenta: Sequence[float] = (0.5, 0.9, 0.99),
    width: int = 16,
    floor: float = 1e-4,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent corrected by a network of two layers that looks at one parameter at a time.

    For each parameter the network reads, and all but the last are numbers without a unit:

    - the gradient and its momenta, running means at several timescales, divided by `scale`, the root mean
      square of all of them over the leaf, never under `floor`;
    - the gradient again, as `arcsinh(grad / floor) / 10` and `tanh(grad / floor)`: the logarithm of its
      magnitude and its sign, smooth through zero, where the paper cuts both off at exp(-10);
    - the parameter's value.

    Its output, a correction in units of `scale`, shrinks with the gradients, which is what lets the rule run
    for more steps than it was trained for; nor does the state count steps. The same learned rule moves
    parameters of any shape, those of another model too.

    Args:
      learning_rate: the step size that training starts from; training changes its logarithm.
      momenta: decays of the running means, which start at zero.
      width: of the hidden layer. A step keeps about `width` numbers a parameter for the backward pass.
      floor: the magnitude under which gradients count as small and the features fall to zero with them. The
        features' slopes reach 1 / floor, so that a smaller one makes meta-gradients noisy near a minimum.
      seed: of the first layer, drawn at random; the last starts at zero.

    Returns:
      A rule with `params <- params - learning_rate * exp(log_gain) * (grads + scale * network(features))`,
      whose parameters are a `LearnedOptimizer` of the dtype of the first leaf, and whose state is the
      momenta, [momenta, ...] for each leaf. It is `optax.sgd(learning_rate)` until it is trained.

    Raises:
      ValueError: where a momentum is not in [0, 1), `width` is under 1, or `floor` is not positive.

    References:
      a rule shared by all parameters: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), eq. 3,
      section 2.1 and, for gradients as the network sees them, appendix A. Theirs is recurrent.
      momenta as features: Metz et al., 2020 (https://arxiv.org/abs/2009.11243).
    """
    for momentum in momenta:
        if not 0 <= momentum < 1:
            raise ValueError(f"A momentum is {momentum}; use decays from 0 to under 1, like 0.9.")
    if width < 1:
        raise ValueError(f"width is {width}; use 1 or more.")
    if not floor > 0:
        raise ValueError(f"floor is {floor}; use a positive number, such as 1e-4.")

    def init(params: Params) -> LearnedOptimizer:
        dtype, size = jax.tree.leaves(params)[0].dtype, _FEATURES + len(momenta)
        kernel = jax.random.normal(jax.random.key(seed), (size, width), dtype) / size**0.5
        zeros = jnp.zeros(width, dtype)
        return LearnedOptimizer(jnp.zeros((), dtype), kernel, zeros, zeros)

    def start(params):
        return jax.tree.map(lambda p: jnp.zeros((len(momenta), *p.shape), p.dtype), params)

    def update(learned, grads, state, params, **extra):
        del extra
        if params is None:
            raise ValueError("params is None; pass the current ones, which the network reads.")
        state = jax.tree.map(lambda g, means: _accumulate(g, means, momenta), grads, state)
        updates = jax.tree.map(
            lambda *leaf: -learning_rate * _direction(learned, *leaf, floor=floor),
            grads,
            state,
            params,
        )
        return updates, state

    return learned_transformation(init, update, start)


def _accumulate(grad: Array, means: Array, momenta: Sequence[float]) -> Array:
    """Moves running means [momenta, ...] towards a gradient [...]."""
    decays = jnp.expand_dims(jnp.asarray(momenta, grad.dtype), range(1, means.ndim))
    return decays * means + (1 - decays) * grad


def _direction(
    learned: LearnedOptimizer, grad: Array, means: Array, value: Array, *, floor: float
) -> Array:
    """The gradient [...] of a leaf, corrected by the network, as a multiple of the first step size."""
    # In half precision the square of the floor would be zero, where a root has no derivative.
    dtype = jnp.promote_types(grad.dtype, jnp.float32)
    learned = jax.tree.map(lambda leaf: leaf.astype(dtype), learned)
    exact, value = grad.astype(dtype), value.astype(dtype)
    seen = jnp.concatenate([exact[None], means.astype(dtype)])
    scale = jnp.sqrt(jnp.mean(seen**2) + floor**2)
    small = exact / floor
    features = jnp.concatenate(
        [seen / scale, jnp.stack([jnp.arcsinh(small) / 10, jnp.tanh(small), value])]
    )
    # Units before parameters: with the few units last, a meta-gradient takes a third longer on a CPU.
    rows = features.reshape(len(features), -1)
    hidden = jnp.tanh(learned.kernel.T @ rows + learned.bias[:, None])
    correction = scale * (learned.output @ hidden).reshape(grad.shape)
    return (jnp.exp(learned.log_gain) * (exact + correction)).astype(grad.dtype)
