"""Scales that all tasks of a meta-step share: of advantages, and of the values that a network predicts."""

from typing import Any

import jax.numpy as jnp

from metajax.rl.experience import steps_taken
from metajax.rl.returns import generalized_advantages
from metajax.types import Array, Batch, Episode


def normalize_over_tasks(lives: Any) -> Any:
    """Shifts and scales the advantages of a step to mean 0 and deviation 1 over all tasks together.

    Args:
      lives: Trials [T, B, ...], or lives of `live`. Of these only the query is scaled: the advantages of the
        support were adapted to, and replaying must adapt to the same.

    Returns:
      The same with other advantages.

    Example:
      >>> ones = jnp.ones((2, 3))
      >>> advantage = jnp.arange(6.0).reshape(2, 3)
      >>> decisions = metajax.rl.Decisions(ones, ones, ones > 0, None, advantage, ones, ones)
      >>> lives = normalize_over_tasks(metajax.Batch(ones, decisions, ones))
      >>> bool(jnp.abs(lives.targets.advantage.mean()) < 1e-6)
      True
    """

    def scaled(batch: Batch) -> Batch:
        advantage, weights = batch.targets.advantage, steps_taken(batch)
        total = jnp.sum(weights)
        centered = (advantage - jnp.sum(advantage * weights) / total) * weights
        deviation = jnp.sqrt(jnp.sum(centered**2) / total)
        found = centered / jnp.maximum(deviation, 1e-6)
        return batch._replace(targets=batch.targets._replace(advantage=found))

    return (
        lives._replace(query=scaled(lives.query)) if isinstance(lives, Episode) else scaled(lives)
    )


def standardize_values(trials: Batch, *, discount: float = 0.99, trace: float = 1.0) -> Batch:
    """Reads the values that a learner predicts as standardized returns, and estimates advantages with them.

    The value of a step is m + d v. Here v is the prediction, m the mean return of the other tasks at the
    same step of a trial, and d the deviation of all returns from such means. The learner is trained to
    predict (return - m) / d, numbers of the size of one: relative to the policy's loss, a value's error
    weighs the same whatever the size and the number of the rewards, and predictions of zero are a good
    baseline already. Mean and deviation are measured on the trials themselves; no state is kept.

    Args:
      trials: Trials [T, B, ...] of `trials`, whose `value` is what the learner predicted.
      discount: Discount per step, over the whole trial.
      trace: Lambda of generalized advantage estimation.

    Returns:
      The same with other advantages, with the standardized `returns` that a value loss compares predictions
      with, and with the baseline m + d v as `value`.

    Example:
      >>> ones, last = jnp.ones((2, 3)), jnp.zeros((2, 3), bool)
      >>> reward = jnp.array([[0.0, 0.0, 1.0], [0.0, 0.0, 5.0]])
      >>> decisions = metajax.rl.Decisions(ones, reward, last, None, 0 * ones, 0 * ones, 0 * ones)
      >>> found = standardize_values(metajax.Batch(ones, decisions, ones), discount=1.0).targets
      >>> found.advantage[:, 2].tolist(), found.returns[:, 2].tolist()
      ([-4.0, 4.0], [-1.0, 1.0])

    Reference: generalized advantages, Schulman et al., 2016 (https://arxiv.org/abs/1506.02438), eq. 16;
    learning standardized values, van Hasselt et al., 2016 (https://arxiv.org/abs/1602.07714), section 2.1.
    """
    targets, weights = trials.targets, steps_taken(trials)
    alive, nothing = weights > 0, jnp.zeros_like(targets.reward)

    def estimate(value: Array, trace: float) -> Array:
        return generalized_advantages(
            targets.reward,
            value,
            nothing[:, 0],
            alive,
            jnp.zeros_like(alive),  # an end of an episode is no end of the trial
            discount=discount,
            trace=trace,
            truncation="end",
        )

    returns = estimate(nothing, 1.0)
    # Without the task's own return: a baseline must not depend on the actions that it is subtracted from.
    others = jnp.sum(weights, axis=0) - weights
    mean = (jnp.sum(weights * returns, axis=0) - weights * returns) / jnp.maximum(others, 1)
    total = jnp.maximum(jnp.sum(weights), 1)
    deviation = jnp.sqrt(jnp.sum(weights * (returns - mean) ** 2) / total)
    # Equal returns leave nothing but rounding to predict.
    size = jnp.sqrt(jnp.sum(weights * returns**2) / total)
    deviation = jnp.maximum(deviation, jnp.maximum(1e-4 * size, 1e-8))
    value = jnp.where(alive, mean + deviation * targets.value, 0)
    advantage = estimate(value, trace)
    # All rewards that follow, whatever the trace: a short one would leave predictions of zero as they are.
    wanted = jnp.where(alive, (returns - mean) / deviation, 0)
    return trials._replace(
        targets=targets._replace(advantage=advantage, returns=wanted, value=value)
    )
