"""Bernoulli bandits: the smallest problem of exploration."""

import jax
import jax.numpy as jnp

from metajax.rl.types import Discrete, Env, Step
from metajax.types import Array, Key


def bandit(arms: int, *, pulls: int = 1) -> Env:
    """Makes a bandit whose arms pay one with a probability each, drawn uniformly for a task.

    The observation is always zero. A trial of RL2 is one episode of all pulls, or an episode for each.

    Args:
      arms: Number of arms A.
      pulls: Number of pulls of an episode, the horizon.

    Returns:
      An environment whose tasks are the probabilities, float [A].

    Raises:
      ValueError: If `arms` or `pulls` is below 1.

    Example:
      >>> env = bandit(5, pulls=10)
      >>> env.sample(jax.random.key(0)).shape, env.horizon
      ((5,), 10)

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 3.1.
    """
    for name, number in (("arms", arms), ("pulls", pulls)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    nothing = jnp.zeros(1)

    def sample(key: Key) -> Array:
        return jax.random.uniform(key, (arms,))

    def reset(key: Key, task: Array) -> tuple[Array, Array]:
        del key, task
        return jnp.zeros(()), nothing

    def step(key: Key, task: Array, state: Array, action: Array) -> Step:
        pays = jnp.sum(jnp.where(jnp.arange(arms) == action, task, 0))
        reward = jax.random.bernoulli(key, pays).astype(task.dtype)
        return Step(state, nothing, reward, jnp.array(False))

    return Env(sample, reset, step, Discrete(arms), pulls)
