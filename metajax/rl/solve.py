"""Exact yardsticks: optimal values and policies, values of policies, and oracles.

Letters: `S` states, `A` choices, `H` steps of an episode.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.rl.distributions import Normal
from metajax.rl.envs.arm import ArmTask
from metajax.types import Array


class Plan(NamedTuple):
    """Optimal behavior in a Markov decision process.

    Attributes:
      value: Values [S] of the states; [H, S], by the step, if the horizon is finite.
      choice: Optimal choices, int [S] or [H, S].
    """

    value: Array
    choice: Array


def plan(transitions: Array, rewards: Array, *, horizon: int, discount: float = 1.0) -> Plan:
    """Computes the optimal policy of a finite horizon, by dynamic programming backwards in time.

    Args:
      transitions: Probabilities [S, A, S] of the next state.
      rewards: Mean rewards [S, A].
      horizon: Number of steps H.
      discount: Discount per step, a float in [0, 1].

    Returns:
      Values and choices [H, S]; `value[0]` is the optimal expected return of an episode.

    Raises:
      ValueError: If `horizon` is below 1.

    Example:
      >>> stay = jnp.broadcast_to(jnp.eye(2)[:, None], (2, 3, 2))  # three choices, and none moves
      >>> rewards = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
      >>> metajax.rl.solve.plan(stay, rewards, horizon=4).value[0].tolist()
      [4.0, 8.0]
    """
    _check(transitions, rewards)
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")

    def back(value: Array, _: None) -> tuple[Array, Plan]:
        ahead = rewards + discount * transitions @ value
        best = jnp.max(ahead, axis=1)
        return best, Plan(best, jnp.argmax(ahead, axis=1))

    _, found = jax.lax.scan(back, jnp.zeros_like(rewards[:, 0]), length=horizon, reverse=True)
    return found


def value_iteration(transitions: Array, rewards: Array, *, discount: float) -> Plan:
    """Computes the optimal policy of an infinite horizon by value iteration, and its exact value.

    The number of sweeps is fixed, the first by which discount^sweeps is below the precision of the numbers;
    the value is then that of the greedy policy, by a linear solve.

    Args:
      transitions: Probabilities [S, A, S] of the next state.
      rewards: Mean rewards [S, A].
      discount: Discount per step, a float in [0, 1).

    Returns:
      Values and choices [S].

    Raises:
      ValueError: If `discount` is not in [0, 1).

    Example:
      >>> stay = jnp.broadcast_to(jnp.eye(2)[:, None], (2, 3, 2))  # three choices, and none moves
      >>> rewards = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
      >>> found = metajax.rl.solve.value_iteration(stay, rewards, discount=0.5)
      >>> found.value.tolist(), found.choice.tolist()
      ([2.0, 4.0], [1, 2])
    """
    _check(transitions, rewards)
    _check_discount(discount)
    least = float(jnp.finfo(rewards.dtype).eps) * (1 - discount)
    sweeps = 1 if discount == 0 else math.ceil(math.log(least) / math.log(discount))

    def sweep(_: int, value: Array) -> Array:
        return jnp.max(rewards + discount * transitions @ value, axis=1)

    value = jax.lax.fori_loop(0, sweeps, sweep, jnp.zeros_like(rewards[:, 0]))
    choice = jnp.argmax(rewards + discount * transitions @ value, axis=1)
    greedy = jax.nn.one_hot(choice, rewards.shape[1], dtype=rewards.dtype)
    return Plan(policy_value(transitions, rewards, greedy, discount=discount), choice)


def policy_value(transitions: Array, rewards: Array, policy: Array, *, discount: float) -> Array:
    """Computes the value of a policy over an infinite horizon: the solution of (I - discount P) v = r.

    Args:
      transitions: Probabilities [S, A, S] of the next state.
      rewards: Mean rewards [S, A].
      policy: Probabilities [S, A] of the choices.
      discount: Discount per step, a float in [0, 1).

    Returns:
      Values [S].

    Raises:
      ValueError: If `discount` is not in [0, 1).

    Example:
      >>> stay = jnp.ones((1, 2, 1))
      >>> rewards, policy = jnp.array([[1.0, 3.0]]), jnp.array([[0.5, 0.5]])
      >>> metajax.rl.solve.policy_value(stay, rewards, policy, discount=0.75).tolist()
      [8.0]

    Reference: Puterman, 1994, Markov Decision Processes, theorem 6.1.1.
    """
    _check(transitions, rewards)
    _check_discount(discount)
    chex.assert_equal_shape([rewards, policy])
    moves = jnp.einsum("sa,sat->st", policy, transitions)
    gained = jnp.sum(policy * rewards, axis=1)
    return jnp.linalg.solve(jnp.eye(len(gained), dtype=gained.dtype) - discount * moves, gained)


def episode_value(
    transitions: Array, rewards: Array, policy: Array, *, horizon: int, discount: float = 1.0
) -> Array:
    """Computes the value of a policy over a finite horizon, by dynamic programming.

    Args:
      transitions: Probabilities [S, A, S] of the next state.
      rewards: Mean rewards [S, A].
      policy: Probabilities of the choices, [S, A], or [H, S, A] of a policy that depends on the step.
      horizon: Number of steps H.
      discount: Discount per step, a float in [0, 1].

    Returns:
      Values [H, S], by the step: `[0]` are the expected returns of whole episodes.

    Raises:
      ValueError: If `horizon` is below 1.

    Example:
      >>> stay = jnp.ones((1, 2, 1))
      >>> rewards, policy = jnp.array([[1.0, 3.0]]), jnp.array([[0.5, 0.5]])
      >>> metajax.rl.solve.episode_value(stay, rewards, policy, horizon=3).tolist()
      [[6.0], [4.0], [2.0]]
    """
    _check(transitions, rewards)
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; use 1 or more.")
    policies = jnp.broadcast_to(policy, (horizon, *rewards.shape))

    def back(value: Array, policy: Array) -> tuple[Array, Array]:
        found = jnp.sum(policy * (rewards + discount * transitions @ value), axis=1)
        return found, found

    return jax.lax.scan(back, jnp.zeros_like(rewards[:, 0]), policies, reverse=True)[1]


def bandit_value(arms: int, pulls: int) -> float:
    """Computes the largest expected reward of a Bernoulli bandit with uniform probabilities.

    That is the Bayes-optimal total over all pulls, which no policy exceeds on average: by dynamic programming
    over the posteriors, the successes and failures of each arm, of which the order does not count. Five arms
    and ten pulls have 3,519 of them; their number grows as pulls^(2 arms).

    Args:
      arms: Number of arms.
      pulls: Number of pulls.

    Returns:
      Expected total reward.

    Raises:
      ValueError: If `arms` or `pulls` is below 1.

    Example:
      >>> round(metajax.rl.solve.bandit_value(arms=2, pulls=10), 4)
      6.0218

    Reference: Gittins et al., 2011, Multi-armed Bandit Allocation Indices, section 1.
    """
    for name, number in (("arms", arms), ("pulls", pulls)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")

    @functools.cache
    def best(counts: tuple[tuple[int, int], ...], left: int) -> float:
        if left == 0:
            return 0.0
        # Arms with equal posteriors are worth the same: one of them is enough.
        return max(pull(counts, arm, left) for arm in {a: n for n, a in enumerate(counts)}.values())

    def pull(counts: tuple[tuple[int, int], ...], arm: int, left: int) -> float:
        wins, losses = counts[arm]
        chance = (wins + 1) / (wins + losses + 2)
        rest = counts[:arm] + counts[arm + 1 :]
        after_win = best(tuple(sorted((*rest, (wins + 1, losses)))), left - 1)
        after_loss = best(tuple(sorted((*rest, (wins, losses + 1)))), left - 1)
        return chance * (1 + after_win) + (1 - chance) * after_loss

    return best(((0, 0),) * arms, pulls)


def straight_to(goal: Array, *, step_size: float = 0.1) -> Callable[[Array], Normal]:
    """Makes the oracle of `navigation`: the policy that knows the goal, goes there and stays.

    No policy is nearer to the goal after any number of steps, so its return is the largest there is: on the
    dense reward -0.49 on average. (The oracle that MAML's authors report, -2.29, is a policy that they
    trained with the goal in its observation, noise included.)

    Args:
      goal: Goal [2].
      step_size: Length of the largest step along an axis, of the environment.

    Returns:
      Function from positions [N, 2] to almost deterministic distributions of actions [N], for `lived`.

    Raises:
      ValueError: If `step_size` is not above 0.

    Example:
      >>> act = metajax.rl.solve.straight_to(jnp.array([0.3, 0.04]))
      >>> act(jnp.zeros((1, 2))).mode().round(3).tolist()
      [[1.0, 0.4000000059604645]]
    """
    if not step_size > 0:
        raise ValueError(f"step_size is {step_size}; use a number above 0.")

    def act(place: Array) -> Normal:
        mean = jnp.clip((goal - place) / step_size, -1, 1)
        return Normal(mean, jnp.full_like(mean, math.log(1e-6)))

    return act


def reach(
    task: ArmTask, *, stiffness: float = 2.0, friction: float = 0.3
) -> Callable[[Array], Normal]:
    """Makes an expert of `reacher` that knows its arm and target: a controller towards the right posture.

    The posture is in closed form, with the elbow to the side that turns the joints less from the straight
    arm. The torques are proportional to the way to it, minus friction: good, but not optimal. With the
    defaults of both, the mean return is -15, against -52 of random actions.

    Args:
      task: Arm and target.
      stiffness: Torque per radian, in units of the largest torque.
      friction: Torque per radian per second, in the same units.

    Returns:
      Function from observations [N, 6] to almost deterministic distributions of actions [N], for `lived`.

    Example:
      >>> task = metajax.rl.envs.ArmTask(lengths=jnp.array([0.5, 0.5]), target=jnp.array([0.0, 1.0]))
      >>> still = jnp.array([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
      >>> metajax.rl.solve.reach(task)(still).mode().shape
      (1, 2)

    Reference: Spong et al., 2006, Robot Modeling and Control, section 1.3.2, inverse kinematics.
    """
    one, two = task.lengths
    away = jnp.sum(task.target**2)
    bend = jnp.arccos(jnp.clip((away - one**2 - two**2) / (2 * one * two), -1, 1))
    turns = jnp.stack([bend, -bend])
    inside = jnp.arctan2(two * jnp.sin(turns), one + two * jnp.cos(turns))
    first = _wrapped(jnp.arctan2(task.target[1], task.target[0]) - inside)
    postures = jnp.stack([first, turns], axis=1)
    posture = postures[jnp.argmin(jnp.sum(jnp.abs(postures), axis=1))]

    def act(seen: Array) -> Normal:
        joints = jnp.arctan2(seen[:, 2:4], seen[:, :2])
        torque = stiffness * _wrapped(posture - joints) - friction * seen[:, 4:]
        mean = jnp.clip(torque, -1, 1)
        return Normal(mean, jnp.full_like(mean, math.log(1e-6)))

    return act


def _wrapped(angle: Array) -> Array:
    """Returns angles in [-pi, pi)."""
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _check(transitions: Array, rewards: Array) -> None:
    """Asserts that tables belong together."""
    chex.assert_rank([transitions, rewards], [3, 2])
    states, choices = rewards.shape
    chex.assert_shape(transitions, (states, choices, states))


def _check_discount(discount: float) -> None:
    """Raises for a discount with which an infinite horizon has no value."""
    if not 0 <= discount < 1:
        raise ValueError(f"discount is {discount}; an infinite horizon needs one in [0, 1).")
