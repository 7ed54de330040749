"""Environments that live on the host: simulators in Python, and real robots.

Two ways lead there. `hosted` makes an `Env` whose `reset` and `step` call back from the device, so that
rollouts, trials and learners run unchanged, under `jit` and `vmap`. `live_on_host` is a plain Python loop,
for a machine that must be watched while it moves. Both take objects with gymnasium's interface, and neither
needs gymnasium.
"""

import functools
import importlib
import operator
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.distributions import clip_action, policy_of, value_of
from metajax.rl.experience import as_batch
from metajax.rl.returns import AdvantageFn, advantages
from metajax.rl.types import Actions, Continuous, Discrete, Env, Step, Trajectories
from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Task, Tree

# More environments than this at once are rarely meant; each is a whole simulator.
MOST_AT_ONCE = 64


def installed(name: str, extra: str = "rl") -> ModuleType:
    """Imports an optional package.

    Args:
      name: Name of the module.
      extra: Extra of metajax that installs it, for the error message.

    Returns:
      The module.

    Raises:
      ImportError: If it, or a package that it needs, is not installed; the message names the command.

    Example:
      >>> metajax.rl.envs.hosted.installed("math").__name__
      'math'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = error.name or name
        raise ImportError(
            f"This needs the package {package}; install it with: pip install 'metajax[{extra}]'"
        ) from error


def strong_types(tree: Tree) -> Tree:
    """Converts leaves to arrays of their own type: a scan's carry must not change from weak to strong types.

    Args:
      tree: Tree of arrays, keys or Python numbers.

    Returns:
      Tree of arrays.

    Example:
      >>> metajax.rl.envs.hosted.strong_types(0.5).weak_type
      False
    """

    def settle(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(leaf))

    return jax.tree.map(settle, tree)


def actions_of(space: Any) -> Actions:
    """Translates a space of actions of gymnasium or gymnax.

    Args:
      space: Object with `n`, or with `shape`, `low` and `high`.

    Returns:
      `Discrete` or `Continuous`.

    Raises:
      ValueError: If the bounds differ between components, or the space is neither discrete nor a box.

    Example:
      >>> import types
      >>> metajax.rl.envs.hosted.actions_of(types.SimpleNamespace(n=3))
      Discrete(n=3)
    """
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if not all(hasattr(space, name) for name in ("shape", "low", "high")):
        kind = type(space).__name__
        raise ValueError(
            f"Actions are a {kind}; use a Discrete or a Box, or flatten them by a wrapper."
        )
    low, high = np.unique(np.asarray(space.low)), np.unique(np.asarray(space.high))
    if len(low) > 1 or len(high) > 1:
        raise ValueError(
            f"Bounds of actions differ: {low.tolist()} to {high.tolist()}; use gymnasium's RescaleAction."
        )
    return Continuous(int(np.prod(space.shape)), float(low[0]), float(high[0]))


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
    seen = jax.ShapeDtypeStruct(host.shape, _crossing_dtype(host.dtype))
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


def _crossing_dtype(dtype: Any) -> Any:
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
        self.actions, self.shape, self.dtype = _spaces(first)
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
        observation = _reset(env, seed, task, self.set_task)
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
        observation, reward, terminated = _step(record[0], self.actions, action, time, self.horizon)
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


def _spaces(env: Any) -> tuple[Actions, tuple[int, ...], Any]:
    """Returns the actions of an object, and the shape and type of its observations."""
    space = env.observation_space
    if getattr(space, "shape", None) is None or getattr(space, "dtype", None) is None:
        kind = type(space).__name__
        raise ValueError(
            f"Observations are a {kind}; use one array, such as gymnasium's FlattenObservation."
        )
    return actions_of(env.action_space), tuple(space.shape), np.dtype(space.dtype)


def _reset(env: Any, seed: int, task: Any, set_task: Any) -> Any:
    """Begins an episode; returns its observation."""
    if set_task is not None:
        set_task(env, task)
    return env.reset(seed=seed)[0]


def _step(
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
      >>> live = metajax.rl.envs.hosted.live_on_host(learner, lambda: counter, horizon=3, episodes=2)
      >>> meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> batch = live(meta, learner.start(meta, jax.random.key(1)), jax.random.key(2), None)
      >>> batch.weights.shape
      (6,)
    """
    _check_counts(horizon, episodes)
    estimate = advantages() if advantage is None else advantage
    env, act = make_env(), jax.jit(learner.predict)
    _spaces(env)  # Refused here, before anything moves.

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
      >>> lives = metajax.rl.envs.hosted.lived_on_host(
      ...     counter, uniform, jax.random.key(0), None, horizon=3, episodes=2)
      >>> lives.reward.tolist()  # ends after a step
      [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    _check_counts(horizon, episodes)
    actions, _, dtype = _spaces(env)
    floats = np.issubdtype(dtype, np.floating)
    dtype = np.dtype(jnp.result_type(float)) if floats else _crossing_dtype(dtype)
    keys = jax.random.split(key, episodes)

    def seen(observation: Any) -> Array:
        return jnp.asarray(np.asarray(observation, dtype))[None]

    def episode(key: Key) -> tuple[list, Any]:
        reset_key, step_key = jax.random.split(key)
        seed = seed_of(jax.random.split(reset_key, 1)[0])
        observation = seen(_reset(env, int(seed), task, set_task))
        rows, outputs, reward = [], act(observation), jnp.zeros(1)
        for time, key in enumerate(jax.random.split(step_key, horizon)):
            action, shown = _decide(outputs, key, actions, mode)
            after, reward, terminated = _step(env, actions, np.asarray(shown)[0], time, horizon)
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


def _check_counts(horizon: int, episodes: int) -> None:
    """Raises an error if a number is below 1."""
    for name, number in (("horizon", horizon), ("episodes", episodes)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")


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
