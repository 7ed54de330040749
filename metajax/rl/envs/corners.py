"""Four corners: the task of exploration by which ProMP compares estimators of the meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.types import Continuous, Env, Step
from metajax.types import Array, Key

# The goals of the tasks; steps per axis are at most _STEP, and starts lie within _STEP of the origin.
_CORNERS = np.array([[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]], np.float32)
_STEP = 0.2
# Nearer to the origin than this, by the sum of the coordinates' sizes, nothing is rewarded.
_SILENT = 0.5


def four_corners(*, horizon: int = 100, bound: float = 10.0) -> Env:
    """Makes a point that is rewarded for progress towards one of four corners, once it is near that corner.

    The reward is the decrease of the distance to the goal, if the goal is the nearest corner and the sum of
    the coordinates' sizes is at least 0.5 after the step; otherwise zero. So a policy that stays at the start
    learns nothing about its task, and only experience from all quadrants tells the tasks apart. The
    observation is the position; no episode ends early.

    Args:
      horizon: Number of steps of an episode.
      bound: Size of the action that moves the point by 0.2 along an axis, the most. 10 is the value of
        ProMP's code, whose wrapper spreads the steps over actions in [-10, 10]: a policy with a standard
        deviation of 1 first moves by 0.02 a step. With 1, chance alone reaches the corners.

    Returns:
      An environment whose tasks are goals, float [2].

    Raises:
      ValueError: If `horizon` is below 1 or `bound` is not above 0.

    Example:
      >>> env = four_corners(bound=1.0)
      >>> goal, place = jnp.array([2.0, 2.0]), jnp.array([1.0, 1.0])
      >>> after = env.step(jax.random.key(0), goal, place, jnp.array([1.0, 1.0]))
      >>> round(float(after.reward), 3)  # 0.2 along both axes
      0.283

    Reference: Rothfuss et al., 2019 (https://arxiv.org/abs/1810.06784), section 7.2.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")
    if not bound > 0:
        raise ValueError(f"bound is {bound}; use a number above 0.")

    def sample(key: Key) -> Array:
        return jax.random.choice(key, jnp.asarray(_CORNERS))

    def reset(key: Key, task: Array) -> tuple[Array, Array]:
        start = jax.random.uniform(key, (2,), task.dtype, -_STEP, _STEP)
        return start, start

    def step(key: Key, task: Array, state: Array, action: Array) -> Step:
        del key
        place = state + (_STEP / bound * action).astype(state.dtype)
        progress = _norm(state - task) - _norm(place - task)
        # The nearest corner is the one of the point's quadrant.
        counts = jnp.all(place * task >= 0) & (jnp.sum(jnp.abs(place)) >= _SILENT)
        return Step(place, place, jnp.where(counts, progress, 0), jnp.array(False))

    return Env(sample, reset, step, Continuous(2, -bound, bound), horizon)


def corner_tasks(number: int) -> Array:
    """Lists the four corners in turn, always the same: a balanced test set.

    Args:
      number: Number of tasks T.

    Returns:
      Goals [T, 2].

    Raises:
      ValueError: If `number` is not a multiple of four above zero.

    Example:
      >>> corner_tasks(4).tolist()
      [[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]]
    """
    if number < 4 or number % 4:
        raise ValueError(
            f"number is {number}; use a multiple of 4, so that all corners count alike."
        )
    return jnp.tile(jnp.asarray(_CORNERS), (number // 4, 1))


def _norm(vector: Array) -> Array:
    """Computes the length of a vector."""
    return jnp.sqrt(jnp.sum(vector**2))
