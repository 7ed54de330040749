"""Measures environment steps per second of meta-reinforcement learning, and the parts of a meta-iteration.

    python -m benchmarks.acting
    python -m benchmarks.acting --tasks=40 --horizon=200 --rounds=9
    python -m benchmarks.acting --quick     # tiny sizes, to see that it works

A meta-iteration is ProMP's: in each task, episodes of 2D navigation, one inner step, as many episodes again,
and then passes of the outer optimizer over this experience, through the inner step. It is compiled as a whole
and in two parts, "rollout" (episodes, advantages and the inner step) and "update" (all passes). The parts
take turns; the command prints medians and ranges of the rounds.

The libraries that train the same way step environments on the host. None of them is measured here; instead
there is a loop of NumPy that is written for this: all episodes of all tasks are arrays, the network is the
same, each task has its own parameters, and both sets of episodes are run. It computes no advantage, no inner
step and no update, so it compares with "rollout", and does less.

Steps are tasks x episodes x horizon, before and after the inner step. Those after an episode's end count,
since all of them compute them.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from benchmarks.harness import options as shared
from experiments.reports import report
from experiments.runtime.devices import use_every_core
from metajax import rl
from metajax.sharding import draw_over_tasks, place, task_mesh

PARTS = ("rollout", "update", "whole", "numpy")
QUICK = {"tasks": 4, "episodes": 2, "horizon": 5, "width": 4, "updates": 2, "rounds": 1}

Tree = Any


class Iteration(NamedTuple):
    """A meta-iteration of ProMP, compiled as a whole and in parts.

    Attributes:
      state: Training state at step 0, on the devices.
      rollout: Function `state -> (keys [T], lives [T, ...])`.
      update: Function `(state, keys, lives) -> (meta, optimizer state, metrics)`.
      whole: Function `state -> (state, metrics)`.
    """

    state: metajax.TrainState
    rollout: Callable[[metajax.TrainState], tuple[Tree, Tree]]
    update: Callable[[metajax.TrainState, Tree, Tree], Tree]
    whole: Callable[[metajax.TrainState], Tree]


def make_iteration(options: argparse.Namespace) -> Iteration:
    """Makes a meta-iteration; each part is compiled at its first call.

    Args:
      options: Options of the command.

    Returns:
      The iteration.
    """
    env = rl.envs.navigation(horizon=options.horizon)
    policy = rl.mlp_policy(env.actions, hidden=(options.width, options.width))
    learner = metajax.maml(policy, rl.policy_gradient(curvature="lvc"), rule=optax.sgd(0.1))
    objective = rl.lifetime_objective(learner, rl.clipped(epsilon=0.3), kl_cost=5e-4)
    mesh, optimizer = task_mesh(), optax.adam(1e-3)
    meta_grad = metajax.over_tasks(mesh, metajax.backprop(objective))
    improve = rl.several(meta_grad, optimizer, steps=options.updates)
    life = rl.live(learner, env, episodes=options.episodes)
    draw = draw_over_tasks(mesh)

    def sample(data: None, key: jax.Array) -> jax.Array:
        del data
        return env.sample(key)

    def rollout(state: metajax.TrainState) -> tuple[Tree, Tree]:
        numbers = jnp.arange(options.tasks)
        keys, tasks = draw(sample, None, state.key, state.step, numbers)
        return keys, jax.vmap(life, (None, 0, 0))(state.meta, keys, tasks)

    def update(state: metajax.TrainState, keys: jax.Array, lives: Tree) -> Tree:
        return improve.update(state.meta, state.opt_state, state.key, keys, lives)

    step = rl.make_step(life, improve, sample, num_tasks=options.tasks, draw=draw)
    init_key, train_key = jax.random.split(jax.random.key(0))
    meta = jax.jit(learner.init)(init_key, jnp.zeros((1, 2)))
    state = place(mesh, metajax.init_state(meta, optimizer, train_key))
    whole = jax.jit(lambda state: step(state, None))
    return Iteration(state, jax.jit(rollout), jax.jit(update), whole)


def numpy_episodes(
    params: Mapping[str, Any],
    goals: np.ndarray,
    *,
    episodes: int,
    horizon: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Runs episodes of 2D navigation in all tasks at once, by a loop of NumPy.

    Args:
      params: Layers of `metajax.rl.mlp_policy` for each task, arrays [T, ...].
      goals: Tasks, float [T, 2].
      episodes: Number of episodes N per task.
      horizon: Number of steps H.
      rng: Generator of the actions' noise.

    Returns:
      Arrays [H, T, N, ...]: `observation`, `action`, `reward` (zero after an end) and `alive`.
    """
    names = [*sorted(name for name in params if name.startswith("hidden")), "head"]
    layers = [(params[name]["kernel"], params[name]["bias"][:, None]) for name in names]
    deviation = np.exp(params["head"]["log_std"])[:, None]
    shape, dtype = (len(goals), episodes), goals.dtype
    where, goals = np.zeros((*shape, 2), dtype), goals[:, None]
    alive, found = np.ones(shape, bool), []
    for _ in range(horizon):
        outputs = where
        for kernel, bias in layers[:-1]:
            outputs = np.tanh(outputs @ kernel + bias)
        mean = outputs @ layers[-1][0] + layers[-1][1]
        action = mean + deviation * rng.standard_normal(mean.shape, dtype)
        moved = where + dtype.type(0.1) * np.clip(action, -1, 1)
        away = moved - goals
        reward = np.where(alive, -np.sqrt(np.sum(away**2, axis=-1)), 0)
        found.append((where, action, reward, alive))
        where = np.where(alive[..., None], moved, where)
        alive = alive & ~np.all(np.abs(away) < 0.01, axis=-1)
    columns = (np.stack(column) for column in zip(*found, strict=True))
    return dict(zip(("observation", "action", "reward", "alive"), columns, strict=True))


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measures the parts in turn, after a call of each that compiles it.

    Args:
      options: Options of the command.

    Returns:
      Seconds of each round, by part.
    """
    iteration = make_iteration(options)
    state = iteration.state
    keys, lives = iteration.rollout(state)
    params = jax.tree.map(
        lambda leaf: np.broadcast_to(leaf, (options.tasks, *leaf.shape)), jax.device_get(state.meta)
    )
    params = _layers(params)
    rng = np.random.default_rng(0)

    def loop() -> None:
        goals = rng.uniform(-0.5, 0.5, (options.tasks, 2)).astype(np.float32)
        for _ in range(2):  # before and after the inner step
            numpy_episodes(
                params, goals, episodes=options.episodes, horizon=options.horizon, rng=rng
            )

    parts = {
        "rollout": functools.partial(iteration.rollout, state),
        "update": functools.partial(iteration.update, state, keys, lives),
        "whole": functools.partial(iteration.whole, state),
        "numpy": loop,
    }
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    for turn in range(options.rounds + 1):
        for name in PARTS:
            start = time.perf_counter()
            jax.block_until_ready(parts[name]())
            if turn:  # the first one compiles
                found[name].append(time.perf_counter() - start)
    return found


def _layers(meta: Tree) -> Mapping[str, Any]:
    """Finds the layers of the policy within the meta-parameters of a gradient learner."""
    return meta.params if hasattr(meta, "params") else meta


def rows(seconds: Mapping[str, Sequence[float]], options: argparse.Namespace) -> list[Any]:
    """Formats the measurements.

    Args:
      seconds: Seconds of each round, by part.
      options: Options of the command.

    Returns:
      Pairs of name and text for `report.table`.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    steps = 2 * options.tasks * options.episodes * options.horizon
    split = medians["rollout"] + medians["update"]
    versions = {**report.versions(), "numpy": np.__version__}
    return [
        (
            "meta-iteration",
            f"navigation, {options.tasks} tasks x {options.episodes} episodes x {options.horizon} steps "
            f"before and after one inner step, {options.updates} outer steps, "
            f"MLP {options.width},{options.width}",
        ),
        ("training", f"{steps / medians['whole']:,.0f} environment steps/s"),
        ("rollouts alone", f"{steps / medians['rollout']:,.0f} environment steps/s"),
        (
            "NumPy loop",
            f"{steps / medians['numpy']:,.0f} environment steps/s, written for this comparison, without "
            "advantages and inner step; rollouts alone are "
            f"{medians['numpy'] / medians['rollout']:.1f} times as fast",
        ),
        ("whole", _in_words(seconds["whole"])),
        (
            "rollout",
            f"{_in_words(seconds['rollout'])}, {medians['rollout'] / split:.0%} of both parts",
        ),
        (
            "update",
            f"{_in_words(seconds['update'])}, {medians['update'] / split:.0%} of both parts",
        ),
        ("rounds", str(options.rounds)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _in_words(seconds: Sequence[float]) -> str:
    """Formats the median and the range of the rounds."""
    low, median, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"{median:,.1f} ms ({low:,.1f} to {high:,.1f})"


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options; an invalid one is an error of one line, with status 2.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      The options.
    """
    parser = shared.Parser("benchmarks.acting", __doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes instead of the defaults, and one round"
    )
    defaults = {"tasks": 20, "episodes": 20, "horizon": 100, "width": 64, "updates": 5, "rounds": 7}
    helps = {
        "tasks": "tasks per meta-iteration",
        "episodes": "episodes of a task, before and after the inner step",
        "horizon": "steps of an episode",
        "width": "width of both hidden layers",
        "updates": "passes of the outer optimizer",
        "rounds": "rounds of measurements",
    }
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name}", type=shared.positive(int), help=f"{helps[name]} [{default}]"
        )
    options = parser.parse_args(args)
    for name, default in (QUICK if options.quick else defaults).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures, and prints a table.

    Args:
      args: Words of the command line; None for the process's.

    Returns:
      Exit status.
    """
    options = parse(args)
    use_every_core(options.tasks)
    print(report.table(rows(measure(options), options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
