"""A linear baseline of returns, and a solver of normal equations that rounding may have spoiled."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.types import Array, Tree

# Solving again for what is left takes the bias of a ridge away, and the hundredth part of its digits that an
# inverse with entries of one over the ridge loses.
_ROUNDS = 8
# Ridges that are tried, each ten times the one before: in float32 up to a tenth of a feature's own square.
_TRIES = 5


def linear_baseline(observation: Tree, returns: Array, alive: Array) -> Array:
    """Fits returns by features of the observation and the time, and predicts them.

    The features are the observation clipped to [-10, 10], its square, t/100, its square and cube, and one.

    Args:
      observation: Observations [N, H, ...], a tree of arrays.
      returns: Returns [N, H] to fit.
      alive: Steps to fit, bool [N, H].

    Returns:
      Predictions [N, H] for all steps. Returns that are linear in the features are met up to rounding.

    Example:
      >>> observation, alive = jnp.zeros((2, 3, 1)), jnp.ones((2, 3), bool)
      >>> returns = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
      >>> found = jax.jit(linear_baseline)(observation, returns, alive)
      >>> np.allclose(found, returns, atol=1e-2)
      True

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1604.06778), section 3.1 and rllab's code.
    """
    episodes, steps = returns.shape
    flat = [
        leaf.reshape(episodes, steps, -1).astype(returns.dtype)
        for leaf in jax.tree.leaves(observation)
    ]
    seen = jnp.clip(jnp.concatenate(flat, axis=-1), -10, 10)
    time = jnp.broadcast_to(
        (jnp.arange(steps, dtype=returns.dtype) / 100)[:, None], (episodes, steps, 1)
    )
    features = jnp.concatenate(
        [seen, seen**2, time, time**2, time**3, jnp.ones_like(time)], axis=-1
    )
    rows = jnp.where(alive[..., None], features, 0)
    wanted = jnp.where(alive, returns, 0)
    # Features of one scale: in float32 the normal equations of raw cubes of time lose all digits.
    scale = jnp.sqrt(jnp.sum(rows**2, axis=(0, 1)))
    scale = jnp.where(scale > 0, scale, 1)  # a feature that is always zero
    rows = rows / scale
    # By episode, and then over episodes: one long sum rounds more.
    gram = jnp.sum(jnp.einsum("nhp,nhq->npq", rows, rows), axis=0)
    solve = rounded_inverse(gram)

    def again(weights: Array, _: None) -> tuple[Array, None]:
        left = jnp.sum(jnp.einsum("nhp,nh->np", rows, wanted - rows @ weights), axis=0)
        return weights + solve(left), None

    weights, _ = jax.lax.scan(again, jnp.zeros_like(scale), length=_ROUNDS)
    return (features / scale) @ weights


def rounded_inverse(gram: Array) -> Callable[[Array], Array]:
    """Makes the inverse of a matrix of products of unit features, whatever rounding has made of it.

    Features that are alike, as the squares of a sine and a cosine and one, leave eigenvalues of zero, which
    rounding may turn negative. So a ridge of the size of rounding is added, or ten times as much, and so on,
    until every pivot is as large as the ridge alone would make it. Derivatives solve the same system.

    It is a loop of plain array operations: LAPACK's batched factors can wait for each other forever on a busy
    CPU.

    Args:
      gram: Symmetric matrix [p, p] with ones on its diagonal, up to rounding.

    Returns:
      Function from a vector [p] to another; NaN where the matrix is not finite.

    Example:
      >>> solve = rounded_inverse(jnp.array([[1.0, 1.0001], [1.0001, 1.0]]))  # of no real features
      >>> bool(jnp.isfinite(solve(jnp.array([1.0, 2.0]))).all())
      True

    Reference: Duan et al., 2016, rllab's LinearFeatureBaseline, for the ridge that grows.
    """
    least = (100 + 2 * len(gram)) * jnp.finfo(gram.dtype).eps
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    fixed = jax.lax.stop_gradient(gram)

    def tried(count: Array) -> tuple[Array, Array, Array]:
        ridge = least * 10.0**count
        inverse, pivot = _inverse(fixed + ridge * identity)
        return count + 1, inverse, pivot >= ridge / 2

    def wanting(found: tuple[Array, Array, Array]) -> Array:
        return ~found[2] & (found[0] < _TRIES)

    # No ridge helps a matrix that is not finite.
    begin = jnp.zeros((), gram.dtype), fixed, ~jnp.isfinite(jnp.sum(fixed))
    count, inverse, _ = jax.lax.while_loop(wanting, lambda found: tried(found[0]), begin)
    matrix = gram + least * 10.0 ** (count - 1) * identity
    return lambda vector: jax.lax.custom_linear_solve(
        lambda found: matrix @ found, vector, lambda _, given: inverse @ given, symmetric=True
    )


def _inverse(matrix: Array) -> tuple[Array, Array]:
    """Inverts a symmetric matrix [p, p] by sweeping one pivot after another; returns the least pivot too."""
    rows = jnp.arange(len(matrix))

    def sweep(matrix: Array, row: Array) -> tuple[Array, Array]:
        column, here = matrix[row], rows == row
        pivot = column[row]
        swept = matrix - jnp.outer(column, column / pivot)
        border = jnp.where(here, -1, column) / pivot
        swept = jnp.where(here, border[:, None], swept)
        return jnp.where(here[:, None], border, swept), pivot

    swept, pivots = jax.lax.scan(sweep, matrix, rows)
    return -swept, jnp.min(pivots)
