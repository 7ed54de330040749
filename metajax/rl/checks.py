"""A check of environments against the contract of `Env`, for everyone who writes one."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.types import Actions, Continuous, Discrete, Env, Step
from metajax.types import Array, Key, Task, Tree


def check_env(
    env: Env,
    key: Key,
    *,
    task: Task | None = None,
    episodes: int = 8,
    visible: Sequence[str] = (),
    walk: bool = True,
) -> None:
    """Checks that an environment keeps the contract of `Env`; raises an error that names the field if not.

    First without computing: actions and horizon; `reset` and `step` agree in structure, shapes and types of
    state and observation; the reward is a float and `terminated` a bool scalar; tracing twice gives the same
    program, so that nothing is drawn on the host. Then along episodes of random actions of one task:
    observations and rewards are finite; `step` does not reset by itself after an end; `reset` draws no task.

    A start may be random, so the last one needs a criterion. A number of the state belongs to the task if
    `reset` draws it (it differs between episodes), no step ever changes it, and exchanging it between
    episodes, with all else and all keys equal, changes a reward, an observation or an end: a goal, a mass or
    a table behind the agent's back. If the observation shows it, as that of a contextual bandit does, nothing
    is hidden and `visible` may name it. Some things no check can see: a goal that `step` draws for one
    reward is noise, as is all that a key in the state brings; what random actions do not reach is not tried.

    Args:
      env: Environment.
      key: Random key; consumed.
      task: Task of the environment; None draws one.
      episodes: Number of episodes, of `env.horizon` steps, 2 or more.
      visible: Names of leaves of the state that `reset` may draw and no step change, such as "state.goal".
      walk: Whether episodes are run; False checks only what takes no computing.

    Raises:
      ValueError: If the environment breaks the contract or `episodes` is below 2.

    Example:
      >>> check_env(metajax.rl.envs.bandit(arms=3, pulls=4), jax.random.key(0))
      >>> endless = metajax.rl.envs.bandit(arms=3)._replace(horizon=0)
      >>> check_env(endless, jax.random.key(0))
      Traceback (most recent call last):
      ...
      ValueError: env.horizon is 0; use an int of 1 or more.
    """
    if episodes < 2:
        raise ValueError(f"episodes is {episodes}; use 2 or more, to compare them.")
    sample_key, walk_key = jax.random.split(key)
    _check_actions(env.actions)
    if not isinstance(env.horizon, int) or env.horizon < 1:
        raise ValueError(f"env.horizon is {env.horizon!r}; use an int of 1 or more.")
    _check_pure(env.sample, "sample", sample_key)
    if task is None:
        task = jax.jit(env.sample)(sample_key) if walk else jax.eval_shape(env.sample, sample_key)
    _check_types(env, walk_key, task)
    if not walk:
        return
    visible = (visible,) if isinstance(visible, str) else visible
    _check_walk(env, walk_key, task, episodes, visible)


def _check_actions(actions: Any) -> None:
    """Raises where the kind of the actions is unknown or empty."""
    if isinstance(actions, Discrete):
        if actions.n < 1:
            raise ValueError(f"env.actions has {actions.n} choices; use 1 or more.")
    elif isinstance(actions, Continuous):
        if actions.size < 1:
            raise ValueError(f"env.actions has {actions.size} components; use 1 or more.")
        if not np.all(np.less(actions.low, actions.high)):
            raise ValueError(
                f"env.actions are bounded by {actions.low} and {actions.high}; low must be below high."
            )
    else:
        raise ValueError(f"env.actions is {actions!r}; use metajax.rl.Discrete or Continuous.")


def _check_pure(function: Any, name: str, *args: Any) -> None:
    """Raises where tracing a function twice gives two programs, since it drew numbers on the host."""
    # A new function each time, since JAX remembers the program of one that it has traced. Programs name
    # functions in memory, whose addresses do not count.
    one, two = (jax.make_jaxpr(functools.partial(_call, function))(*args) for _ in range(2))
    texts = [re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr)) for program in (one, two)]
    pairs = zip(one.consts, two.consts, strict=False)
    if texts[0] != texts[1] or not all(np.array_equal(_numbers(a), _numbers(b)) for a, b in pairs):
        raise ValueError(
            f"env.{name} is not a function of its arguments: two calls with one key differ; draw with "
            "jax.random from the key."
        )


def _call(function: Any, *args: Any) -> Any:
    """Calls a function."""
    return function(*args)


def _check_types(env: Env, key: Key, task: Task) -> None:
    """Raises where `reset` and `step` do not fit each other; computes nothing."""
    first = jax.eval_shape(env.reset, key, task)
    if not isinstance(first, tuple) or len(first) != 2:
        raise ValueError(f"env.reset returns {type(first).__name__}; use (state, observation).")
    state, observation = first
    action = jax.eval_shape(lambda key: _draw(env.actions, key), key)
    after = jax.eval_shape(env.step, key, task, state, action)
    if not isinstance(after, Step):
        raise ValueError(f"env.step returns {type(after).__name__}; use metajax.rl.Step.")
    _compare("state", state, after.state)
    _compare("observation", observation, after.observation)
    for name, kind, words in (("reward", jnp.floating, "float"), ("terminated", jnp.bool_, "bool")):
        leaf = getattr(after, name)
        if not hasattr(leaf, "dtype") or leaf.shape or not jnp.issubdtype(leaf.dtype, kind):
            raise ValueError(f"{name} of env.step is {_describe(leaf)}; use a {words} scalar.")
    _check_pure(env.reset, "reset", key, task)
    _check_pure(env.step, "step", key, task, state, action)


def _compare(name: str, before: Tree, after: Tree) -> None:
    """Raises where the trees of `reset` and `step` differ in structure, shapes or types."""
    one, two = jax.tree.structure(before), jax.tree.structure(after)
    if one != two:
        raise ValueError(f"{name} of env.step is {two}, of env.reset {one}; they must be alike.")
    for (path, a), b in zip(_leaves(before), jax.tree.leaves(after), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"{name}{path} of env.step is {_describe(b)}, of env.reset {_describe(a)}; "
                "they must be alike."
            )


def _check_walk(env: Env, key: Key, task: Task, episodes: int, visible: Sequence[str]) -> None:
    """Raises where episodes of random actions show a number that is not finite, a reset or a drawn task."""
    reset_key, walk_key = jax.random.split(key)
    walk = functools.partial(jax.jit(functools.partial(_walk, env, episodes)), walk_key, task)
    keys = jax.random.split(reset_key, episodes)
    state, observation = jax.jit(jax.vmap(env.reset, (0, None)))(keys, task)
    kept, rows = jax.device_get(walk(state))
    _check_finite("env.reset", {"observation": jax.tree.map(lambda leaf: leaf[None], observation)})
    _check_finite("step {}", {name: rows[name] for name in ("observation", "reward")})
    random, ended = rows["random"], rows["terminated"]
    going = rows["alive"] & ~ended
    if np.any(random & ended) and np.any(going) and not np.any(random & going):
        raise ValueError(
            "state of env.step is random after an end and only there: it resets by itself; return the last "
            "state, and leave resets to the rollout."
        )
    _check_drawn(state, kept, rows, walk, visible)


def _check_drawn(
    state: Tree, kept: Tree, rows: dict[str, Tree], walk: Callable, visible: Sequence[str]
) -> None:
    """Raises where numbers of the state that `reset` drew and no step changed have an effect."""
    leaves, structure = jax.tree.flatten(state)
    every = zip(_leaves(state), jax.tree.leaves(kept), strict=True)
    for place, ((path, leaf), same) in enumerate(every):
        if _is_key(leaf) or f"state{path}" in visible:
            continue  # A key in the state is the source of noise, not a task.
        other = jnp.roll(leaf, 1, axis=0)
        drawn = np.any(np.asarray(leaf != other), axis=0) & same
        if not drawn.any():
            continue
        mixed = [*leaves[:place], jnp.where(drawn, other, leaf), *leaves[place + 1 :]]
        _, changed = jax.device_get(walk(jax.tree.unflatten(structure, mixed)))
        for name in ("reward", "observation", "terminated"):
            if not _equal(rows[name], changed[name]):
                raise ValueError(
                    f"env.reset draws state{path}, which no step changes and which changes the {name}: it "
                    "belongs to the task; draw it in env.sample, or name it in visible=(...) if the "
                    "observation shows it."
                )


def _walk(env: Env, number: int, key: Key, task: Task, state: Tree) -> tuple[Tree, dict[str, Tree]]:
    """Runs episodes of random actions from states [N, ...].

    Returns:
      Whether each number of the state stayed as it was in all episodes, shaped like the state without its
      first axis; and rows [H, N, ...], zero after an end: rewards, observations, ends, steps taken, and
      whether another key leads to another state.
    """

    def step(carry: Any, key: Key) -> tuple[Any, dict[str, Tree]]:
        state, alive, kept = carry
        act_key, env_key, other_key = jax.random.split(key, 3)
        actions = jax.vmap(functools.partial(_draw, env.actions))(jax.random.split(act_key, number))
        once, again = (
            jax.vmap(env.step, (0, None, 0, 0))(jax.random.split(key, number), task, state, actions)
            for key in (env_key, other_key)
        )

        def living(leaf: Array) -> Array:
            return jnp.where(alive.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))

        def stayed(kept: Array, before: Array, after: Array) -> Array:
            return kept & ~jnp.any(living(before != after), axis=0)

        pairs = zip(*map(jax.tree.leaves, (once.state, again.state)), strict=True)
        differs = [
            jnp.any((a != b).reshape(number, -1), axis=1) for a, b in pairs if not _is_key(a)
        ]
        row = {
            "reward": living(once.reward),
            "observation": jax.tree.map(living, once.observation),
            "terminated": living(once.terminated),
            "alive": alive,
            "random": functools.reduce(jnp.logical_or, differs, jnp.zeros(number, bool)),
        }
        kept = jax.tree.map(stayed, kept, state, once.state)
        return (once.state, alive & ~once.terminated, kept), row

    kept = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1:], bool), state)
    keys = jax.random.split(key, env.horizon)
    (_, _, kept), rows = jax.lax.scan(step, (state, jnp.ones(number, bool), kept), keys)
    return kept, rows


def _draw(actions: Actions, key: Key) -> Array:
    """Draws an action: uniform between bounds, normal without."""
    if isinstance(actions, Discrete):
        return jax.random.randint(key, (), 0, actions.n)
    size = (actions.size,)
    if np.all(np.isfinite(actions.low)) and np.all(np.isfinite(actions.high)):
        return jax.random.uniform(key, size, minval=actions.low, maxval=actions.high)
    return jnp.clip(jax.random.normal(key, size), actions.low, actions.high)


def _check_finite(where: str, tree: Tree) -> None:
    """Raises at the first row of a tree [H, N, ...] with a number that is not finite."""
    found = []
    for path, leaf in _leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            values = np.isfinite(np.asarray(leaf))
            bad = ~values.reshape(*values.shape[:2], -1).all(axis=2)
            found += [(*place, path) for place in np.argwhere(bad)[:1].tolist()]
    if found:
        step, episode, path = min(found)
        name = re.sub(r"^\['(\w+)'\]", r"\1", path)
        raise ValueError(
            f"{name} is not finite at {where.format(step)} of episode {episode}; bound what env.reset and "
            "env.step compute."
        )


def _equal(one: Tree, two: Tree) -> bool:
    """Returns whether two trees hold the same numbers."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Lists paths and leaves of a tree; the path of a single array is empty."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _numbers(leaf: Any) -> np.ndarray:
    """Returns the numbers of an array, or of a key."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_key(leaf: Any) -> bool:
    """Returns whether an array holds random keys."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _describe(leaf: Any) -> str:
    """Describes an array by its type and shape."""
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}{list(leaf.shape)}"
