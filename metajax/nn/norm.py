"""Normalization as pure functions: by the statistics of the inputs, or by given ones.

Each is (x - mean) / sqrt(variance + epsilon) * scale + bias with the biased variance; they differ in the axes
of the mean. `epsilon` is 1e-3, as in MAML's own code, not the 1e-5 of PyTorch and Flax: it bounds the second
derivatives where the variance vanishes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from metajax.nn.pool import max_pool

Array = jax.Array


def batch_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-3) -> Array:
    """Normalizes each channel over the batch and all positions.

    The output of an example depends on the rest of its batch. On a query batch this is transductive: a
    prediction changes with the other queries, padding included.

    Args:
      x: Float inputs [B, ..., C].
      scale: Float scale [C].
      bias: Float bias [C].
      epsilon: Number that is added to the variance.

    Returns:
      Outputs of the shape of x. A constant channel, as every channel of x [1, C] is, becomes its bias.

    Raises:
      ValueError: If `x` has fewer than two axes, or scale or bias are not [C].

    Example:
      >>> batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), epsilon=0.0).tolist()
      [[-1.0], [1.0]]

    Reference: Ioffe and Szegedy, 2015 (https://arxiv.org/abs/1502.03167), alg. 1.
    """
    _check(x, scale, bias)
    return _standardize(x, tuple(range(x.ndim - 1)), epsilon) * scale + bias


def group_norm(x: Array, scale: Array, bias: Array, *, groups: int, epsilon: float = 1e-3) -> Array:
    """Normalizes each example over its positions and one group of channels at a time.

    Args:
      x: Float inputs [B, ..., C].
      scale: Float scale [C].
      bias: Float bias [C].
      groups: Number of groups of neighboring channels; divides C.
      epsilon: Number that is added to the variance.

    Returns:
      Outputs of the shape of x; no example depends on another.

    Raises:
      ValueError: If `x` has fewer than two axes, scale or bias are not [C], or the groups do not divide C.

    Example:
      >>> x = jnp.array([[1.0, 3.0, 5.0, 9.0]])
      >>> group_norm(x, jnp.ones(4), jnp.zeros(4), groups=2, epsilon=0.0).tolist()
      [[-1.0, 1.0, -1.0, 1.0]]

    Reference: Wu and He, 2018 (https://arxiv.org/abs/1803.08494), eq. 7.
    """
    _check(x, scale, bias)
    grouped, axes = _in_groups(x, groups)
    return _standardize(grouped, axes, epsilon).reshape(x.shape) * scale + bias


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-3) -> Array:
    """Normalizes each example over all its positions and channels: `group_norm` with one group.

    Args:
      x: Float inputs [B, ..., C].
      scale: Float scale [C].
      bias: Float bias [C].
      epsilon: Number that is added to the variance.

    Returns:
      Outputs of the shape of x; no example depends on another.

    Raises:
      ValueError: If `x` has fewer than two axes, or scale or bias are not [C].

    Example:
      >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), jnp.zeros(2), epsilon=0.0).tolist()
      [[-1.0, 1.0]]

    Reference: Ba et al., 2016 (https://arxiv.org/abs/1607.06450), eq. 3.
    """
    return group_norm(x, scale, bias, groups=1, epsilon=epsilon)


def fixed_norm(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, *, epsilon: float = 1e-3
) -> Array:
    """Normalizes each channel by given statistics, such as running averages.

    Args:
      x: Float inputs [B, ..., C].
      scale: Float scale [C].
      bias: Float bias [C].
      mean: Float means [C].
      variance: Float variances [C].
      epsilon: Number that is added to the variance.

    Returns:
      Outputs of the shape of x; no example depends on another.

    Raises:
      ValueError: If `x` has fewer than two axes, or scale, bias, mean or variance are not [C].

    Example:
      >>> one = jnp.ones(1)
      >>> fixed_norm(jnp.array([[5.0]]), one, 0 * one, mean=one, variance=4 * one, epsilon=0.0).tolist()
      [[2.0]]
    """
    _check(x, scale, bias)
    _check_moments(x, mean, variance)
    return (x - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias


def batch_moments(x: Array) -> tuple[Array, Array]:
    """Computes the mean and the biased variance of each channel, over the batch and all positions.

    Args:
      x: Float inputs [B, ..., C].

    Returns:
      Means and variances, both [C].

    Raises:
      ValueError: If `x` has fewer than two axes.

    Example:
      >>> mean, variance = batch_moments(jnp.array([[1.0], [3.0]]))
      >>> mean.tolist(), variance.tolist()
      ([2.0], [1.0])
    """
    _check_axes(x)
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
    """Normalizes, rectifies and max-pools images: `max_pool(relu(norm(x)))` at a fraction of its cost.

    Normalization is affine with one slope per channel, so pooling may come first: the largest entry of a tile
    is normalized where the slope is positive, the smallest where it is negative. Only statistics and pooling
    then see the whole image, forward and backward; the rest sees the pooled one.

    Args:
      x: Float images [B, H, W, C].
      scale: Float scale [C].
      bias: Float bias [C].
      groups: Number of groups, as in `group_norm` (1 is `layer_norm`); None normalizes over the batch, as
        `batch_norm` does.
      moments: Mean and variance, both [C], to normalize by instead, as in `fixed_norm`.
      window: Side of the tiles, as in `max_pool`.
      epsilon: Number that is added to the variance.

    Returns:
      Float images [B, H // window, W // window, C].

    Raises:
      ValueError: If shapes do not fit, the groups do not divide C, or the window does not fit in the images.

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> norm_relu_pool(x, jnp.ones(1), jnp.zeros(1)).shape
      (1, 2, 2, 1)
    """
    _check(x, scale, bias)
    if moments is not None:
        mean, variance = moments
        _check_moments(x, mean, variance)
    elif groups is None:
        mean, variance = _moments(x, tuple(range(x.ndim - 1)))
    else:
        mean, variance = _group_moments(x, groups)
    sign = jnp.where(scale < 0, -1, 1).astype(x.dtype)
    extreme = max_pool(x * sign, window) * sign
    return jax.nn.relu((extreme - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Computes mean and biased variance over axes, which stay with length 1."""
    # Two passes: in float32, the mean of squares less the squared mean cancels if that is large. `jnp.mean`
    # sums bfloat16 in float32 and rounds the result.
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True)


@_moments.defjvp
def _moments_jvp(axes, primals, tangents):
    """Differentiates `_moments` with one reduction for each of its results instead of three."""
    # The deviations sum to zero, so the mean's own tangent drops out of the variance's:
    # dvariance = 2 mean((x - mean) (dx - dmean)) = 2 mean((x - mean) dx).
    (x,), (dx,) = primals, tangents
    mean, variance = _moments(x, axes)
    dmean = jnp.mean(dx, axes, keepdims=True)
    dvariance = 2 * jnp.mean((x - mean) * dx, axes, keepdims=True)
    return (mean, variance), (dmean, dvariance)


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Shifts and scales to mean zero and variance one over axes."""
    mean, variance = _moments(x, axes)
    return (x - mean) * lax.rsqrt(variance + epsilon)


def _group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Computes mean and variance of each example's groups, one value per channel: [B, 1, ..., C]."""
    grouped, axes = _in_groups(x, groups)

    def per_channel(value):
        value = jnp.broadcast_to(value, (*value.shape[:-1], grouped.shape[-1]))
        return value.reshape(*value.shape[:-2], x.shape[-1])

    mean, variance = _moments(grouped, axes)
    return per_channel(mean), per_channel(variance)


def _in_groups(x: Array, groups: int) -> tuple[Array, tuple[int, ...]]:
    """Reshapes x to [B, ..., G, C / G]; returns it with the axes that one group spans."""
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"{channels} channels do not divide into {groups} groups; use a divisor "
            f"of {channels}, or a multiple of {groups} channels."
        )
    grouped = x.reshape(*x.shape[:-1], groups, channels // groups)
    return grouped, (*range(1, grouped.ndim - 2), grouped.ndim - 1)


def _check(x: Array, scale: Array, bias: Array) -> None:
    """Raises a ValueError unless x is [B, ..., C], and scale and bias are [C]."""
    _check_axes(x)
    if scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"Scale {scale.shape} and bias {bias.shape} must be [C] = {x.shape[-1:]}, the last "
            "axis of x; reshape them."
        )


def _check_axes(x: Array) -> None:
    """Raises a ValueError unless x is [B, ..., C]."""
    if x.ndim < 2:
        raise ValueError(f"Normalization takes x [B, ..., C], not {x.shape}; add a batch axis.")


def _check_moments(x: Array, mean: Array, variance: Array) -> None:
    """Raises a ValueError unless mean and variance are [C]; other shapes could broadcast to wrong numbers."""
    if jnp.shape(mean) != x.shape[-1:] or jnp.shape(variance) != x.shape[-1:]:
        raise ValueError(
            f"Mean {jnp.shape(mean)} and variance {jnp.shape(variance)} must be [C] = {x.shape[-1:]}, "
            "the last axis of x; reshape them."
        )
