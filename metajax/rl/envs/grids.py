"""Grid worlds of XLand-MiniGrid: a task is a set of rules and a goal that must be found out.

A task is xminigrid's `RuleSet`: the goal, the rules that turn objects into others, and the objects at the
start. The rules are never observed. The published benchmarks are downloaded by xminigrid at run time; here
the caller hands over a table of rule sets, such as one of those or one of `generate_rules`. Install xminigrid
with `pip install 'metajax[rl]'`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.rl.envs.foreign import installed, strong_types
from metajax.rl.types import Discrete, Env, Step
from metajax.types import Array, Key, Tree


def grid_world(
    rules: Any,
    *,
    size: int = 9,
    rooms: int = 1,
    view: int = 5,
    horizon: int | None = None,
) -> Env:
    """Makes a grid world whose tasks are drawn from a table of rule sets.

    Each episode places the agent and the objects anew, and the doors of layouts with several rooms; the rules
    and the goal are the task's. The reward is 1 - 0.9 t / horizon in the step t that reaches the goal, which
    ends the episode.

    Args:
      rules: Rule sets stacked to leaves [M, ...], as in `Benchmark.rulesets` of xminigrid or
        `generate_rules`.
      size: Height and width of the grid, walls included.
      rooms: Number of rooms: 1, 2, 4, 6 or 9.
      view: Side of the square that the agent sees in front of it, odd.
      horizon: Largest number of steps; None is 3 size^2, xminigrid's.

    Returns:
      An environment with 6 actions (forward, turn right, turn left, pick up, put down, toggle). Observations
      are one-hot kinds and colors of the tiles in view, float [view, view, 25].

    Raises:
      ImportError: If xminigrid is not installed.
      ValueError: If `rooms` is another number, `view` is even, or `size` or `horizon` is too small.

    Example:
      >>> grids = metajax.rl.envs.grids
      >>> env = grids.grid_world(grids.generate_rules(jax.random.key(0), 10), size=7)
      >>> env.horizon, env.sample(jax.random.key(1)).goal.shape
      (147, (5,))

    Reference: Nikulin et al., 2024 (https://arxiv.org/abs/2312.12044).
    """

    def sample(key: Key) -> Any:
        count = len(jax.tree.leaves(rules)[0])
        row = jax.random.randint(key, (), 0, count)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], rules)

    return _grid(sample, size=size, rooms=rooms, view=view, horizon=horizon)


def drawn_grids(
    *,
    objects: int = 3,
    produce: bool = False,
    size: int = 9,
    rooms: int = 1,
    view: int = 5,
    horizon: int | None = None,
) -> Env:
    """Makes a grid world whose tasks are new rule sets, drawn as by `generate_rules`.

    Args:
      objects: Number of objects on the grid at the start.
      produce: Whether the object to pick up must be made out of two others.
      size: Height and width of the grid, walls included.
      rooms: Number of rooms: 1, 2, 4, 6 or 9.
      view: Side of the square that the agent sees in front of it, odd.
      horizon: Largest number of steps; None is 3 size^2, xminigrid's.

    Returns:
      An environment as that of `grid_world`.

    Raises:
      ImportError: If xminigrid is not installed.
      ValueError: If a number is not as `grid_world` and `generate_rules` want it.

    Example:
      >>> env = metajax.rl.envs.grids.drawn_grids(size=7, objects=2)
      >>> env.sample(jax.random.key(1)).init_tiles.shape
      (2, 2)
    """
    _check_objects(objects)

    def sample(key: Key) -> Any:
        return _drawn_rules(key, objects, produce)

    return _grid(sample, size=size, rooms=rooms, view=view, horizon=horizon)


def _grid(
    sample: Callable[[Key], Any], *, size: int, rooms: int, view: int, horizon: int | None
) -> Env:
    """Makes the grid world of a distribution of rule sets."""
    xland = installed("xminigrid.envs.xland")
    constants = installed("xminigrid.core.constants")
    if rooms not in (1, 2, 4, 6, 9):
        raise ValueError(f"rooms is {rooms}; use 1, 2, 4, 6 or 9.")
    if view < 3 or view % 2 == 0:
        raise ValueError(f"view is {view}; use an odd number of 3 or more.")
    horizon = 3 * size**2 if horizon is None else horizon
    if size < 5 or horizon < 1:
        raise ValueError(
            f"size is {size}, horizon {horizon}; use a size of 5 or more, a horizon of 1 or more."
        )
    world = xland.XLandMiniGrid()
    params = world.default_params(
        height=size, width=size, view_size=view, max_steps=horizon, grid_type=f"R{rooms}"
    )

    def seen(tiles: Array) -> Array:
        kinds = jax.nn.one_hot(tiles[..., 0], constants.NUM_TILES)
        return jnp.concatenate(
            [kinds, jax.nn.one_hot(tiles[..., 1], constants.NUM_COLORS)], axis=-1
        )

    def reset(key: Key, task: Any) -> tuple[Tree, Array]:
        begin = world.reset(params.replace(ruleset=task), key)
        return strong_types(begin), seen(begin.observation)

    def step(key: Key, task: Any, state: Tree, action: Array) -> Step:
        del key  # Grids are deterministic.
        after = strong_types(world.step(params.replace(ruleset=task), state, action))
        # The discount is zero only at the goal; at the time limit, which is the rollout's, it is one.
        return Step(after, seen(after.observation), after.reward, after.discount == 0)

    return Env(sample, reset, step, Discrete(int(constants.NUM_ACTIONS)), horizon)


def generate_rules(key: Key, count: int, *, objects: int = 3, produce: bool = False) -> Any:
    """Draws simple rule sets: pick up the right object, or make it out of two others and pick it up.

    The objects of a rule set differ in kind or color. Which of them is right cannot be seen.

    Args:
      key: Random key; consumed.
      count: Number of rule sets M.
      objects: Number of objects on the grid at the start.
      produce: Whether the object to pick up is not on the grid, but appears where one object is put down next
        to another; without it, there is no rule and the goal is one of the objects.

    Returns:
      Rule sets, xminigrid's `RuleSet` with leaves [M, ...].

    Raises:
      ImportError: If xminigrid is not installed.
      ValueError: If `count` is below 1, or `objects` is not in 2 to 20.

    Example:
      >>> rules = metajax.rl.envs.grids.generate_rules(jax.random.key(0), 10)
      >>> rules.goal.shape, rules.rules.shape, rules.init_tiles.shape
      ((10, 5), (10, 1, 7), (10, 3, 2))
    """
    if count < 1:
        raise ValueError(f"count is {count}; use 1 or more.")
    _check_objects(objects)
    keys = jax.random.split(key, count)
    return jax.jit(jax.vmap(lambda key: _drawn_rules(key, objects, produce)))(keys)


def _check_objects(objects: int) -> None:
    """Raises an error if so many objects cannot lie on a grid."""
    if not 2 <= objects <= 20:
        raise ValueError(f"objects is {objects}; use 2 to 20.")


def _drawn_rules(key: Key, objects: int, produce: bool) -> Any:
    """Draws a rule set."""
    goals, rules = installed("xminigrid.core.goals"), installed("xminigrid.core.rules")
    types = installed("xminigrid.types")
    tiles = jax.random.choice(key, jnp.asarray(_objects()), (objects + 1,), replace=False)
    at_start, product = tiles[:-1], tiles[-1]
    if produce:
        rule = rules.TileNearRule(at_start[0], at_start[1], product).encode()
        return types.RuleSet(goals.AgentHoldGoal(product).encode(), rule[None], at_start)
    nothing = rules.EmptyRule().encode()
    return types.RuleSet(goals.AgentHoldGoal(at_start[0]).encode(), nothing[None], at_start)


def _objects() -> Any:
    """Lists the tiles [30, 2] of objects that can be carried, five kinds in six colors."""
    constants = installed("xminigrid.core.constants")
    kinds, colors = constants.Tiles, constants.Colors
    return np.array(
        [
            (kind, color)
            for kind in (kinds.BALL, kinds.SQUARE, kinds.PYRAMID, kinds.HEX, kinds.STAR)
            for color in (
                *(colors.RED, colors.GREEN, colors.BLUE),
                *(colors.PURPLE, colors.YELLOW, colors.GREY),
            )
        ],
        np.uint8,
    )
