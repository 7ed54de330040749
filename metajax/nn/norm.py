"""Normalisation without running state: the statistics are always those of the inputs at hand.

Each is (x - mean) / sqrt(variance + epsilon) * scale + bias with the biased variance; they differ
in what the mean is over. `epsilon` is 1e-3, as in MAML's own code, rather than the 1e-5 of PyTorch
and Flax: it bounds the second derivatives where the variance vanishes.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def batch_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-3) -> Array:
    """Normalises each channel over the batch and all positions.

    An example's output depends on the rest of its batch. On a query batch this is transductive:
    predictions change with the company a query keeps, padding included.

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      epsilon: added to the variance.

    Returns:
      The shape of x. Where a channel is constant, as it is for x of shape [1, C], the bias.

    Reference: Ioffe and Szegedy, 2015 (https://arxiv.org/abs/1502.03167), alg. 1.
    """
    _check(x, scale, bias)
    return _standardise(x, tuple(range(x.ndim - 1)), epsilon) * scale + bias


def group_norm(x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float = 1e-3) -> Array:
    """Normalises each example over its positions and one group of channels at a time.

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      groups: how many groups of neighbouring channels; divides C.
      epsilon: added to the variance.

    Returns:
      The shape of x; no example depends on another.

    Reference: Wu and He, 2018 (https://arxiv.org/abs/1803.08494), eq. 7.
    """
    _check(x, scale, bias)
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {groups} groups; use a divisor "
            f"of {channels}, or a multiple of {groups} channels."
        )
    grouped = x.reshape(*x.shape[:-1], groups, channels // groups)
    axes = (*range(1, grouped.ndim - 2), grouped.ndim - 1)
    return _standardise(grouped, axes, epsilon).reshape(x.shape) * scale + bias


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-3) -> Array:
    """Normalises each example over all its positions and channels: `group_norm` with one group.

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      epsilon: added to the variance.

    Returns:
      The shape of x; no example depends on another.

    Reference: Ba et al., 2016 (https://arxiv.org/abs/1607.06450), eq. 3.
    """
    return group_norm(x, scale, bias, groups=1, epsilon=epsilon)


def _standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    # Two passes: in float32, the mean of squares less the squared mean cancels if that is large.
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    return centred * lax.rsqrt(variance + epsilon)


def _check(x: Array, scale: Array, bias: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"Normalisation takes x [B, ..., C], not {x.shape}; add a batch axis.")
    if scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"Scale {scale.shape} and bias {bias.shape} must be [C] = {x.shape[-1:]}, the last "
            "axis of x."
        )
