"""Discriminators: classifiers that tell an expert's steps from a policy's, and the rewards they imply."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.losses import weighted_mean
from metajax.rl.distributions import action_features
from metajax.rl.imitation import actions_of
from metajax.rl.normalizers import fit_normalizer
from metajax.rl.policies import apply_mlp, flattened, init_mlp
from metajax.rl.returns import discounted_sums
from metajax.rl.types import Actions, Continuous, Trajectories
from metajax.types import Array, Batch, Key, Metrics, Model, Params

SIGNS = ("positive", "negative", "difference")


class Discriminator(NamedTuple):
    """A classifier of rows, one for the expert's and zero for the policy's, and the reward that it implies.

    Rows are batches [B] of observations and actions, or `Decisions`; `expert` is the demonstrations, from
    which the inputs are normalized.

    Attributes:
      init: Function `(key, batch) -> params`.
      logits: Function `(params, batch, expert) -> [B]`.
      loss: Function `(params, key, own, expert) -> (loss, metrics)`.
      reward: Function `(params, batch, expert) -> [B]`; zero for rows of weight zero, which with absorbing
        states have the absorbing state's reward instead.
      absorbing: Whether rows of weight zero count as the absorbing state.
    """

    init: Callable[[Key, Batch], Params]
    logits: Callable[[Params, Batch, Batch], Array]
    loss: Callable[[Params, Key, Batch, Batch], tuple[Array, Metrics]]
    reward: Callable[[Params, Batch, Batch], Array]
    absorbing: bool


def learned_reward(logits: Array, *, sign: str = "positive") -> Array:
    """Computes the reward of a discriminator D = sigmoid(logits), the probability of the expert.

    The sign is a bias: a positive reward pays for staying alive, a negative one for ending early. In a task
    that ends on failure even a constant positive reward teaches the policy not to fail. Choose "positive"
    where episodes end on failure, "negative" where they end on success, or absorbing states, which need no
    choice; or make the horizon fixed.

    Args:
      logits: Logits [...].
      sign: "positive" for -log(1 - D), "negative" for log D, "difference" for log D - log(1 - D).

    Returns:
      Rewards [...].

    Raises:
      ValueError: If `sign` has no such name.

    Example:
      >>> logits = jnp.zeros(())
      >>> [round(learned_reward(logits, sign=s).item(), 3) for s in ("positive", "negative", "difference")]
      [0.693, -0.693, 0.0]

    Reference: Ho and Ermon, 2016 (https://arxiv.org/abs/1606.03476), algorithm 1; `favor_zero_expert_reward`
    in their code is "negative"; "difference", Fu et al., 2018 (https://arxiv.org/abs/1710.11248), section 5.
    """
    if sign not in SIGNS:
        raise ValueError(f"sign is {sign!r}; use one of {', '.join(SIGNS)}.")
    if sign == "positive":
        return jax.nn.softplus(logits)
    return -jax.nn.softplus(-logits) if sign == "negative" else logits


def discriminator(
    actions: Actions,
    *,
    hidden: Sequence[int] = (100, 100),
    model: Model | None = None,
    sign: str = "positive",
    absorbing: bool = False,
    entropy: float = 0.001,
    gradient_penalty: float = 0.0,
) -> Discriminator:
    """Makes a discriminator of observations and actions.

    Both classes count 1/2, whatever their numbers of rows. Observations, and actions that are vectors, are
    normalized by the demonstrations; choices are one-hot. Actions are clipped to their bounds first, as the
    environment sees them: the expert's never leave them.

    Args:
      actions: Kind of the actions.
      hidden: Widths of the hidden layers, of tanh; the last layer starts at zero, where D is 1/2.
      model: Network from features [B, F] to logits [B] instead.
      sign: Reward, as in `learned_reward`.
      absorbing: Whether the steps from an end to the horizon count as visits of an absorbing state, with an
        indicator among the features, in demonstrations and own experience. Then what an end is worth is
        learned, and no sign favors long or short episodes. Where neither the expert nor the policy ends, no
        row shows the state, and its reward is an extrapolation.
      entropy: Factor of the entropy of the class that the discriminator predicts, which is subtracted from
        its loss: it keeps logits from growing without bound.
      gradient_penalty: Factor of the mean of (|dlogit / dfeatures| - 1)^2 at random points between a row of
        the expert and one of the policy; 10 is usual.

    Returns:
      A `Discriminator`.

    Raises:
      ValueError: If `sign` has no such name.

    Example:
      >>> judge = discriminator(metajax.rl.Discrete(2), hidden=(8,))
      >>> batch = metajax.Batch(jnp.zeros((5, 3)), jnp.zeros(5, int))
      >>> params = jax.jit(judge.init)(jax.random.key(0), batch)
      >>> jax.jit(judge.logits)(params, batch, batch).tolist()
      [0.0, 0.0, 0.0, 0.0, 0.0]

    Reference: Ho and Ermon, 2016 (https://arxiv.org/abs/1606.03476), eq. 14, and their code; absorbing states
    and the gradient penalty, Kostrikov et al., 2019 (https://arxiv.org/abs/1809.02925), section 4.
    """
    learned_reward(jnp.zeros(()), sign=sign)  # Refuses an unknown name at once.

    def raw(batch: Batch) -> Array:
        observed = flattened(batch.inputs)
        action = action_features(actions, actions_of(batch), observed.dtype)
        return jnp.concatenate([observed, action], axis=-1)

    def features(batch: Batch, expert: Batch) -> Array:
        found, shown = raw(batch), raw(expert)
        normalize = fit_normalizer(shown, expert.weights)
        normalized = normalize(found)
        if not isinstance(actions, Continuous):
            normalized = normalized.at[:, -actions.n :].set(found[:, -actions.n :])
        weights = jnp.ones(len(found)) if batch.weights is None else batch.weights
        gone = weights[:, None] == 0
        # A choice, not a product: whatever a row after an end holds, even NaN, does not count.
        kept = jnp.where(gone, 0, normalized)
        return jnp.concatenate([kept, gone.astype(kept.dtype)], -1) if absorbing else kept

    def counts(batch: Batch) -> Array | None:
        return None if absorbing else batch.weights

    def mlp_init(key: Key, inputs: Array) -> Params:
        return init_mlp(key, (inputs.shape[-1], *hidden, 1), last_scale=0.0)

    network = Model(mlp_init, lambda p, x: apply_mlp(p, x)[:, 0]) if model is None else model

    def init(key: Key, batch: Batch) -> Params:
        return network.init(key, features(batch, batch))

    def logits(params: Params, batch: Batch, expert: Batch) -> Array:
        return network.apply(params, features(batch, expert))

    def penalty(params: Params, key: Key, own: Array, shown: Array, weights: list) -> Array:
        own_key, expert_key, mix_key = jax.random.split(key, 3)
        number = min(len(own), len(shown))

        def draw(key: Key, rows: Array, weights: Array | None) -> Array:
            odds = jnp.zeros(len(rows)) if weights is None else jnp.log(weights)
            return rows[jax.random.categorical(key, odds, shape=(number,))]

        a, b = draw(own_key, own, weights[0]), draw(expert_key, shown, weights[1])
        mix = jax.random.uniform(mix_key, (number, 1), own.dtype)
        slopes = jax.grad(lambda x: jnp.sum(network.apply(params, x)))(a + mix * (b - a))
        # The derivative of the root is infinite at zero, where an untrained network's slopes are.
        return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, axis=-1) + 1e-12) - 1) ** 2)

    def loss(params: Params, key: Key, own: Batch, expert: Batch) -> tuple[Array, Metrics]:
        rows, weights = (
            [features(own, expert), features(expert, expert)],
            [*map(counts, (own, expert))],
        )
        ours, theirs = (network.apply(params, x) for x in rows)

        def mean(own_values: Array, expert_values: Array) -> Array:
            each = weighted_mean(own_values, weights[0]), weighted_mean(expert_values, weights[1])
            return (each[0] + each[1]) / 2

        total = mean(jax.nn.softplus(ours), jax.nn.softplus(-theirs))
        metrics = {
            "discriminator_loss": total,
            "accuracy": mean(1.0 * (ours <= 0), 1.0 * (theirs > 0)),
        }
        if entropy:
            total = total - entropy * mean(_entropy(ours), _entropy(theirs))
        if gradient_penalty:
            total = total + gradient_penalty * penalty(params, key, rows[0], rows[1], weights)
        return total, metrics

    def reward(params: Params, batch: Batch, expert: Batch) -> Array:
        found = learned_reward(logits(params, batch, expert), sign=sign)
        if absorbing or batch.weights is None:
            return found
        return jnp.where(batch.weights > 0, found, 0)

    return Discriminator(init, logits, loss, reward, absorbing)


def visits(lives: Trajectories) -> Batch:
    """Turns trajectories into the rows that a discriminator reads.

    Args:
      lives: Trajectories of N episodes of H steps.

    Returns:
      Batch of N H observations and actions; weights are zero after an end.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> uniform = lambda seen: metajax.rl.Categorical(jnp.zeros((seen.shape[0], 3)))
      >>> run = lambda key: metajax.rl.lived(env, uniform, key, jnp.ones(3), episodes=2)
      >>> jax.eval_shape(lambda key: visits(run(key)), jax.random.key(0)).targets.shape
      (8,)
    """
    rows = (lives.observation, lives.action, lives.alive.astype(lives.reward.dtype))
    return Batch(*jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows))


def rewarded(
    judge: Discriminator,
    params: Params,
    lives: Trajectories,
    expert: Batch,
    *,
    discount: float,
    forever: bool = False,
) -> Trajectories:
    """Gives trajectories the rewards of a discriminator.

    With absorbing states, the last step of an episode that ended by itself also gets the discounted rewards
    of the absorbing state, until the horizon or forever: its value is known, and need not be predicted.

    Args:
      judge: Discriminator.
      params: Parameters of the discriminator.
      lives: Trajectories of N episodes of H steps.
      expert: Demonstrations, by which inputs are normalized.
      discount: Discount per step.
      forever: Whether the absorbing state lasts beyond the horizon; needs a discount below 1.

    Returns:
      The trajectories with other rewards; zero after an end.

    Example:
      >>> env = metajax.rl.envs.bandit(arms=3, pulls=4)
      >>> uniform = lambda seen: metajax.rl.Categorical(jnp.zeros((seen.shape[0], 3)))
      >>> judge = metajax.rl.discriminator(env.actions, hidden=())
      >>> @jax.jit
      ... def judged(key):
      ...     lives = metajax.rl.lived(env, uniform, key, jnp.ones(3), episodes=2)
      ...     rows = metajax.rl.visits(lives)
      ...     return rewarded(judge, judge.init(key, rows), lives, rows, discount=0.99)
      >>> round(judged(jax.random.key(0)).reward[0, 0].item(), 3)  # log 2
      0.693

    Reference: Kostrikov et al., 2019 (https://arxiv.org/abs/1809.02925), section 4.
    """
    rows = visits(lives)
    reward = judge.reward(params, rows, expert).reshape(lives.reward.shape)
    if not judge.absorbing:
        return lives._replace(reward=reward)
    last = jnp.zeros((), reward.dtype)
    if forever:
        first = jax.tree.map(lambda leaf: leaf[:1], rows)
        gone = first._replace(weights=jnp.zeros_like(first.weights))
        last = judge.reward(params, gone, expert)[0] / (1 - discount)
    after = discounted_sums(reward, discount, last)
    after = jnp.concatenate([after[:, 1:], jnp.broadcast_to(last, after[:, :1].shape)], axis=1)
    reward = jnp.where(lives.alive, reward, 0)
    return lives._replace(reward=reward + jnp.where(lives.terminated, discount * after, 0))


def _entropy(logits: Array) -> Array:
    """Computes the entropy of Bernoulli distributions in nats."""
    return (1 - jax.nn.sigmoid(logits)) * logits + jax.nn.softplus(-logits)
