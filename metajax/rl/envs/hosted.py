"""Environments that live on the host: simulators in Python, and real robots.

Two ways lead there. `hosted` makes an `Env` whose `reset` and `step` call back from the device, so that
rollouts, trials and learners run unchanged, under `jit` and `vmap`. `host_loop.live_on_host` is a plain loop
in Python, for a machine that must be watched while it moves. Both take objects with gymnasium's interface,
and neither needs gymnasium.
"""

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.envs.foreign import actions_of, installed
from metajax.rl.types import Actions, Discrete, Env, Step
from metajax.types import Array, Key, Task

# More environments than this at once are rarely meant; each is a whole simulator.
MOST_AT_ONCE = 64


def hosted(
    make_env: Callable[[], Any],
    *,
    horizon: int,
    sample: Callable[[Key], Task] | None = None,
    set_task: Callable[[Any, Task], None] | None = None,
    at_once: int = MOST_AT_ONCE,
) -> Env:
    """Makes an environment of pure functions that step Python objects on the host.

    The state on the device is a number of the episode, its time and whether it ended; the rest lives on the
    host. Episodes under `vmap` have an object each, stepped one after another in a single call. An object
    serves a new episode after an end or after `horizon` steps.

    Limits: nothing is differentiated through it, each step waits for the host, and numbers cross in float32.
      A state can be stepped once: the
    host cannot go back. Objects must be deterministic given their seed for equal keys to give equal episodes.
    The time limit is `horizon`; an object with a shorter one of its own is refused when it is met.

    Args:
      make_env: Function that makes an object with gymnasium's interface: `reset(seed=...) -> (observation,
        info)`, `step(action) -> (observation, reward, terminated, truncated, info)`, `action_space` and
        `observation_space`, an array. It is called once here and as often as episodes run at once.
      horizon: Largest number of steps of an episode.
      sample: Distribution of tasks `key -> task`; None makes every task a zero.
      set_task: Function `(object, task) -> None` called before each `reset`, with NumPy arrays; None for one
        task.
      at_once: Largest number of objects: 1 for a robot.

    Returns:
      An environment; observations and rewards are floats of JAX's default type, other types stay.

    Raises:
      ValueError: If `horizon` or `at_once` is below 1, or the spaces are not supported.

    Example:
      >>> import types
      >>> space = types.SimpleNamespace(shape=(1,), dtype=np.dtype("float32"))
      >>> counter = types.SimpleNamespace(
      ...     action_space=types.SimpleNamespace(n=2), observation_space=space,
      ...     reset=lambda seed: (np.zeros(1), {}),
      ...     step=lambda action: (np.ones(1), action, False, False, {}))
      >>> env = metajax.rl.envs.hosted.hosted(lambda: counter, horizon=3, at_once=1)
      >>> state, _ = env.reset(jax.random.key(0), env.sample(jax.random.key(1)))
      >>> float(env.step(jax.random.key(2), 0.0, state, 1).reward)
      1.0
    """
    for name, number in (("horizon", horizon), ("at_once", at_once)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    host = _Host(make_env, horizon, set_task, at_once)

    # What crosses is float32: the thread of a callback does not know the caller's `jax.enable_x64`.
    seen = jax.ShapeDtypeStruct(host.shape, crossing_dtype(host.dtype))
    started = jax.ShapeDtypeStruct((), np.int32), seen
    stepped = seen, jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.bool_)

    def settled(numbers: Array) -> Array:
        floats = jnp.issubdtype(numbers.dtype, jnp.floating)
        return numbers.astype(jnp.result_type(float)) if floats else numbers

    def reset(key: Key, task: Task) -> tuple[HostState, Array]:
        # Callbacks have no derivative: with zero tangents they are not asked for one.
        task, call = jax.lax.stop_gradient(task), functools.partial(host.reset, started)
        episode, observation = jax.pure_callback(
            call, started, seed_of(key), task, vmap_method="broadcast_all"
        )
        state = HostState(episode, jnp.zeros((), jnp.int32), jnp.array(False))
        return state, settled(observation)

    def step(key: Key, task: Task, state: HostState, action: Array) -> Step:
        del key, task  # The host draws by the seed of `reset`.
        action, call = jax.lax.stop_gradient(action), functools.partial(host.step, stepped)
        observation, reward, ends = jax.pure_callback(
            call, stepped, *state, action, vmap_method="broadcast_all"
        )
        after = HostState(state.episode, state.time + 1, state.over | ends)
        return Step(after, settled(observation), settled(reward), ends)

    def one_task(key: Key) -> Task:
        del key
        return jnp.zeros(())

    return Env(sample or one_task, reset, step, host.actions, horizon)


def meta_world(
    name: str = "reach-v3",
    *,
    train: bool = True,
    horizon: int = 500,
    at_once: int = MOST_AT_ONCE,
    seed: int = 0,
) -> Env:
    """Makes the tasks of one manipulation skill of Meta-World (ML1): an arm, and 50 goals it is not shown.

    MuJoCo steps on the host, some hundred steps a second: numbers of the literature need millions. Rewards,
    versions of tasks and the counting of successes changed between releases of Meta-World; name the release
    with a result.

    Args:
      name: Name of the skill, such as "reach-v3", "push-v3" or "pick-place-v3".
      train: Whether the goals are the 50 to train on, or the 50 to test on.
      horizon: Largest number of steps, 500 at most.
      at_once: Largest number of simulators.
      seed: Seed of the goals.

    Returns:
      An environment whose tasks are numbers of goals, int32 in [0, 50); actions [4] in [-1, 1], observations
      [39].

    Raises:
      ImportError: If metaworld is not installed: `pip install 'metajax[robots]'`.
      ValueError: If `horizon` is not in 1 to 500.

    Example:
      >>> env = metajax.rl.envs.hosted.meta_world("reach-v3")  # doctest: +SKIP
      >>> env.sample(jax.random.key(0)).dtype  # doctest: +SKIP
      dtype('int32')

    Reference: Yu et al., 2019 (https://arxiv.org/abs/1910.10897).
    """
    if not 1 <= horizon <= 500:
        raise ValueError(f"horizon is {horizon}; use 1 to 500.")
    skill = installed("metaworld", "robots").ML1(name, seed=seed)
    make = (skill.train_classes if train else skill.test_classes)[name]
    goals = skill.train_tasks if train else skill.test_tasks

    def sample(key: Key) -> Array:
        return jax.random.randint(key, (), 0, len(goals))

    def set_task(env: Any, task: Any) -> None:
        env.set_task(goals[int(task)])

    return hosted(make, horizon=horizon, sample=sample, set_task=set_task, at_once=at_once)


class HostState(NamedTuple):
    """State of an episode on the host, as the device knows it.

    Attributes:
      episode: Number of the episode, an int32 scalar.
      time: Number of steps taken, an int32 scalar.
      over: Whether the episode ended by itself, a bool scalar.
    """

    episode: Array
    time: Array
    over: Array


def seed_of(key: Key) -> Array:
    """Derives the seed of an episode on the host from a key.

    Args:
      key: Random key; consumed.

    Returns:
      Seed, a uint32 scalar below 2^31.

    Example:
      >>> metajax.rl.envs.hosted.seed_of(jax.random.key(0)).dtype
      dtype('uint32')
    """
    return jax.random.bits(key, dtype=jnp.uint32) >> 1


def crossing_dtype(dtype: Any) -> Any:
    """Returns the type in which observations cross to the device."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(np.int32) if np.issubdtype(dtype, np.integer) and dtype.itemsize > 4 else dtype


class _Host:
    """Objects on the host, each with the episode that it serves."""

    def __init__(self, make_env: Any, horizon: int, set_task: Any, at_once: int):
        self.make_env, self.horizon, self.set_task, self.at_once = (
            make_env,
            horizon,
            set_task,
            at_once,
        )
        first = make_env()
        self.actions, self.shape, self.dtype = spaces(first)
        self.idle, self.made = [first], 1
        self.running: dict[int, list] = {}  # episode: [object, time]
        self.episodes = 0
        self.lock = threading.Lock()  # Devices may call at the same time.

    def reset(self, like: Any, seeds: Any, task: Any) -> tuple[Any, ...]:
        """Begins an episode for each seed [...]; returns their numbers and observations [...]."""
        seeds = np.asarray(seeds)
        axes = seeds.ndim
        task = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *np.shape(leaf)[axes:]), task)
        rows = []
        with self.lock:
            for row, seed in enumerate(seeds.reshape(-1)):
                rows.append(self._begin(int(seed), jax.tree.map(operator.itemgetter(row), task)))
        return _columns(rows, like, seeds.shape)

    def step(
        self, like: Any, episodes: Any, times: Any, over: Any, actions: Any
    ) -> tuple[Any, ...]:
        """Takes a step of each episode [...]; returns observations, rewards and ends [...]."""
        episodes = np.asarray(episodes)
        flat = episodes.reshape(-1), np.asarray(times).reshape(-1), np.asarray(over).reshape(-1)
        actions = np.asarray(actions)
        actions = actions.reshape(-1, *actions.shape[episodes.ndim :])
        with self.lock:
            rows = [self._advance(*row) for row in zip(*flat, actions, strict=True)]
        return _columns(rows, like, episodes.shape)

    def _begin(self, seed: int, task: Any) -> tuple[int, Any]:
        """Resets an idle object, or makes one."""
        if not self.idle:
            if self.made >= self.at_once:
                raise RuntimeError(
                    f"{self.made + 1} episodes would run at once, at_once={self.at_once} is the limit; run "
                    "fewer episodes or tasks, or raise it. Episodes begun and left count until they end."
                )
            self.idle.append(self.make_env())
            self.made += 1
        env = self.idle.pop()
        observation = reset_object(env, seed, task, self.set_task)
        self.episodes += 1
        self.running[self.episodes] = [env, 0]
        return self.episodes, np.asarray(observation)

    def _advance(self, episode: Any, time: Any, over: Any, action: Any) -> tuple[Any, ...]:
        """Takes a step, unless the episode has ended: rollouts step dead episodes and ignore it."""
        if over:
            return np.zeros(self.shape), 0.0, True
        record = self.running.get(int(episode))
        if record is None or record[1] != time:
            at = "its end" if record is None else f"step {record[1]}"
            raise RuntimeError(
                f"Episode {int(episode)} is at {at}, and step {int(time)} was asked for again; a host "
                "environment cannot go back: step each state once."
            )
        observation, reward, terminated = step_object(
            record[0], self.actions, action, time, self.horizon
        )
        record[1] += 1
        if terminated or record[1] == self.horizon:
            self.idle.append(self.running.pop(int(episode))[0])
        return observation, reward, terminated


def _columns(rows: list, like: Any, axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Stacks rows of results into arrays [axes, ...] of the shapes and types that the device expects."""
    return tuple(
        np.asarray(column, one.dtype).reshape((*axes, *one.shape))
        for column, one in zip(zip(*rows, strict=True), like, strict=True)
    )


def spaces(env: Any) -> tuple[Actions, tuple[int, ...], Any]:
    """Returns the actions of an object, and the shape and type of its observations."""
    space = env.observation_space
    if getattr(space, "shape", None) is None or getattr(space, "dtype", None) is None:
        kind = type(space).__name__
        raise ValueError(
            f"Observations are a {kind}; use one array, such as gymnasium's FlattenObservation."
        )
    return actions_of(env.action_space), tuple(space.shape), np.dtype(space.dtype)


def reset_object(env: Any, seed: int, task: Any, set_task: Any) -> Any:
    """Begins an episode; returns its observation."""
    if set_task is not None:
        set_task(env, task)
    return env.reset(seed=seed)[0]


def step_object(
    env: Any, actions: Actions, action: Any, time: Any, horizon: int
) -> tuple[Any, Any, bool]:
    """Takes a step; returns the observation, the reward and whether the episode ended by itself."""
    shown = int(action) if isinstance(actions, Discrete) else np.asarray(action)
    observation, reward, terminated, truncated, _ = env.step(shown)
    if truncated and not terminated and time + 1 < horizon:
        raise RuntimeError(
            f"The environment cut its episode after {int(time) + 1} steps, horizon is {horizon}; use "
            f"horizon={int(time) + 1}."
        )
    return np.asarray(observation), float(reward), bool(terminated)


def check_counts(horizon: int, episodes: int) -> None:
    """Raises an error if a number is below 1."""
    for name, number in (("horizon", horizon), ("episodes", episodes)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
