"""Losses of policies: functions of a learner's outputs and a batch of experience, averaged over steps.

All surrogates have the policy gradient as their first derivative. They differ in the second, which MAML's
meta-gradient contains: `policy_gradient` has the table.
"""

import chex
import jax
import jax.numpy as jnp

from metajax.losses import weighted_mean
from metajax.rl.distributions import ActorCritic, policy_of
from metajax.rl.types import Decisions
from metajax.types import Array, Batch, LossFn, Tree

CURVATURES = ("none", "lvc", "dice", "loaded")


def policy_gradient(*, curvature: str = "lvc", discount: float = 1.0) -> LossFn:
    """Makes the surrogate loss of a policy gradient, minus the return up to a constant.

    | curvature | term of a step | expected second derivative |
    |---|---|---|
    | none | log pi A | lacks how actions change what is gathered; zero for logits with a perfect baseline |
    | lvc | pi / sg(pi) A | exact for one step, lacks cross terms between steps, least variance |
    | dice | product of pi / sg(pi) up to the step, times r | exact, with the variance of whole episodes |
    | loaded | the same, with advantages | exact, with a baseline that acts on both derivatives |

    Here sg stops the gradient. `lvc` divides by the policy that acted, which is the same at first and stays
    right when the meta-parameters have moved since, as in ProMP.

    Args:
      curvature: "none", "lvc" (the low-variance curvature of ProMP), "dice" or "loaded" (Loaded DiCE).
      discount: Discount per step of the objective, which `dice` and `loaded` apply from the start of each
        episode; they are exact for advantages that are not normalized, with trace 1. 1 leaves it out, as the
        others always do.

    Returns:
      Loss `(outputs, batch) -> scalar`, the mean over the steps taken.

    Raises:
      ValueError: If `curvature` has no such name.

    Example:
      >>> outputs = metajax.rl.Categorical(jnp.zeros((2, 3)))
      >>> ones = jnp.ones(2)
      >>> decisions = metajax.rl.Decisions(
      ...     jnp.array([0, 1]), ones, jnp.array([False, True]), outputs, ones, ones, 0 * ones)
      >>> batch = metajax.Batch(jnp.zeros((2, 1)), decisions, ones)
      >>> policy_gradient(curvature="lvc")(outputs, batch).item()
      -1.0

    Reference: Rothfuss et al., 2019 (https://arxiv.org/abs/1810.06784), eq. 4 and section 5; DiCE, Foerster
    et al., 2018 (https://arxiv.org/abs/1802.05098), eq. 7; Loaded DiCE, Farquhar et al., 2019
    (https://arxiv.org/abs/1909.10549), eq. 8.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature is {curvature!r}; use one of {', '.join(CURVATURES)}.")

    def loss(outputs: Tree, batch: Batch) -> Array:
        decisions: Decisions = jax.lax.stop_gradient(batch.targets)
        weights = jax.lax.stop_gradient(batch.weights)
        log_prob = policy_of(outputs).log_prob(decisions.action)
        if curvature == "none":
            return -weighted_mean(log_prob * decisions.advantage, weights)
        if curvature == "lvc":
            ratio = jnp.exp(log_prob - decisions.behavior.log_prob(decisions.action))
            return -weighted_mean(ratio * decisions.advantage, weights)
        log_prob = log_prob if weights is None else jnp.where(weights > 0, log_prob, 0)
        dependency = _within_episodes(log_prob, decisions.ends)
        # Steps after an end count none: what follows them is the first step of another episode.
        counts = jnp.ones_like(log_prob) if weights is None else (weights > 0) * 1.0
        number = _within_episodes(counts, decisions.ends) - 1
        scale = jnp.power(jnp.asarray(discount, log_prob.dtype), jnp.maximum(number, 0))
        if curvature == "dice":
            # The baseline of first order: its expectation is zero, and it leaves the second alone.
            term = magic_box(dependency) * decisions.reward
            term = term + (1 - magic_box(log_prob)) * decisions.value
        else:
            before = magic_box(dependency - log_prob)
            term = (magic_box(dependency) - before) * decisions.advantage
        return -weighted_mean(scale * term, weights)

    return loss


def clipped(*, epsilon: float = 0.3, value_cost: float = 0.0, entropy_bonus: float = 0.0) -> LossFn:
    """Makes the clipped surrogate loss of proximal policy optimization (PPO).

    Args:
      epsilon: Largest change of a probability ratio that improves the loss, a float above 0.
      value_cost: Factor of half the squared error of the predicted value; needs outputs with a value.
      entropy_bonus: Factor of the policy's entropy, which is subtracted.

    Returns:
      Loss `(outputs, batch) -> scalar`, the mean over the steps taken.

    Raises:
      ValueError: If `epsilon` is not above 0.

    Example:
      >>> outputs = metajax.rl.Categorical(jnp.zeros((2, 3)))
      >>> ones = jnp.ones(2)
      >>> decisions = metajax.rl.Decisions(
      ...     jnp.array([0, 1]), ones, jnp.array([False, True]), outputs, ones, ones, 0 * ones)
      >>> clipped(epsilon=0.2)(outputs, metajax.Batch(None, decisions)).item()
      -1.0

    Reference: Schulman et al., 2017 (https://arxiv.org/abs/1707.06347), eq. 7 and 9.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; use a number above 0, such as 0.3.")

    def loss(outputs: Tree, batch: Batch) -> Array:
        decisions: Decisions = jax.lax.stop_gradient(batch.targets)
        policy, advantage = policy_of(outputs), decisions.advantage
        log_ratio = policy.log_prob(decisions.action) - decisions.behavior.log_prob(
            decisions.action
        )
        ratio = jnp.exp(log_ratio)
        within = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
        term = -jnp.minimum(ratio * advantage, within * advantage)
        if value_cost:
            term = term + value_cost * _value_error(outputs, decisions)
        if entropy_bonus:
            term = term - entropy_bonus * policy.entropy()
        return weighted_mean(term, batch.weights)

    return loss


def value_loss(outputs: Tree, batch: Batch) -> Array:
    """Computes half the mean squared error of predicted values.

    Args:
      outputs: `ActorCritic` of the batch.
      batch: Experience [B].

    Returns:
      A scalar.

    Raises:
      ValueError: If the outputs have no value.

    Example:
      >>> outputs = metajax.rl.ActorCritic(metajax.rl.Categorical(jnp.zeros((2, 3))), jnp.ones(2))
      >>> ones = jnp.ones(2)
      >>> decisions = metajax.rl.Decisions(
      ...     jnp.array([0, 1]), ones, jnp.array([False, True]), outputs.policy, ones, 3 * ones, ones)
      >>> value_loss(outputs, metajax.Batch(None, decisions)).item()
      2.0
    """
    decisions: Decisions = jax.lax.stop_gradient(batch.targets)
    return weighted_mean(_value_error(outputs, decisions), batch.weights)


def imitation_loss(outputs: Tree, batch: Batch) -> Array:
    """Computes the negative log-likelihood of demonstrated actions: behavior cloning.

    Args:
      outputs: Distribution [B] of actions, or `ActorCritic`.
      batch: Demonstrations: observations as inputs and actions as targets, int [B] or float [B, A]; or
        experience with `Decisions`, of which the actions count.

    Returns:
      The mean over the steps of the batch.

    Example:
      >>> outputs = metajax.rl.Categorical(jnp.zeros((2, 3)))
      >>> round(imitation_loss(outputs, metajax.Batch(None, jnp.array([0, 2]))).item(), 4)  # log 3
      1.0986
    """
    targets = batch.targets
    action = targets.action if isinstance(targets, Decisions) else targets
    return -weighted_mean(policy_of(outputs).log_prob(action), batch.weights)


def policy_kl(outputs: Tree, batch: Batch) -> Array:
    """Computes the mean divergence of a policy from the one that acted, KL(acted || now).

    Args:
      outputs: Distribution [B] of actions, or `ActorCritic`.
      batch: Experience [B].

    Returns:
      A scalar in nats.

    Example:
      >>> outputs = metajax.rl.Categorical(jnp.zeros((2, 3)))
      >>> ones = jnp.ones(2)
      >>> decisions = metajax.rl.Decisions(
      ...     jnp.array([0, 1]), ones, jnp.array([False, True]), outputs, ones, ones, 0 * ones)
      >>> policy_kl(outputs, metajax.Batch(None, decisions)).item()
      0.0
    """
    behavior = jax.lax.stop_gradient(batch.targets.behavior)
    return weighted_mean(behavior.kl(policy_of(outputs)), batch.weights)


def mean_entropy(outputs: Tree, batch: Batch) -> Array:
    """Computes the mean entropy of a policy over the steps of a batch, in nats.

    Args:
      outputs: Distribution [B] of actions, or `ActorCritic`.
      batch: Experience [B].

    Returns:
      A scalar.

    Example:
      >>> outputs = metajax.rl.Categorical(jnp.zeros((2, 3)))
      >>> round(mean_entropy(outputs, metajax.Batch(None, None)).item(), 4)  # log 3
      1.0986
    """
    return weighted_mean(policy_of(outputs).entropy(), batch.weights)


def mean_return(outputs: Tree, batch: Batch) -> Array:
    """Computes the mean undiscounted return of the episodes of a batch.

    Args:
      outputs: Outputs of the learner; not used.
      batch: Experience [B] of whole episodes.

    Returns:
      Sum of the rewards over the number of episodes, a scalar.

    Example:
      >>> ones = jnp.ones(4)
      >>> ends = jnp.array([False, True, False, True])
      >>> decisions = metajax.rl.Decisions(ones, ones, ends, None, ones, ones, ones)
      >>> mean_return(None, metajax.Batch(None, decisions)).item()
      2.0
    """
    del outputs
    return jnp.sum(batch.targets.reward) / jnp.sum(batch.targets.ends)


def magic_box(log_prob: Array) -> Array:
    """Returns one, with the derivatives of exp: the operator of DiCE.

    Args:
      log_prob: Sums [...] of log-probabilities of all actions that a term depends on.

    Returns:
      Ones [...], whose derivatives of any order are the likelihood ratios' own.

    Example:
      >>> magic_box(jnp.array(-2.0)).item(), jax.grad(magic_box)(-2.0).item()
      (1.0, 1.0)

    Reference: Foerster et al., 2018 (https://arxiv.org/abs/1802.05098), eq. 7.
    """
    return jnp.exp(log_prob - jax.lax.stop_gradient(log_prob))


def _value_error(outputs: Tree, decisions: Decisions) -> Array:
    """Returns half the squared errors [B] of predicted values."""
    if not isinstance(outputs, ActorCritic):
        raise ValueError(
            "The learner predicts no value; give its model one, as mlp_policy(critic=True) does."
        )
    return (outputs.value - decisions.returns) ** 2 / 2


def _within_episodes(values: Array, ends: Array) -> Array:
    """Sums values [B] from the start of each row's episode up to the row, itself included."""
    chex.assert_equal_shape([values, ends])
    starts = jnp.pad(ends[:-1], (1, 0), constant_values=True)

    # A segmented sum: what lies before a start is forgotten, not subtracted, which would lose digits.
    def combine(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(b[1], b[0], a[0] + b[0]), a[1] | b[1]

    return jax.lax.associative_scan(combine, (values, starts))[0]
