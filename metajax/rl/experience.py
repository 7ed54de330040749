"""Experience: evidence functions that let a learner act in an environment.

A rollout is a function `(meta, fast, key, task) -> Batch`, the interface of `metajax.TaskEvidence`. Episodes
are vectorized, steps are a scan, and no gradient flows into what was lived: how a policy is differentiated is
the loss's matter. Steps after an end have weight zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.objectives.evidence import TaskEvidence
from metajax.rl.distributions import clip_action, policy_of, value_of
from metajax.rl.returns import AdvantageFn, advantages, discounted_sums
from metajax.rl.types import Decisions, Env, Trajectories
from metajax.types import Array, Batch, Episode, Evidence, Fast, Key, Learner, Meta, Task, Tree

# Folded into keys; a small number would repeat a key of `split(key)`.
_LIFE = 0x4C495645


def lived(
    env: Env,
    act: Callable[[Tree], Any],
    key: Key,
    task: Task,
    *,
    episodes: int,
    mode: bool = False,
) -> Trajectories:
    """Runs episodes of a fixed policy.

    Args:
      env: Environment.
      act: Function from observations [N, ...] to a distribution [N], or an `ActorCritic`.
      key: Random key; consumed.
      task: Task of the environment.
      episodes: Number of episodes N.
      mode: Whether the most likely action is taken instead of a drawn one.

    Returns:
      Trajectories of N episodes of `env.horizon` steps. Nothing of them is differentiated.

    Raises:
      ValueError: If `episodes` or the horizon is below 1.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> uniform = lambda seen: metajax.rl.Categorical(jnp.zeros((seen.shape[0], 3)))
      >>> task = jnp.array([1.0, 1.0, 1.0])  # every arm pays
      >>> run = jax.jit(lambda key: lived(env, uniform, key, task, episodes=2))
      >>> run(jax.random.key(0)).reward.sum().item()
      8.0
    """
    for name, number in (("episodes", episodes), ("env.horizon", env.horizon)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")
    reset_key, step_key = jax.random.split(key)
    reset_keys = jax.random.split(reset_key, episodes)
    state, observation = jax.vmap(env.reset, (0, None))(reset_keys, task)

    # Stopped here and not only at the end: an environment behind a callback has no derivative to ask for.
    def answer(observation: Tree) -> Any:
        return jax.lax.stop_gradient(act(observation))

    task = jax.lax.stop_gradient(task)
    outputs = answer(observation)
    alive = jnp.ones(episodes, bool)

    def step(carry: Any, time_and_key: tuple[Array, Key]) -> tuple[Any, Any]:
        state, observation, outputs, alive = carry
        time, key = time_and_key
        act_key, env_key = jax.random.split(key)
        policy = policy_of(outputs)
        action = policy.mode() if mode else policy.sample(act_key)
        shown = clip_action(env.actions, action)
        keys = jax.random.split(env_key, episodes)
        after = jax.vmap(env.step, (0, None, 0, 0))(keys, task, state, shown)
        reward = jnp.where(alive, after.reward, 0)
        terminated = alive & after.terminated
        # An episode that is over keeps its last state.
        state, seen = where(alive, (after.state, after.observation), (state, observation))
        value = value_of(outputs, reward)
        ends = alive & (terminated | (time == env.horizon - 1))
        row = (observation, action, reward, alive, terminated, ends, policy, value)
        return (state, seen, answer(seen), alive & ~terminated), row

    times = jnp.arange(env.horizon), jax.random.split(step_key, env.horizon)
    (_, last, outputs, _), rows = jax.lax.scan(step, (state, observation, outputs, alive), times)
    rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rows)
    last_value = value_of(outputs, rows[2][:, 0])
    return jax.lax.stop_gradient(Trajectories(*rows, last_observation=last, last_value=last_value))


def rollouts(
    learner: Learner,
    env: Env,
    *,
    episodes: int,
    advantage: AdvantageFn | None = None,
    mode: bool = False,
) -> Evidence:
    """Makes the evidence function of a learner's policy: experience of episodes with their advantages.

    Args:
      learner: Learner whose outputs are distributions of actions, or `ActorCritic`.
      env: Environment.
      episodes: Number of episodes N.
      advantage: Estimator of advantages; None is `advantages()`.
      mode: Whether the most likely action is taken instead of a drawn one.

    Returns:
      `(meta, fast, key, task) -> Batch` of B = N H rows, episodes one after another: `inputs` are the
      observations, `targets` the `Decisions`, `weights` zero after an end. It goes into `TaskEvidence` and
      `live`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> model = metajax.rl.mlp_policy(env.actions, hidden=(8,))
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(model, loss, rule=optax.sgd(0.1))
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> evidence = rollouts(learner, env, episodes=5)
      >>> fast = jax.eval_shape(learner.start, meta, jax.random.key(3))
      >>> batch = jax.eval_shape(evidence, meta, fast, jax.random.key(4), task)
      >>> batch.targets.action.shape, batch.weights.shape
      ((20,), (20,))
    """
    estimate = advantages() if advantage is None else advantage

    def evidence(meta: Meta, fast: Fast, key: Key, task: Task) -> Batch:
        def act(observation: Tree) -> Any:
            return learner.predict(meta, fast, observation)

        return as_batch(lived(env, act, key, task, episodes=episodes, mode=mode), estimate)

    return evidence


def as_batch(trajectories: Trajectories, advantage: AdvantageFn) -> Batch:
    """Turns trajectories into the batch that losses and learners read.

    Args:
      trajectories: Trajectories of N episodes of H steps.
      advantage: Estimator of advantages.

    Returns:
      Batch of N H rows, with `Decisions` as targets. Whatever the trajectories hold after an end is left out.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> uniform = lambda seen: metajax.rl.Categorical(jnp.zeros((seen.shape[0], 3)))
      >>> def record(key):
      ...     lives = metajax.rl.lived(env, uniform, key, jnp.ones(3), episodes=2)
      ...     return as_batch(lives, metajax.rl.advantages())
      >>> jax.eval_shape(record, jax.random.key(0)).weights.shape
      (8,)
    """
    estimates, alive = advantage(trajectories), trajectories.alive
    # Steps after an end repeat the first step of all, which is real. Weights of zero would not do:
    # where an observation is not finite, a network's gradient is NaN, and zero times NaN is NaN.
    observation, action, behavior = jax.tree.map(
        lambda leaf: where(alive, leaf, jnp.broadcast_to(leaf[:, :1], leaf.shape)),
        (trajectories.observation, trajectories.action, trajectories.behavior),
    )
    decisions = Decisions(
        action=action,
        reward=jnp.where(alive, trajectories.reward, 0),
        ends=trajectories.ends & alive,
        behavior=behavior,
        advantage=estimates.advantage,
        returns=estimates.returns,
        value=estimates.value,
    )
    weights = alive.astype(trajectories.reward.dtype)
    rows = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]),
        (observation, decisions, weights),
    )
    return jax.lax.stop_gradient(Batch(*rows))


def on_policy(
    learner: Learner,
    env: Env,
    *,
    episodes: int,
    advantage: AdvantageFn | None = None,
) -> TaskEvidence:
    """Makes the evidence of a task in which a learner adapts to its own experience and is scored on more.

    With `metajax.query_objective(learner, loss, evidence=on_policy(...))`, an objective whose task is the
    environment's; with `metajax.multi_step_objective`, new experience for every call of `adapt`.

    Args:
      learner: Learner whose outputs are distributions of actions.
      env: Environment.
      episodes: Number of episodes N of each rollout.
      advantage: Estimator of advantages; None is `advantages()`.

    Returns:
      Evidence of a task of `env.sample`.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> evidence = on_policy(learner, env, episodes=5)
      >>> objective = metajax.query_objective(learner, loss, evidence=evidence)
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> jax.eval_shape(objective, meta, jax.random.key(3), task)[0].shape
      ()
    """
    evidence = rollouts(learner, env, episodes=episodes, advantage=advantage)
    return TaskEvidence(evidence, evidence)


def live(
    learner: Learner,
    env: Env,
    *,
    episodes: int,
    calls: int = 1,
    advantage: AdvantageFn | None = None,
) -> Callable[[Meta, Key, Task], Episode]:
    """Makes a function that lets a learner live in a task: act, adapt to what happened, act again.

    Args:
      learner: Learner whose outputs are distributions of actions.
      env: Environment.
      episodes: Number of episodes N before each call of `adapt`, and after the last.
      calls: Number of calls C of `adapt`.
      advantage: Estimator of advantages; None is `advantages()`.

    Returns:
      `(meta, key, task) -> Episode`: the support has the experience of each call [C, B, ...], gathered by the
      policy as adapted so far; the query has that after the last call, [B, ...]. `lifetime_objective` reads
      it, as often as an optimizer likes.

    Raises:
      ValueError: If `calls` is below 1.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> loss = metajax.rl.policy_gradient()
      >>> learner = metajax.maml(metajax.rl.mlp_policy(env.actions), loss, rule=optax.sgd(0.1))
      >>> task = env.sample(jax.random.key(0))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), jnp.zeros((1, 1)))
      >>> life = live(learner, env, episodes=5, calls=2)
      >>> life = jax.eval_shape(life, meta, jax.random.key(3), task)
      >>> life.support.weights.shape, life.query.weights.shape
      ((2, 20), (20,))
    """
    if calls < 1:
        raise ValueError(f"calls is {calls}; use 1 or more.")
    evidence = rollouts(learner, env, episodes=episodes, advantage=advantage)

    def life(meta: Meta, key: Key, task: Task) -> Episode:
        start_key, act_keys, adapt_keys = call_keys(key, calls)

        def gather(fast: Fast, key: Key) -> tuple[Batch, Batch]:
            batch = evidence(meta, fast, key, task)
            return batch, batch

        fast = learner.start(meta, start_key)
        fast, support = adapt_in_turn(learner, meta, fast, adapt_keys, act_keys[:-1], gather)
        query = evidence(meta, fast, act_keys[-1], task)
        return jax.lax.stop_gradient(Episode(support, query))

    return life


def adapt_in_turn(
    learner: Learner,
    meta: Meta,
    fast: Fast,
    keys: Key,
    given: Tree,
    gather: Callable[[Fast, Tree], tuple[Batch, Tree]],
) -> tuple[Fast, Tree]:
    """Adapts several times, each time to a batch that the state before it has gathered.

    Args:
      learner: Learner.
      meta: Meta-parameters.
      fast: Fast state to begin with.
      keys: Random keys [C] of the calls of `adapt`; consumed.
      given: Tree of leaves [C, ...] that each call gathers from.
      gather: Function `(fast, given) -> (batch, found)` of one call: the batch to adapt to, and what is to be
        returned of it.

    Returns:
      Fast state after the last call, and what was found, stacked [C, ...].

    Example:
      >>> model = metajax.Model(lambda key, x: jnp.array(0.0), lambda mean, x: mean + 0 * x)
      >>> loss = lambda outputs, batch: jnp.mean((outputs - batch.targets) ** 2) / 2
      >>> learner = metajax.maml(model, loss, rule=optax.sgd(0.5))
      >>> meta = learner.init(jax.random.key(0), jnp.zeros(1))
      >>> fast = learner.start(meta, jax.random.key(1))
      >>> def gather(fast, target):
      ...     x = jnp.zeros(1)
      ...     return metajax.Batch(x, target[None]), learner.predict(meta, fast, x)[0]
      >>> keys = jax.random.split(jax.random.key(2))
      >>> adapt_in_turn(learner, meta, fast, keys, jnp.array([4.0, 4.0]), gather)[1].tolist()
      [0.0, 2.0]
    """

    def call(fast: Fast, given_and_key: tuple[Tree, Key]) -> tuple[Fast, Tree]:
        given, key = given_and_key
        batch, found = gather(fast, given)
        return learner.adapt(meta, fast, key, batch), found

    return jax.lax.scan(call, fast, (given, keys))


def whole_lives(lives: Episode) -> Episode:
    """Makes the query of lives the whole of each, so that what was earned before adapting counts too.

    An action is credited with the rewards that follow it in its episode, and with all rewards after the next
    call of `adapt`, which it has helped to decide. From this the mean of the other tasks at the same step is
    subtracted: a baseline that depends on none of the task's own actions. With an inner loss of curvature
    "none" the expected gradient of `lifetime_objective(whole=True)`, times the number of rows, is that of
    minus the sum of all rewards; other curvatures would count twice what is learned from an action.

    Args:
      lives: Lives [T, ...] of `live`, with C calls of N episodes.

    Returns:
      Lives with a query [T, (C + 1) B, ...]: all rows in the order of the calls, with undiscounted credit as
      `returns`, and with credit less the baseline as `advantage`. The support stays: it was adapted to.

    Example:
      >>> ones = jnp.ones((2, 1, 3))  # two tasks, one call, an episode of three steps
      >>> ends = jnp.broadcast_to(jnp.array([False, False, True]), (2, 1, 3))
      >>> decisions = metajax.rl.Decisions(ones, ones, ends, ones, ones, ones, ones)
      >>> support = metajax.Batch(ones, decisions, ones)
      >>> query = jax.tree.map(lambda leaf: leaf[:, 0], support)
      >>> whole_lives(metajax.Episode(support, query)).query.targets.returns[0].tolist()
      [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    """

    def joined(before: Array, after: Array) -> Array:
        both = jnp.concatenate([before, after[:, None]], axis=1)
        return both.reshape(both.shape[0], -1, *both.shape[3:])

    rows: Batch = jax.tree.map(joined, lives.support, lives.query)
    tasks, calls, size = lives.support.targets.reward.shape
    reward = rows.targets.reward.reshape(tasks, calls + 1, size)
    earned = jnp.sum(reward, axis=2)
    later = jnp.flip(jnp.cumsum(jnp.flip(earned, 1), axis=1), 1) - earned
    # The sum within an episode begins anew behind each end.
    follows = 1.0 - rows.targets.ends
    credit = discounted_sums(rows.targets.reward, follows) + jnp.repeat(later, size, axis=1)
    weights = steps_taken(rows)
    others = jnp.sum(weights, axis=0) - weights
    baseline = (jnp.sum(weights * credit, axis=0) - weights * credit) / jnp.maximum(others, 1)
    targets = rows.targets._replace(
        advantage=weights * (credit - baseline), returns=credit, value=baseline
    )
    return lives._replace(query=rows._replace(targets=targets))


def steps_taken(batch: Batch) -> Array:
    """Returns the weights [...] of a batch of experience: ones if it has none."""
    return jnp.ones_like(batch.targets.advantage) if batch.weights is None else batch.weights


def call_keys(key: Key, calls: int) -> tuple[Key, Key, Key]:
    """Derives the keys of a life.

    Args:
      key: Random key of the life; consumed.
      calls: Number of calls C of `adapt`.

    Returns:
      Key of `start`, keys [C + 1] of the rollouts, and keys [C] of `adapt`.
    """
    start_key, adapt_key = jax.random.split(key)
    act_keys = jax.random.split(jax.random.fold_in(key, _LIFE), calls + 1)
    return start_key, act_keys, jax.random.split(adapt_key, calls)


def where(condition: Array, yes: Tree, no: Tree) -> Tree:
    """Chooses between the leaves of two trees by a condition on their leading axes."""

    def choose(a: Array, b: Array) -> Array:
        extra = [1] * (jnp.ndim(a) - jnp.ndim(condition))
        return jnp.where(condition.reshape(*condition.shape, *extra), a, b)

    return jax.tree.map(choose, yes, no)
