"""Gaussian perturbations of meta-parameters, shared by the evolution strategies.

Both estimate the gradient of the loss smoothed by a Gaussian, E L(meta + sigma e) with e ~ N(0, I), from
values of L alone. That gradient exists where L has none (accuracy, discrete choices) and stays moderate where
the gradient of L explodes over a long adaptation.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Key, Meta, Metrics

# Folded into a task's key; small numbers would repeat keys, since `split(key)[i]` is `fold_in(key, i)`.
_NOISE = 0x6E6F6973


def check_sigma(sigma: float) -> None:
    """Raises a ValueError unless the standard deviation is finite and positive."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; use a finite number above 0, such as 0.01.")


def draw_noise(key: Key, pair: int | Array, meta: Meta) -> Meta:
    """Draws e ~ N(0, I) shaped like `meta`.

    Args:
      key: Key of the task; not consumed, only folded into.
      pair: Number of the antithetic pair.
      meta: Meta-parameters; their leaves that are not floating-point get zeros.

    Returns:
      Tree like `meta`.
    """
    leaves, treedef = jax.tree.flatten(meta)
    keys = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, _NOISE), pair), max(len(leaves), 1)
    )
    return treedef.unflatten(
        jax.random.normal(keys[i], jnp.shape(leaf), jnp.result_type(leaf))
        if _is_float(leaf)
        else jnp.zeros(jnp.shape(leaf), jnp.float32)
        for i, leaf in enumerate(leaves)
    )


def perturb(meta: Meta, noise: Meta, scale: Array) -> Meta:
    """Returns meta + scale * noise; leaves that are not floating-point stay as they are."""
    return jax.tree.map(
        lambda leaf, e: leaf + (scale * e).astype(e.dtype) if _is_float(leaf) else leaf,
        meta,
        noise,
    )


def both_signs(function: Callable[..., Any], *operands: Any) -> Any:
    """Evaluates `(sign, *operands) -> results` for the signs + and -, in one vectorized trace.

    Args:
      function: Function of a sign, 1.0 or -1.0, and further operands.
      *operands: Trees with a leading axis of two: the operands of + and of -.

    Returns:
      Results with a leading axis of two.
    """
    return jax.vmap(function)(jnp.array([1.0, -1.0]), *operands)


def slope(losses: Array, sigma: float) -> Array:
    """Computes (L+ - L-) / (2 sigma) from the losses [2] at meta + sigma e and meta - sigma e."""
    return (losses[0] - losses[1]) / (2 * sigma)


def scaled(noise: Meta, scale: Array) -> Meta:
    """Multiplies perturbations by a scalar and keeps their types."""
    return jax.tree.map(lambda e: (scale * e).astype(e.dtype), noise)


def square_norm(tree: Meta) -> Array:
    """Sums the squares of all numbers of a tree, in float32 at least."""
    # Half precision overflows at 65504 and sums coarsely.
    wide = (
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree)
    )
    return sum((jnp.sum(leaf**2) for leaf in wide), jnp.zeros((), jnp.float32))


def grad_variance(mean: Meta, mean_square: Array, tasks: int) -> Metrics:
    """Estimates the trace of the covariance of one task's estimate, without bias.

    It is T / (T - 1) (mean |g_t|^2 - |mean g_t|^2), the sample variance summed over all numbers.

    Args:
      mean: Mean of the estimates over tasks, shaped like the meta-parameters.
      mean_square: Mean of their squared norms, a scalar.
      tasks: Number of tasks T.

    Returns:
      A dict with `grad_variance`, a scalar; empty for a single task, whose variance is unknown.
    """
    if tasks < 2:
        return {}
    spread = mean_square - square_norm(mean)
    # Negative by rounding only.
    return {"grad_variance": jnp.maximum(spread, 0) * (tasks / (tasks - 1))}


def _is_float(leaf: Array) -> bool:
    """Tests whether a leaf is floating-point, and so perturbed."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
