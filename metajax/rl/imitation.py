"""Imitation: demonstrations of experts, behavior cloning, and learning to imitate from one demonstration.

Demonstrations are ordinary batches, so that most of meta-imitation is composition:

| learner | made from |
|---|---|
| cloning, many tasks, no adaptation | `maml(mlp_policy(...), imitation_loss, rule=..., steps=0)` |
| the same, fine-tuned to a demonstration | its meta-parameters, with `steps=50` and any rule |
| MAML from one demonstration | `maml(mlp_policy(...), imitation_loss, rule=optax.sgd(0.1))` |
| a reader of a demonstration | `reading_policy(gru_model(64), env.actions)` |

Each is trained by `metajax.query_objective(learner, imitation_loss)` on tasks of `demonstration_episode`:
adapt to one demonstration, predict the actions of another one of the same expert.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.rl.experience import as_batch, lived, rollouts
from metajax.rl.losses import mean_return
from metajax.rl.returns import Estimates
from metajax.rl.types import Decisions, Discrete, Env, Trajectories
from metajax.types import (
    Array,
    Batch,
    Key,
    Learner,
    Meta,
    Metrics,
    Task,
    Tree,
)

# Function (task, observations [N, ...]) -> distribution [N] of actions, or actions [N].
Expert = Callable[[Task, Tree], Any]


class Demonstrated(NamedTuple):
    """A task of an environment with demonstrations of an expert; it serves wherever an `Episode` does.

    Attributes:
      task: Task of the environment.
      support: Demonstrations to adapt to, a batch [B, ...].
      query: Other demonstrations of the same expert, to score actions on; None where nothing is scored.
    """

    task: Task
    support: Batch
    query: Batch | None = None


class Certain(NamedTuple):
    """Distribution of an expert that has no choice: it always takes the same action.

    Attributes:
      action: Actions, int [...] or float [..., A].
    """

    action: Array

    def sample(self, key: Key) -> Array:
        """Returns the actions."""
        del key
        return self.action

    def mode(self) -> Array:
        """Returns the actions."""
        return self.action


def demonstrations(
    env: Env, expert: Expert, *, episodes: int = 1, mode: bool = False, rewards: bool = False
) -> Callable[[Key, Task], Batch]:
    """Makes the function that records episodes of an expert.

    Args:
      env: Environment.
      expert: Function `(task, observations [N, ...])` that returns a distribution [N] of actions or the
        actions [N] themselves. It may use the task, which the learner does not see.
      episodes: Number of episodes N.
      mode: Whether the expert takes its most likely action instead of a drawn one.
      rewards: Whether the rewards are recorded. By default they are zero: an imitator has none, and a learner
        that reads them would be given more than the expert's actions.

    Returns:
      `(key, task) -> Batch` of N H rows: observations as inputs, `Decisions` as targets with advantages of
      zero, weights zero after an end.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> best = lambda task, seen: jnp.full(seen.shape[0], jnp.argmax(task))
      >>> record = jax.jit(demonstrations(env, best, episodes=2))
      >>> record(jax.random.key(0), jnp.array([0.1, 0.2, 0.9])).targets.action.tolist()
      [2, 2, 2, 2, 2, 2, 2, 2]
    """

    def record(key: Key, task: Task) -> Batch:
        def act(observation: Tree) -> Any:
            found = expert(task, observation)
            return found if hasattr(found, "sample") else Certain(jnp.asarray(found))

        lives = lived(env, act, key, task, episodes=episodes, mode=mode)
        if not rewards:
            lives = lives._replace(reward=jnp.zeros_like(lives.reward))
        return as_batch(lives, _nothing)

    return record


def demonstration_episode(
    env: Env, expert: Expert, *, shots: int = 1, queries: int = 1, mode: bool = False
) -> Callable[[Key, Task], Demonstrated]:
    """Makes the function that draws demonstrations to adapt to, and others of the same task to score.

    Args:
      env: Environment.
      expert: Expert, as in `demonstrations`.
      shots: Number of episodes of the support set.
      queries: Number of episodes of the query set.
      mode: Whether the expert takes its most likely action.

    Returns:
      `(key, task) -> Demonstrated`, the input of `metajax.query_objective`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> best = lambda task, seen: jnp.full(seen.shape[0], jnp.argmax(task))
      >>> draw = demonstration_episode(env, best)
      >>> sample = lambda data, key: draw(key, env.sample(jax.random.fold_in(key, 1)))  # for make_step
      >>> shape = jax.eval_shape(sample, None, jax.random.key(0))
      >>> shape.support.weights.shape, shape.query.weights.shape
      ((4,), (4,))

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1709.04905), algorithm 1.
    """
    few = demonstrations(env, expert, episodes=shots, mode=mode)
    others = demonstrations(env, expert, episodes=queries, mode=mode)

    def draw(key: Key, task: Task) -> Demonstrated:
        support_key, query_key = jax.random.split(key)
        return Demonstrated(task, few(support_key, task), others(query_key, task))

    return draw


def subsample(key: Key, batch: Batch, *, horizon: int, every: int) -> Batch:
    """Keeps every k-th step of each demonstrated episode, from a random first one.

    Published comparisons of imitation learning do so: neighboring steps tell little more, and with all of
    them behavior cloning looks better than it is. A step taken after an end stays a step of weight zero.

    Args:
      key: Random key; consumed.
      batch: Demonstrations of N episodes of `horizon` rows each.
      horizon: Number of rows of an episode.
      every: Number of steps from one that is kept to the next, a divisor of the horizon.

    Returns:
      Batch of N horizon / every rows. Each episode has its own offset, uniform in [0, every).

    Raises:
      ValueError: If `every` does not divide the horizon, or the horizon the number of rows.

    Example:
      >>> batch = metajax.Batch(jnp.arange(12.0)[:, None], jnp.arange(12), jnp.ones(12))
      >>> thin = jax.jit(lambda key: subsample(key, batch, horizon=6, every=3))
      >>> kept = thin(jax.random.key(0)).targets.tolist()
      >>> kept[1] - kept[0], kept[3] - kept[2]
      (3, 3)

    Reference: Ho and Ermon, 2016 (https://arxiv.org/abs/1606.03476), appendix B.
    """
    rows = jax.tree.leaves(batch.inputs)[0].shape[0]
    if every < 1 or horizon % every:
        raise ValueError(f"every is {every}; use a divisor of the horizon {horizon}.")
    if rows % horizon:
        raise ValueError(f"{rows} rows are no whole episodes; use a multiple of {horizon}.")
    episodes, kept = rows // horizon, horizon // every
    offset = jax.random.randint(key, (episodes, 1), 0, every)
    chosen = jnp.arange(episodes)[:, None] * horizon + offset + jnp.arange(kept) * every
    return jax.tree.map(lambda leaf: leaf[chosen.reshape(-1)], batch)


def check_demonstrations(env: Env, batch: Batch, task: Task) -> None:
    """Checks that demonstrations fit an environment.

    Args:
      env: Environment.
      batch: Demonstrations, such as read from a file.
      task: Task of the environment, whose observations are compared.

    Raises:
      ValueError: If observations or actions have other shapes than the environment's, choices are out of
        range, or a number of a step with weight is not finite.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> check_demonstrations(env, metajax.Batch(jnp.zeros((4, 1)), jnp.array([0, 1, 2, 3])), jnp.ones(3))
      Traceback (most recent call last):
      ValueError: An action is 3; the environment has choices from 0 to 2.
    """
    _, like = jax.eval_shape(env.reset, jax.random.key(0), task)
    theirs = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], batch.inputs)
    ours = jax.tree.map(lambda leaf: leaf.shape, like)
    if theirs != ours:
        raise ValueError(
            f"Demonstrated observations have shape {theirs}; the environment's {ours}."
        )
    action = actions_of(batch)
    counts = jnp.ones(len(action), bool) if batch.weights is None else batch.weights > 0
    shape = () if isinstance(env.actions, Discrete) else (env.actions.size,)
    if action.shape[1:] != shape:
        raise ValueError(
            f"Demonstrated actions have shape {action.shape[1:]}; the environment's have {shape}."
        )
    if isinstance(env.actions, Discrete):
        outside = counts & ((action < 0) | (action >= env.actions.n))
        if outside.any():
            raise ValueError(
                f"An action is {action[jnp.argmax(outside)]}; the environment has choices from 0 to "
                f"{env.actions.n - 1}."
            )
    for name, tree in (("observation", batch.inputs), ("action", action)):
        for leaf in jax.tree.leaves(tree):
            bad = counts & ~jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"The {name} of row {jnp.argmax(bad)} is not finite; give its row a weight of zero."
                )


def actions_of(batch: Batch) -> Array:
    """Returns the actions of demonstrations or of experience.

    Args:
      batch: Batch whose targets are actions or `Decisions`.

    Returns:
      Actions, int [B] or float [B, A].

    Example:
      >>> actions_of(metajax.Batch(jnp.zeros((2, 1)), jnp.array([0, 1]))).tolist()
      [0, 1]
    """
    return batch.targets.action if isinstance(batch.targets, Decisions) else batch.targets


def imitation_returns(
    learner: Learner,
    env: Env,
    *,
    evidence: TaskEvidence = EPISODE,
    calls: int = 1,
    episodes: int = 10,
    mode: bool = True,
) -> Callable[[Meta, Key, Demonstrated], Metrics]:
    """Makes the test of an imitator: returns in the environment before and after adapting to demonstrations.

    Args:
      learner: Learner that adapts to demonstrations.
      env: Environment.
      evidence: Source of what the learner adapts to: by default the support set; `gail_evidence` for a
        learner that also needs rollouts.
      calls: Number of calls C of `adapt`.
      episodes: Number of episodes of each rollout.
      mode: Whether the most likely action is taken; a drawn one otherwise.

    Returns:
      `(meta, key, task) -> {"returns": [C + 1]}` for one `Demonstrated` task, of which the environment's own
      reward is measured and nothing else is seen; use `jax.vmap` for many.

    Raises:
      ValueError: If `calls` is below 0.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> model = metajax.rl.mlp_policy(env.actions, hidden=())
      >>> learner = metajax.maml(model, metajax.rl.imitation_loss, rule=optax.sgd(5.0), steps=3)
      >>> task = jnp.array([0.0, 1.0, 0.0])
      >>> best = lambda task, seen: jnp.full(seen.shape[0], jnp.argmax(task))
      >>> @jax.jit
      ... def returns(key):
      ...     shown = metajax.rl.demonstration_episode(env, best)(key, task)
      ...     meta = learner.init(key, shown.support.inputs)
      ...     return imitation_returns(learner, env)(meta, key, shown)["returns"]
      >>> returns(jax.random.key(0))[1].item()
      4.0
    """
    if calls < 0:
        raise ValueError(f"calls is {calls}; use 0 or more.")
    act = rollouts(learner, env, episodes=episodes, mode=mode, advantage=_nothing)

    def measure(meta: Meta, key: Key, task: Demonstrated) -> Metrics:
        start_key, act_key, adapt_key = jax.random.split(key, 3)
        fast = learner.start(meta, start_key, evidence.room(task, calls=max(calls, 1)))

        def returns(fast: Any, key: Key) -> Array:
            return mean_return(None, act(meta, fast, key, task.task))

        def call(fast: Any, keys: tuple[Key, Key]) -> tuple[Any, Array]:
            act_key, adapt_key = keys
            found = returns(fast, act_key)
            batch = evidence.to_adapt(meta, fast, adapt_key, task)
            return learner.adapt(meta, fast, jax.random.fold_in(adapt_key, 1), batch), found

        act_keys = jax.random.split(act_key, calls + 1)
        keys = (act_keys[:-1], jax.random.split(adapt_key, calls))
        fast, before = jax.lax.scan(call, fast, keys)
        return {"returns": jnp.append(before, returns(fast, act_keys[-1]))}

    return measure


def _nothing(lives: Trajectories) -> Estimates:
    """Estimates no advantages: demonstrations need none."""
    zero = jnp.zeros_like(lives.reward)
    return Estimates(zero, zero, zero)
