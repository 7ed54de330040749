"""A learned optimizer: the inner rule is a small network that all parameters share."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.deprecation import renamed_arguments
from metajax.inner.rules.base import learned_transformation
from metajax.types import Array, Params

# Features besides the momenta: the gradient in three forms, and the value of the parameter.
_FEATURES = 4


class LearnedOptimizer(NamedTuple):
    """Learned parameters of `learned_rule`; no shape depends on the parameters that it updates.

    Attributes:
      log_gain: Logarithm of the step size relative to the rule's `learning_rate`, a scalar.
      kernel: Weights of the first layer, [4 + momenta, width].
      bias: Biases of the first layer, [width].
      output: Weights of the last layer, [width].
    """

    log_gain: Array
    kernel: Array
    bias: Array
    output: Array


@renamed_arguments(rate="learning_rate")
def learned_rule(
    learning_rate: float,
    *,
    momenta: Sequence[float] = (0.5, 0.9, 0.99),
    width: int = 16,
    floor: float = 1e-4,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Makes a learned optimizer: gradient descent corrected by a network of two layers per parameter.

    The network sees one parameter at a time. It reads these features, all without a unit but the last:

    - the gradient and its momenta, running means at several timescales, divided by `scale`, the root mean
      square of all of them over the leaf, which is never below `floor`;
    - the gradient again, as `arcsinh(grad / floor) / 10` and `tanh(grad / floor)`: the logarithm of its
      magnitude and its sign, smooth through zero, where the paper cuts both off at exp(-10);
    - the parameter's value.

    Its output is a correction in units of `scale`, which shrinks with the gradients; so the rule can run for
    more steps than it was trained for, and its state does not count steps. One learned rule updates
    parameters of any shape, in any model.

    Args:
      learning_rate: Step size that training starts from; training changes its logarithm.
      momenta: Decays of the running means, numbers in [0, 1); the means start at zero.
      width: Units of the hidden layer, an int of 1 or more. A step stores about `width` numbers per parameter
        for the backward pass.
      floor: Magnitude, above 0, below which gradients count as small and the features fall to zero with them.
        Slopes of the features reach 1 / floor, so a smaller floor makes meta-gradients noisy near a minimum.
      seed: Seed of the first layer, which is drawn at random; the last layer starts at zero.

    Returns:
      A rule with `params <- params - learning_rate * exp(log_gain) * (grads + scale * network(features))`.
      Its learned parameters are a `LearnedOptimizer` of the first leaf's dtype; its state is the momenta,
      [momenta, ...] for each leaf [...]. Until it is trained, it is `optax.sgd(learning_rate)`.

    Raises:
      ValueError: If a momentum is not in [0, 1), `width` is below 1, or `floor` is not positive.

    Example:
      >>> rule = learned_rule(0.5, width=4)
      >>> update = jax.jit(lambda grads, params: rule.update(grads, rule.init(params), params)[0])
      >>> update(jnp.ones(2), jnp.zeros(2)).tolist()
      [-0.5, -0.5]

    References:
      one rule for all parameters: Andrychowicz et al., 2016 (https://arxiv.org/abs/1606.04474), eq. 3,
      section 2.1 and, for the features of gradients, appendix A. Theirs is recurrent.
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
        chex.assert_trees_all_equal_shapes(grads, params)
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
    """Corrects the gradient [...] of a leaf; the result is in units of the first step size."""
    # In half precision the square of the floor would be zero, where the root has no derivative.
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
