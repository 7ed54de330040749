"""Trials: several episodes of one task, lived by a learner that reads every step as it happens (RL2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.rl.distributions import clip_action, policy_of, value_of
from metajax.rl.experience import as_batch, where
from metajax.rl.returns import AdvantageFn, advantages
from metajax.rl.types import Decisions, Env, Trajectories
from metajax.types import Array, Batch, Key, Learner, Meta, Task


def trials(
    learner: Learner,
    env: Env,
    *,
    episodes: int,
    advantage: AdvantageFn | None = None,
    mode: bool = False,
) -> Callable[[Meta, Key, Task], Batch]:
    """Makes a function that lets a learner live one trial: it reads each step before it acts again.

    The fast state lives for the whole trial. The last step of an episode is read, with its reward and its
    end, before the first observation of the next one is answered. Nothing follows a trial: its last episode
    is not bootstrapped.

    Args:
      learner: Learner that reads step by step, such as `reading_policy`.
      env: Environment.
      episodes: Number of episodes E of a trial.
      advantage: Estimator of advantages; None is `advantages(baseline="value", normalize=False)`. Rewards are
        discounted over the trial, also from one episode to the next.
      mode: Whether the most likely action is taken instead of a drawn one.

    Returns:
      `(meta, key, task) -> Batch` of E H rows in the order in which they were lived, for `trial_objective`.

    Raises:
      ValueError: If `episodes` or the horizon is below 1.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=1)
      >>> learner = metajax.rl.reading_policy(metajax.learners.gru_model(8), env.actions)
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> trial = trials(learner, env, episodes=10)
      >>> jax.eval_shape(trial, meta, jax.random.key(3), task).weights.shape
      (10,)

    Reference: Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 2.2.
    """
    for name, number in (("episodes", episodes), ("env.horizon", env.horizon)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    estimate = (
        advantages(baseline="value", normalize=False, truncation="end")
        if advantage is None
        else advantage
    )

    def trial(meta: Meta, key: Key, task: Task) -> Batch:
        start_key, live_key = jax.random.split(key)
        task = jax.lax.stop_gradient(task)

        def step(carry: Any, time_and_key: tuple[Array, Key]) -> tuple[Any, Any]:
            fast, state, observation, alive = carry
            time, key = time_and_key
            act_key, env_key, adapt_key = jax.random.split(key, 3)
            outputs = learner.predict(meta, fast, jax.tree.map(lambda x: x[None], observation))
            # Stopped here, so that the environment is not asked for a derivative.
            outputs = jax.lax.stop_gradient(outputs)
            policy = policy_of(outputs)
            action = policy.mode() if mode else policy.sample(act_key)
            after = env.step(env_key, task, state, clip_action(env.actions, action[0]))
            reward = jnp.where(alive, after.reward, 0)[None]
            terminated = (alive & after.terminated)[None]
            ends = alive & (terminated | (time == env.horizon - 1))
            value = value_of(outputs, reward)
            row = (observation, action[0], reward[0], alive, terminated[0], ends[0])
            row = (*row, jax.tree.map(lambda x: x[0], policy), value[0])
            nothing = jnp.zeros_like(reward)
            decisions = Decisions(action, reward, ends, policy, nothing, nothing, value)
            seen = jax.tree.map(lambda x: x[None], observation)
            batch = Batch(seen, decisions, alive.astype(reward.dtype)[None])
            fast = learner.adapt(meta, fast, adapt_key, batch)
            state, observation = where(
                alive, (after.state, after.observation), (state, observation)
            )
            return (fast, state, observation, alive & ~terminated[0]), row

        def episode(fast: Any, key: Key) -> tuple[Any, Any]:
            reset_key, step_key = jax.random.split(key)
            state, observation = env.reset(reset_key, task)
            times = jnp.arange(env.horizon), jax.random.split(step_key, env.horizon)
            begin = (fast, state, observation, jnp.array(True))
            (fast, _, observation, _), rows = jax.lax.scan(step, begin, times)
            return fast, (rows, observation)

        fast = learner.start(meta, start_key)
        _, (rows, last) = jax.lax.scan(episode, fast, jax.random.split(live_key, episodes))
        # One sequence of E H steps; an end of an episode is no end of the trial.
        rows = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), rows)
        observation, action, reward, alive, terminated, ends, policy, value = rows
        lives = Trajectories(
            observation,
            action,
            reward,
            alive,
            jnp.zeros_like(terminated),
            ends,
            policy,
            value,
            jax.tree.map(lambda leaf: leaf[-1:], last),
            jnp.zeros_like(value[:, -1]),
        )
        return as_batch(jax.lax.stop_gradient(lives), estimate)

    return trial
