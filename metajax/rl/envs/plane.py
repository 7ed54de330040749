"""Navigation of a point on the plane towards a goal that the observation does not show."""

import jax
import jax.numpy as jnp

from metajax.rl.types import Continuous, Env, Step
from metajax.types import Array, Key

# The code of MAML ends an episode within this distance of the goal along each axis.
_ARRIVED = 0.01


def navigation(
    reward: str = "dense", *, horizon: int = 100, step_size: float = 0.1, radius: float = 0.2
) -> Env:
    """Makes a point that starts at the origin and is rewarded near a goal, the task.

    Actions are displacements in [-1, 1] for each axis, times `step_size`; the observation is the position.

    - "dense", of MAML: goals uniform in [-0.5, 0.5]^2; the reward is minus the distance to the goal after
      the step; the episode ends within 0.01 of the goal along both axes. (The paper describes the squared
      distance; its code, and so its published results, have the distance.)
    - "sparse", of PEARL: goals uniform on the upper half of the unit circle; the reward is 1 minus the
      distance to the goal within `radius` of it, and zero elsewhere; no episode ends early. PEARL's episodes
      have 20 steps.

    Args:
      reward: Kind of the reward, "dense" or "sparse".
      horizon: Largest number of steps of an episode.
      step_size: Length of the largest step along an axis.
      radius: Distance to the goal within which the sparse reward is paid.

    Returns:
      An environment whose tasks are goals, float [2].

    Raises:
      ValueError: If `reward` is unknown, `horizon` is below 1, or `step_size` or `radius` is not above 0.

    Example:
      >>> env = navigation()
      >>> task = jnp.array([0.3, 0.4])
      >>> state, observation = env.reset(jax.random.key(0), task)
      >>> after = env.step(jax.random.key(1), task, state, jnp.array([0.0, 1.0]))
      >>> round(float(after.reward), 3)  # minus the distance between (0, 0.1) and (0.3, 0.4)
      -0.424

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.3; Rakelly et al., 2019
      (https://arxiv.org/abs/1903.08254), section 6.3.
    """
    _check_reward(reward)
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")
    for name, number in (("step_size", step_size), ("radius", radius)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; use a number above 0.")

    def sample(key: Key) -> Array:
        if reward == "dense":
            return jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return _on_circle(jax.random.uniform(key, ()))

    def reset(key: Key, task: Array) -> tuple[Array, Array]:
        del key
        origin = jnp.zeros(2, task.dtype)
        return origin, origin

    def step(key: Key, task: Array, state: Array, action: Array) -> Step:
        del key
        place = state + (step_size * action).astype(state.dtype)
        away = place - task
        distance = jnp.sqrt(jnp.sum(away**2))
        if reward == "dense":
            return Step(place, place, -distance, jnp.all(jnp.abs(away) < _ARRIVED))
        paid = jnp.where(distance <= radius, 1 - distance, 0)
        return Step(place, place, paid, jnp.array(False))

    return Env(sample, reset, step, Continuous(2, -1.0, 1.0), horizon)


def navigation_tasks(number: int, *, reward: str = "dense") -> Array:
    """Lists goals that cover the distribution of `navigation` evenly, always the same: a fixed test set.

    Dense goals are the first points of a Halton sequence in the square; sparse ones are equally far apart on
    the half circle. A random draw of 40 goals covers neither.

    Args:
      number: Number of goals T.
      reward: Kind of the reward, "dense" or "sparse".

    Returns:
      Goals [T, 2].

    Raises:
      ValueError: If `number` is below 1 or `reward` is unknown.

    Example:
      >>> navigation_tasks(3)[:, 0].tolist()
      [0.0, -0.25, 0.25]
    """
    _check_reward(reward)
    if number < 1:
        raise ValueError(f"number is {number}; use 1 or more tasks.")
    if reward == "sparse":
        return jax.vmap(_on_circle)((jnp.arange(number) + 0.5) / number)
    places = [[_halton(index, base) - 0.5 for base in (2, 3)] for index in range(1, number + 1)]
    return jnp.array(places)


def _on_circle(share: Array) -> Array:
    """Returns the point of the upper half of the unit circle at a share in [0, 1] of its length."""
    return jnp.stack([jnp.cos(jnp.pi * share), jnp.sin(jnp.pi * share)])


def _halton(index: int, base: int) -> float:
    """Returns a number of the Halton sequence: the digits of the index behind the point, in reverse."""
    found, share = 0.0, 1.0
    while index:
        share /= base
        found += share * (index % base)
        index //= base
    return found


def _check_reward(reward: str) -> None:
    """Raises for a kind of reward that `navigation` does not know."""
    if reward not in ("dense", "sparse"):
        raise ValueError(f"reward is {reward!r}; use 'dense' or 'sparse'.")
