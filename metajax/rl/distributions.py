"""Distributions of actions as trees of arrays: categorical and diagonal normal.

Each is a NamedTuple of its parameters with any leading axes, so that `vmap`, `scan` and `tree.map` work as on
any other tree; methods reduce the last axis.
"""

from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from metajax.rl.types import Actions, Continuous, Discrete
from metajax.types import Array, Key


class Distribution(Protocol):
    """A distribution of actions with leading axes [...]."""

    def sample(self, key: Key) -> Array:
        """Draws an action for each leading index; the key is consumed."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Computes the log-probability or log-density [...] of actions."""
        ...

    def mode(self) -> Array:
        """Returns the most likely actions."""
        ...

    def entropy(self) -> Array:
        """Computes the entropy [...] in nats."""
        ...

    def kl(self, other: Any) -> Array:
        """Computes the divergence KL(self || other) [...] in nats."""
        ...


class Categorical(NamedTuple):
    """Distribution of a choice among A.

    Attributes:
      logits: Unnormalized log-probabilities [..., A].

    Example:
      >>> coin = metajax.rl.Categorical(jnp.zeros(2))
      >>> round(jnp.exp(coin.log_prob(jnp.array(1))).item(), 3), round(coin.entropy().item(), 3)
      (0.5, 0.693)
    """

    logits: Array

    def sample(self, key: Key) -> Array:
        """Draws choices, int [...]."""
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: Array) -> Array:
        """Computes the log-probabilities [...] of choices [...]."""
        # By comparison, not by index: gathers are slow to differentiate and to vectorize.
        chex.assert_shape(action, self.logits.shape[:-1])
        chosen = jnp.asarray(action)[..., None] == jnp.arange(self.logits.shape[-1])
        # By a choice, not a product: another choice may be impossible, with the logarithm -inf.
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(self.logits), 0), axis=-1)

    def mode(self) -> Array:
        """Returns the most likely choices, int [...]."""
        return jnp.argmax(self.logits, axis=-1)

    def entropy(self) -> Array:
        """Computes the entropy [...]."""
        logs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(logs) * logs, axis=-1)

    def kl(self, other: "Categorical") -> Array:
        """Computes KL(self || other) [...]."""
        logs, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(logs) * (logs - others), axis=-1)


class Normal(NamedTuple):
    """Normal distribution of a vector of A independent numbers.

    Attributes:
      mean: Means [..., A].
      log_std: Logarithms of the standard deviations [..., A].

    Example:
      >>> policy = metajax.rl.Normal(jnp.zeros(2), jnp.zeros(2))
      >>> round(policy.log_prob(jnp.zeros(2)).item(), 3)  # -log(2 pi)
      -1.838
    """

    mean: Array
    log_std: Array

    def sample(self, key: Key) -> Array:
        """Draws vectors [..., A]."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        """Computes the log-densities [...] of vectors [..., A]: the sum over components."""
        chex.assert_shape(action, self.mean.shape)
        standard = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(standard**2 / 2 + self.log_std + jnp.log(2 * jnp.pi) / 2, axis=-1)

    def mode(self) -> Array:
        """Returns the means [..., A]."""
        return self.mean

    def entropy(self) -> Array:
        """Computes the entropy [...]."""
        return jnp.sum(self.log_std + jnp.log(2 * jnp.pi * jnp.e) / 2, axis=-1)

    def kl(self, other: "Normal") -> Array:
        """Computes KL(self || other) [...]."""
        ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(other.log_std - self.log_std + (ratio + shift - 1) / 2, axis=-1)


class ActorCritic(NamedTuple):
    """Outputs of a learner that also predicts the value of an observation.

    Attributes:
      policy: Distribution [...] of the next action.
      value: Values [...]: predictions of the discounted rewards to come.
    """

    policy: Any
    value: Array


def policy_of(outputs: Any) -> Any:
    """Returns the distribution of actions in a learner's outputs, with or without a value.

    Args:
      outputs: `ActorCritic`, or the distribution itself.

    Returns:
      A `Categorical` or `Normal`.

    Example:
      >>> policy_of(metajax.rl.ActorCritic(metajax.rl.Categorical(jnp.zeros(3)), jnp.zeros(()))).logits.shape
      (3,)
    """
    return outputs.policy if isinstance(outputs, ActorCritic) else outputs


def value_of(outputs: Any, like: Array) -> Array:
    """Returns the values in a learner's outputs; zeros where it predicts none.

    Args:
      outputs: `ActorCritic`, or a distribution.
      like: Array [...] with the shape and type of the zeros.

    Returns:
      Values [...].

    Example:
      >>> value_of(metajax.rl.Categorical(jnp.zeros((4, 3))), jnp.zeros(4)).shape
      (4,)
    """
    return outputs.value if isinstance(outputs, ActorCritic) else jnp.zeros_like(like)


def clip_action(actions: Actions, action: Array) -> Array:
    """Clips an action to its bounds, as the environment sees it.

    Args:
      actions: Kind of the actions.
      action: Actions as drawn.

    Returns:
      The actions within the bounds; choices stay as they are.

    Example:
      >>> clip_action(metajax.rl.Continuous(2, -1.0, 1.0), jnp.array([0.5, 3.0])).tolist()
      [0.5, 1.0]
    """
    if isinstance(actions, Discrete):
        return action
    return jnp.clip(action, actions.low, actions.high)


def action_features(actions: Actions, action: Array, dtype: Any = jnp.float32) -> Array:
    """Represents actions as vectors for a network: choices one-hot, vectors clipped to their bounds.

    Args:
      actions: Kind of the actions.
      action: Actions, int [...] or float [..., A].
      dtype: Type of the features.

    Returns:
      Features [..., A].

    Example:
      >>> action_features(metajax.rl.Discrete(3), jnp.array([2, 0])).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if isinstance(actions, Discrete):
        return jax.nn.one_hot(action, actions.n, dtype=dtype)
    return clip_action(actions, action).astype(dtype)


def action_size(actions: Actions) -> int:
    """Returns the number A of features of an action: choices, or components of a vector."""
    return actions.size if isinstance(actions, Continuous) else actions.n
