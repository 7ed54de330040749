"""The vocabulary of reinforcement learning: environments, actions, decisions and trajectories.

Letters in all docstrings of this room: `N` episodes, `H` steps of an episode at most (the horizon), `B = N H`
rows of experience, `C` calls of `adapt`, `A` actions to choose from or numbers of one action.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from metajax.types import Array, Key, Task, Tree


class Discrete(NamedTuple):
    """Actions that are one of several choices, an int in [0, n).

    Attributes:
      n: Number of choices, an int of 1 or more.

    Example:
      >>> Discrete(5).n
      5
    """

    n: int


class Continuous(NamedTuple):
    """Actions that are vectors of real numbers, float [size].

    Attributes:
      size: Number A of components.
      low: Least value of each component; a rollout clips actions to it before the environment sees them.
      high: Largest value of each component.

    Example:
      >>> Continuous(2, low=-0.1, high=0.1).size
      2
    """

    size: int
    low: float = -float("inf")
    high: float = float("inf")


Actions = Discrete | Continuous


class Step(NamedTuple):
    """What an environment returns for one action.

    Attributes:
      state: State after the action, with the structure, shapes and types of the state before.
      observation: Observation of that state, a tree of arrays.
      reward: Reward of the action, a float scalar.
      terminated: Whether the episode ended in this step by itself, a bool scalar. The time limit is not an
        end in this sense: it is the rollout's.
    """

    state: Tree
    observation: Tree
    reward: Array
    terminated: Array


class Env(NamedTuple):
    """A family of environments, as pure functions of a task.

    A task is a pytree of arrays: a goal, a table of transitions, the length of a pole. Nothing but `sample`
    draws one: two calls of `reset` or `step` with different keys belong to the same task. There is no
    automatic reset after an end.

    Attributes:
      sample: Function `key -> task`, the distribution of tasks.
      reset: Function `(key, task) -> (state, observation)` that begins an episode.
      step: Function `(key, task, state, action) -> Step`.
      actions: Kind of the actions.
      horizon: Largest number of steps of an episode, an int.

    Example:
      >>> walk = metajax.rl.Env(  # rewards steps towards the task's side
      ...     sample=lambda key: jax.random.rademacher(key, (), jnp.float32),
      ...     reset=lambda key, task: (jnp.zeros(()), jnp.zeros(1)),
      ...     step=lambda key, task, state, action: metajax.rl.Step(
      ...         state + 2.0 * action - 1, (state + 2.0 * action - 1)[None],
      ...         task * (2.0 * action - 1), jnp.array(False)),
      ...     actions=metajax.rl.Discrete(2),
      ...     horizon=10,
      ... )
      >>> state, observation = walk.reset(jax.random.key(0), 1.0)
      >>> float(walk.step(jax.random.key(1), 1.0, state, 1).reward)
      1.0
    """

    sample: Callable[[Key], Task]
    reset: Callable[[Key, Task], tuple[Tree, Tree]]
    step: Callable[[Key, Task, Tree, Array], Step]
    actions: Actions
    horizon: int


class Decisions(NamedTuple):
    """What was decided at the observations of a batch, and what followed: the targets of experience.

    The rows of a batch of experience are episodes one after another, each of `horizon` steps in order; the
    batch's weights are zero for steps after an end. Everything here is data: no gradient flows into it.

    Attributes:
      action: Actions as drawn, int [B] or float [B, A].
      reward: Rewards [B].
      ends: Whether the step was the last of its episode, by itself or by the time limit, bool [B].
      behavior: Distribution [B] that drew the actions.
      advantage: Advantages [B] of the actions.
      returns: Targets [B] of a value function: the discounted rewards that followed.
      value: Baseline [B] of the returns that the advantages were computed with; zero without any.
    """

    action: Array
    reward: Array
    ends: Array
    behavior: Any
    advantage: Array
    returns: Array
    value: Array


class Trajectories(NamedTuple):
    """Raw results of a rollout of N episodes of H steps, from which advantages are computed.

    Attributes:
      observation: Observations [N, H, ...] before each action.
      action: Actions as drawn, int [N, H] or float [N, H, A].
      reward: Rewards [N, H]; zero after an end.
      alive: Whether the step was taken, bool [N, H]: False after an end.
      terminated: Whether the step ended its episode by itself, bool [N, H].
      ends: Whether the step was the last of its episode, by itself or by the time limit, bool [N, H].
      behavior: Distribution [N, H] that drew the actions.
      value: Values [N, H] that the learner predicted; zero if it predicts none.
      last_observation: Observation [N, ...] after the last step of each episode.
      last_value: Value [N] of that observation; zero if the learner predicts none.
    """

    observation: Tree
    action: Array
    reward: Array
    alive: Array
    terminated: Array
    ends: Array
    behavior: Any
    value: Array
    last_observation: Tree
    last_value: Array
