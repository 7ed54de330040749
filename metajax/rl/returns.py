"""Returns and advantages of trajectories, and baselines for them."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.rl.baselines import linear_baseline
from metajax.rl.types import Trajectories
from metajax.types import Array


class Estimates(NamedTuple):
    """Estimates of how good actions were.

    Attributes:
      advantage: Advantages [N, H]; zero after an end.
      returns: Targets [N, H] of a value function; zero after an end.
      value: Baseline [N, H] that was subtracted; zero after an end.
    """

    advantage: Array
    returns: Array
    value: Array


AdvantageFn = Callable[[Trajectories], Estimates]


def discounted_sums(values: Array, discount: float, last: Array | float = 0.0) -> Array:
    """Sums what follows, discounted per step: s_t = v_t + discount s_(t+1).

    Args:
      values: Numbers [..., H].
      discount: Discount per step, a float in [0, 1]; or an array [..., H] of one discount for each step.
      last: Numbers [...] that follow the last step.

    Returns:
      Sums [..., H].

    Example:
      >>> discounted_sums(jnp.array([1.0, 2.0, 4.0]), 0.5).tolist()
      [3.0, 4.0, 4.0]
    """
    values = jnp.asarray(values)
    last = jnp.broadcast_to(jnp.asarray(last, values.dtype), values.shape[:-1])
    discounts = jnp.broadcast_to(jnp.asarray(discount, values.dtype), values.shape)

    def back(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        value, discount = now
        total = value + discount * after
        return total, total

    steps = (jnp.moveaxis(values, -1, 0), jnp.moveaxis(discounts, -1, 0))
    _, sums = jax.lax.scan(back, last, steps, reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def generalized_advantages(
    reward: Array,
    value: Array,
    last_value: Array,
    alive: Array,
    terminated: Array,
    *,
    discount: float,
    trace: float = 1.0,
    truncation: str = "bootstrap",
) -> Array:
    """Estimates advantages from values: generalized advantage estimation (GAE).

    The advantage is the sum over l of (discount trace)^l delta_(t+l), up to the end of the episode, with
    delta_t = r_t + discount V(s_(t+1)) - V(s_t). After a step that terminated its episode V(s_(t+1)) is
    zero. After the last step of an episode that the time limit cut it is the value of the last observation.

    Args:
      reward: Rewards [N, H].
      value: Values [N, H] of the observations before each action.
      last_value: Values [N] of the observations after each episode's last step.
      alive: Whether a step was taken, bool [N, H].
      terminated: Whether a step ended its episode by itself, bool [N, H].
      discount: Discount per step, a float in [0, 1].
      trace: Lambda of the estimator, a float in [0, 1]: 1 is the return minus the value, 0 one step.
      truncation: "bootstrap" adds the value of the last observation where the time limit cut an episode;
        "end" counts the time limit as an end, as the published results of MAML do.

    Returns:
      Advantages [N, H]; zero after an end.

    Raises:
      ValueError: If `truncation` is neither "bootstrap" nor "end".

    Example:
      >>> ones, false = jnp.ones((1, 3)), jnp.zeros((1, 3), bool)
      >>> generalized_advantages(ones, ones, jnp.ones(1), ~false, false, discount=1.0).tolist()
      [[3.0, 2.0, 1.0]]

    Reference: Schulman et al., 2016 (https://arxiv.org/abs/1506.02438), eq. 11 and 16.
    """
    if truncation not in ("bootstrap", "end"):
        raise ValueError(f"truncation is {truncation!r}; use 'bootstrap' or 'end'.")
    chex.assert_equal_shape([reward, value, alive, terminated])
    following = last_value if truncation == "bootstrap" else jnp.zeros_like(last_value)

    def back(after: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple, Array]:
        advantage, following = after
        reward, value, alive, terminated = now
        delta = reward + discount * jnp.where(terminated, 0, following) - value
        found = delta + discount * trace * jnp.where(terminated, 0, advantage)
        # Whatever a dead step holds, even NaN, does not count: `where`, not a product with zero. It hands
        # on what comes after it, so that it may also stand between two episodes of one trial.
        kept = jnp.where(alive, found, advantage), jnp.where(alive, value, following)
        return kept, jnp.where(alive, found, 0)

    steps = jax.tree.map(jnp.transpose, (reward, value, alive, terminated))
    _, found = jax.lax.scan(back, (jnp.zeros_like(following), following), steps, reverse=True)
    return jnp.transpose(found)


def advantages(
    *,
    discount: float = 0.99,
    trace: float = 1.0,
    baseline: str | float = "linear",
    normalize: bool = True,
    truncation: str = "end",
) -> AdvantageFn:
    """Makes the function that estimates the advantages of a rollout.

    Args:
      discount: Discount per step, a float in [0, 1].
      trace: Lambda of generalized advantage estimation, in [0, 1].
      baseline: "linear" fits `linear_baseline` to the returns of the rollout itself, which makes it depend on
        the actions a little (of order 1/N), as in the published results; "value" uses the values that the
        learner predicts; "none" is zero; a number is the same for all returns.
      normalize: Whether advantages are shifted and scaled to mean 0 and deviation 1 over the steps taken. A
        deviation below 1e-4 of the returns' size counts as rounding, and stays below 1.
      truncation: Treatment of a time limit, as in `generalized_advantages`. With the linear baseline, which
        knows the time, "end".

    Returns:
      A function from `Trajectories` to `Estimates`, for `rollouts`.

    Raises:
      ValueError: If `discount` or `trace` is not in [0, 1], or `baseline` or `truncation` has no such name.

    Example:
      >>> estimate = metajax.rl.advantages(discount=0.99, baseline="none", normalize=False)
      >>> callable(estimate)
      True
    """
    for name, number in (("discount", discount), ("trace", trace)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; use 0 to 1, such as 0.99.")
    if isinstance(baseline, str) and baseline not in ("linear", "value", "none"):
        raise ValueError(f"baseline is {baseline!r}; use 'linear', 'value', 'none' or a number.")
    if truncation not in ("bootstrap", "end"):
        raise ValueError(f"truncation is {truncation!r}; use 'bootstrap' or 'end'.")
    if baseline == "linear" and truncation == "bootstrap":
        raise ValueError(
            "The linear baseline counts the steps of a limited time, so that truncation is 'end'."
        )

    def estimate(lived: Trajectories) -> Estimates:
        alive = lived.alive
        value, last_value = jnp.zeros_like(lived.reward), jnp.zeros_like(lived.last_value)
        if baseline == "value":
            value, last_value = lived.value, lived.last_value
        elif baseline == "linear":
            # Returns are advantages over nothing: dead steps between episodes discount nothing either.
            nothing = (value, last_value, alive, lived.terminated)
            returns = generalized_advantages(
                lived.reward, *nothing, discount=discount, truncation="end"
            )
            value = linear_baseline(lived.observation, returns, alive)
        elif baseline != "none":
            value = jnp.full_like(value, baseline)
        found = generalized_advantages(
            lived.reward,
            value,
            last_value,
            alive,
            lived.terminated,
            discount=discount,
            trace=trace,
            truncation=truncation,
        )
        value = jnp.where(alive, value, 0)
        returns = found + value
        if normalize:
            # Where a baseline fits all returns, as with few episodes, the rest is rounding: keep it small.
            mean_square = jnp.sum(jnp.where(alive, returns, 0) ** 2) / jnp.maximum(
                jnp.sum(alive), 1
            )
            found = normalized(found, alive, least=1e-4 * jnp.sqrt(mean_square))
        return Estimates(found, returns, value)

    return estimate


def normalized(values: Array, alive: Array, *, least: Array | float = 0.0) -> Array:
    """Shifts and scales values to mean 0 and standard deviation 1 over the steps taken.

    Args:
      values: Numbers [N, H].
      alive: Steps that count, bool [N, H].
      least: Smallest deviation to divide by, a scalar.

    Returns:
      Numbers [N, H]; zero where a step does not count.

    Example:
      >>> normalized(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]])).tolist()
      [[-1.0, 1.0, 0.0]]
    """
    count = jnp.maximum(jnp.sum(alive), 1)
    mean = jnp.sum(jnp.where(alive, values, 0)) / count
    centered = jnp.where(alive, values - mean, 0)
    deviation = jnp.sqrt(jnp.sum(centered**2) / count)
    # Not below the rounding of the mean: equal values stay near zero.
    rounding = 64 * jnp.finfo(centered.dtype).eps * jnp.abs(mean)
    return centered / jnp.maximum(deviation, jnp.maximum(jnp.maximum(rounding, least), 1e-8))
