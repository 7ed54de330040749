"""Random Markov decision processes with finitely many states: the tables of RL2."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.rl.types import Discrete, Env, Step
from metajax.types import Array, Key


class TabularTask(NamedTuple):
    """Tables of a Markov decision process with S states and A choices.

    Attributes:
      transitions: Probabilities [S, A, S] of the next state; each row sums to 1.
      rewards: Mean rewards [S, A].

    Example:
      >>> task = metajax.rl.envs.tabular_mdp().sample(jax.random.key(0))
      >>> task.transitions.shape, task.rewards.shape
      ((10, 5, 10), (10, 5))
    """

    transitions: Array
    rewards: Array


def tabular_mdp(
    states: int = 10, choices: int = 5, *, horizon: int = 10, noise: float = 1.0
) -> Env:
    """Makes random Markov decision processes: flat Dirichlet transitions and normal rewards.

    Every episode starts in state 0. The observation is the state, one-hot. A reward is drawn in every step
    from the normal distribution around its mean, which a task draws from N(1, 1).

    Args:
      states: Number of states S.
      choices: Number of choices A in each state.
      horizon: Number of steps of an episode.
      noise: Standard deviation of a reward around its mean.

    Returns:
      An environment whose tasks are `TabularTask`s.

    Raises:
      ValueError: If `states`, `choices` or `horizon` is below 1, or `noise` below 0.

    Example:
      >>> env = tabular_mdp(states=4, choices=2)
      >>> task = env.sample(jax.random.key(0))
      >>> state, observation = env.reset(jax.random.key(1), task)
      >>> observation.tolist()
      [1.0, 0.0, 0.0, 0.0]

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 3.2.
    """
    for name, number in (("states", states), ("choices", choices), ("horizon", horizon)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}; use 0 or more.")

    def sample(key: Key) -> TabularTask:
        move_key, reward_key = jax.random.split(key)
        flat = jnp.ones(states)
        transitions = jax.random.dirichlet(move_key, flat, (states, choices))
        return TabularTask(transitions, 1 + jax.random.normal(reward_key, (states, choices)))

    def observe(state: Array, task: TabularTask) -> Array:
        return jax.nn.one_hot(state, states, dtype=task.rewards.dtype)

    def reset(key: Key, task: TabularTask) -> tuple[Array, Array]:
        del key
        state = jnp.zeros((), jnp.int32)
        return state, observe(state, task)

    def step(key: Key, task: TabularTask, state: Array, action: Array) -> Step:
        move_key, reward_key = jax.random.split(key)
        # The inverse of the distribution function needs one uniform number; a categorical draw needs S.
        below = jnp.cumsum(task.transitions[state, action])
        drawn = jax.random.uniform(move_key, (), below.dtype) * below[-1]
        after = jnp.sum(below[:-1] <= drawn, dtype=state.dtype)
        drift = noise * jax.random.normal(reward_key, (), task.rewards.dtype)
        return Step(
            after, observe(after, task), task.rewards[state, action] + drift, jnp.array(False)
        )

    return Env(sample, reset, step, Discrete(choices), horizon)
