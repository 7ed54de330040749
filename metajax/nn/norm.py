"""Normalisation as pure functions: by the statistics of the inputs at hand, or by given ones.

Each is (x - mean) / sqrt(variance + epsilon) * scale + bias with the biased variance; they differ
in what the mean is over. `epsilon` is 1e-3, as in MAML's own code, rather than the 1e-5 of PyTorch
and Flax: it bounds the second derivatives where the variance vanishes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from metajax.nn.pool import max_pool

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
    grouped, axes = _in_groups(x, groups)
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


def fixed_norm(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, *, epsilon: float = 1e-3
) -> Array:
    """Normalises each channel by given statistics, such as running averages.

    Args:
      x: [B, ..., C].
      scale: [C].
      bias: [C].
      mean: [C].
      variance: [C].
      epsilon: added to the variance.

    Returns:
      The shape of x; no example depends on another.
    """
    _check(x, scale, bias)
    return (x - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias


def batch_moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance [C] of each channel of x [B, ..., C], over the batch and all positions."""
    mean, variance = _moments(x, tuple(range(x.ndim - 1)))
    return mean.reshape(-1), variance.reshape(-1)


def norm_relu_pool(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    groups: int | None = None,
    moments: tuple[Array, Array] | None = None,
    window: int = 2,
    epsilon: float = 1e-3,
) -> Array:
    """Normalises, rectifies and max-pools images: `max_pool(relu(norm(x)))` at a fraction of its cost.

    Normalisation is affine with one slope a channel, so pooling may come first: the largest of a tile is
    normalised where the slope is positive, the smallest where it is negative. Only statistics and pooling
    then see the whole image, forward and backward; the rest sees the pooled one.

    Args:
      x: [B, H, W, C].
      scale: [C].
      bias: [C].
      groups: None normalises over the batch, as `batch_norm`; a number as `group_norm` (1 is `layer_norm`).
      moments: mean and variance [C] to take instead, as `fixed_norm`.
      window: side of the tiles, as of `max_pool`.
      epsilon: added to the variance.

    Returns:
      [B, H // window, W // window, C].
    """
    _check(x, scale, bias)
    if moments is not None:
        mean, variance = moments
    elif groups is None:
        mean, variance = _moments(x, tuple(range(x.ndim - 1)))
    else:
        mean, variance = _group_moments(x, groups)
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    extreme = max_pool(x * sign, window) * sign
    return jax.nn.relu((extreme - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance over axes, which stay with length 1."""
    # Two passes: in float32, the mean of squares less the squared mean cancels if that is large. Of bfloat16,
    # `jnp.mean` sums in float32 and rounds the result.
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True)


@_moments.defjvp
def _moments_jvp(axes, primals, tangents):
    # The deviations sum to zero, so that the mean's own tangent drops out of the variance's: each
    # derivative is then one reduction instead of three.
    (x,), (dx,) = primals, tangents
    mean, variance = _moments(x, axes)
    dmean = jnp.mean(dx, axes, keepdims=True)
    dvariance = 2 * jnp.mean((x - mean) * dx, axes, keepdims=True)
    return (mean, variance), (dmean, dvariance)


def _standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean, variance = _moments(x, axes)
    return (x - mean) * lax.rsqrt(variance + epsilon)


def _group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance of each example's groups of channels, [B, 1, ..., C]."""
    grouped, axes = _in_groups(x, groups)

    def a_channel(value):
        value = jnp.broadcast_to(value, (*value.shape[:-1], grouped.shape[-1]))
        return value.reshape(*value.shape[:-2], x.shape[-1])

    mean, variance = _moments(grouped, axes)
    return a_channel(mean), a_channel(variance)


def _in_groups(x: Array, groups: int) -> tuple[Array, tuple[int, ...]]:
    """Reshapes x to [B, ..., G, C / G], and says over which axes a group is normalised."""
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {groups} groups; use a divisor "
            f"of {channels}, or a multiple of {groups} channels."
        )
    grouped = x.reshape(*x.shape[:-1], groups, channels // groups)
    return grouped, (*range(1, grouped.ndim - 2), grouped.ndim - 1)


def _check(x: Array, scale: Array, bias: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"Normalisation takes x [B, ..., C], not {x.shape}; add a batch axis.")
    if scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"Scale {scale.shape} and bias {bias.shape} must be [C] = {x.shape[-1:]}, the last "
            "axis of x."
        )
