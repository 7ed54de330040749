"""A plain Python loop in which a policy acts: for a machine that must be watched while it moves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.distributions import clip_action, policy_of, value_of
from metajax.rl.envs.hosted import (
    check_counts,
    crossing_dtype,
    reset_object,
    seed_of,
    spaces,
    step_object,
)
from metajax.rl.experience import as_batch
from metajax.rl.returns import AdvantageFn, advantages
from metajax.rl.types import Actions, Trajectories
from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Task


def live_on_host(
    learner: Learner,
    make_env: Callable[[], Any],
    *,
    horizon: int,
    episodes: int,
    set_task: Callable[[Any, Task], None] | None = None,
    advantage: AdvantageFn | None = None,
    mode: bool = False,
) -> Callable[[Meta, Fast, Key, Task], Batch]:
    """Makes the function that lets a learner act in a Python environment or on a robot, step by step.

    It is a plain loop: episodes follow one another on one object, only the policy runs on the device, an
    exception of the object passes through, and nothing is compiled around it. What it returns is what
    `rollouts` returns: `learner.adapt` and every loss read it.

    Args:
      learner: Learner whose outputs are distributions of actions, or `ActorCritic`.
      make_env: Function that makes the object, with gymnasium's interface as in `hosted`; it is called once,
        here. `lambda: robot` hands over one that exists; it is never closed here.
      horizon: Largest number of steps of an episode.
      episodes: Number of episodes N of a call.
      set_task: Function `(object, task) -> None` called before each `reset`; None for one task.
      advantage: Estimator of advantages; None is `advantages()`.
      mode: Whether the most likely action is taken instead of a drawn one.

    Returns:
      `(meta, fast, key, task) -> Batch` of N H rows. It cannot be traced by `jit` or `vmap`.

    Raises:
      ValueError: If `horizon` or `episodes` is below 1, or the spaces are not supported.

    Example:
      >>> import types
      >>> space = types.SimpleNamespace(shape=(1,), dtype=np.dtype("float32"))
      >>> counter = types.SimpleNamespace(
      ...     action_space=types.SimpleNamespace(n=2), observation_space=space,
      ...     reset=lambda seed: (np.zeros(1), {}),
      ...     step=lambda action: (np.ones(1), action, False, False, {}))
      >>> model = metajax.rl.mlp_policy(metajax.rl.Discrete(2), hidden=())
      >>> learner = metajax.maml(model, metajax.rl.policy_gradient(), rule=optax.sgd(0.1))
      >>> live = metajax.rl.envs.host_loop.live_on_host(learner, lambda: counter, horizon=3, episodes=2)
      >>> meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> batch = live(meta, learner.start(meta, jax.random.key(1)), jax.random.key(2), None)
      >>> batch.weights.shape
      (6,)
    """
    check_counts(horizon, episodes)
    estimate = advantages() if advantage is None else advantage
    env, act = make_env(), jax.jit(learner.predict)
    spaces(env)  # Refused here, before anything moves.

    def evidence(meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        lives = lived_on_host(
            env,
            lambda observation: act(meta, fast, observation),
            key,
            task,
            horizon=horizon,
            episodes=episodes,
            set_task=set_task,
            mode=mode,
        )
        return as_batch(lives, estimate)

    return evidence


def lived_on_host(
    env: Any,
    act: Callable[[Array], Any],
    key: Key,
    task: Task,
    *,
    horizon: int,
    episodes: int,
    set_task: Callable[[Any, Task], None] | None = None,
    mode: bool = False,
) -> Trajectories:
    """Runs episodes of a fixed policy on an object, one after another, in a plain Python loop.

    Episode i draws from `jax.random.split(key, episodes)[i]` what `lived` draws from its key for one episode:
    in an environment of both kinds, the steps are the same.

    Args:
      env: Object with gymnasium's interface.
      act: Function from observations [1, ...] to a distribution [1], or an `ActorCritic`.
      key: Random key; consumed.
      task: Task, for `set_task`.
      horizon: Largest number of steps of an episode.
      episodes: Number of episodes N.
      set_task: Function `(object, task) -> None` called before each `reset`; None for one task.
      mode: Whether the most likely action is taken instead of a drawn one.

    Returns:
      Trajectories of N episodes of H steps. Steps after an end repeat the last one, without reward.

    Raises:
      ValueError: If `horizon` or `episodes` is below 1, or the spaces are not supported.

    Example:
      >>> import types
      >>> space = types.SimpleNamespace(shape=(1,), dtype=np.dtype("float32"))
      >>> counter = types.SimpleNamespace(
      ...     action_space=types.SimpleNamespace(n=2), observation_space=space,
      ...     reset=lambda seed: (np.zeros(1), {}), step=lambda action: (np.ones(1), 1, True, False, {}))
      >>> uniform = lambda seen: metajax.rl.Categorical(jnp.zeros((seen.shape[0], 2)))
      >>> lives = metajax.rl.envs.host_loop.lived_on_host(
      ...     counter, uniform, jax.random.key(0), None, horizon=3, episodes=2)
      >>> lives.reward.tolist()  # ends after a step
      [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    check_counts(horizon, episodes)
    actions, _, dtype = spaces(env)
    floats = np.issubdtype(dtype, np.floating)
    dtype = np.dtype(jnp.result_type(float)) if floats else crossing_dtype(dtype)
    keys = jax.random.split(key, episodes)

    def seen(observation: Any) -> Array:
        return jnp.asarray(np.asarray(observation, dtype))[None]

    def episode(key: Key) -> tuple[list, Any]:
        reset_key, step_key = jax.random.split(key)
        seed = seed_of(jax.random.split(reset_key, 1)[0])
        observation = seen(reset_object(env, int(seed), task, set_task))
        rows, outputs, reward = [], act(observation), jnp.zeros(1)
        for time, key in enumerate(jax.random.split(step_key, horizon)):
            action, shown = _decide(outputs, key, actions, mode)
            after, reward, terminated = step_object(
                env, actions, np.asarray(shown)[0], time, horizon
            )
            flags = np.array([True]), np.array([terminated])
            reward = jnp.array([reward], jnp.result_type(float))
            ends = np.array([terminated or time == horizon - 1])
            value = value_of(outputs, reward)
            row = observation, action, reward, *flags, ends, policy_of(outputs), value
            rows.append(jax.tree.map(np.asarray, row))
            observation = seen(after)
            outputs = act(observation)
            if terminated:
                break
        return rows, (observation, value_of(outputs, reward))

    lives = [episode(key) for key in keys]
    rows = [_stretched(rows, horizon) for rows, _ in lives]
    last_observation, last_value = _joined([last for _, last in lives])
    observation, action, reward, alive, terminated, ends, policy, value = _joined(rows)
    steps = (observation, action, reward, alive, terminated, ends, policy, value)
    return Trajectories(*steps, last_observation, last_value)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _decide(outputs: Any, key: Key, actions: Actions, mode: bool) -> tuple[Array, Array]:
    """Draws actions [1, ...] as `lived` does from the key of a step; returns them also as clipped."""
    policy = policy_of(outputs)
    action = policy.mode() if mode else policy.sample(jax.random.split(key)[0])
    return action, clip_action(actions, action)


def _stretched(rows: list, horizon: int) -> tuple:
    """Stacks the steps of an episode [1, ...] to [1, H, ...]; steps after an end have no reward."""
    observation, action, reward, _, _, _, policy, value = rows[-1]
    no = np.array([False])
    dead = observation, action, np.zeros_like(reward), no, no, no, policy, value
    return _stacked([*rows, *[dead] * (horizon - len(rows))])


def _stacked(trees: list) -> Any:
    """Stacks leaves along a new second axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *trees)


def _joined(trees: list) -> Any:
    """Joins leaves along the first axis, as arrays of the device."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *trees)
