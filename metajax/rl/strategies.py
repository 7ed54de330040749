"""Classic strategies of exploration, simulated: bandits by index and by sampling, and PSRL.

A strategy of a Bernoulli bandit is a function `(key, wins [K], losses [K], pull) -> arm` of what happened so
far in one instance and of the number of pulls so far. All strategies start with the prior Beta(1, 1) of each
arm, which is the distribution of tasks. Ties are broken at random: of ten pulls of five arms the greedy
strategy earns 6.63, and 6.57 if it takes the first of equal arms.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.rl.solve import plan
from metajax.rl.types import Env
from metajax.types import Array, Key

Strategy = Callable[[Key, Array, Array, Array], Array]


class Estimate(NamedTuple):
    """Mean over instances with a 95% interval.

    Attributes:
      mean: Mean, a scalar.
      interval: Half of the width of the interval, 1.96 standard errors.
    """

    mean: Array
    interval: Array


def play(strategy: Strategy, key: Key, *, arms: int, pulls: int, instances: int) -> Estimate:
    """Simulates a strategy on bandits whose arms have uniform probabilities.

    Args:
      strategy: Strategy.
      key: Random key; consumed.
      arms: Number of arms K.
      pulls: Number of pulls of each instance.
      instances: Number of bandits.

    Returns:
      Mean total reward of an instance.

    Raises:
      ValueError: If `arms` or `pulls` is below 1 or `instances` below 2.

    Example:
      >>> from metajax.rl import strategies
      >>> found = strategies.play(strategies.greedy(), jax.random.key(0), arms=1, pulls=4, instances=900)
      >>> bool(abs(found.mean - 2) < 3 * found.interval)  # one arm pays half of the time
      True
    """
    for name, number, least in (
        ("arms", arms, 1),
        ("pulls", pulls, 1),
        ("instances", instances, 2),
    ):
        if number < least:
            raise ValueError(f"{name} is {number}; use {least} or more.")

    @jax.jit
    def totals(key: Key) -> Array:
        return jax.vmap(one)(jax.random.split(key, instances))

    def one(key: Key) -> Array:
        task_key, pull_key = jax.random.split(key)
        chances = jax.random.uniform(task_key, (arms,))

        def pull(counts: tuple[Array, Array], now: tuple[Array, Key]) -> tuple[tuple, Array]:
            time, key = now
            act_key, pay_key = jax.random.split(key)
            chosen = jax.nn.one_hot(strategy(act_key, *counts, time), arms)
            pays = jax.random.bernoulli(pay_key, jnp.sum(chosen * chances)).astype(chosen.dtype)
            wins, losses = counts
            return (wins + pays * chosen, losses + (1 - pays) * chosen), pays

        counts = jnp.zeros(arms), jnp.zeros(arms)
        times = jnp.arange(pulls), jax.random.split(pull_key, pulls)
        return jnp.sum(jax.lax.scan(pull, counts, times)[1])

    return estimate(totals(key))


def estimate(numbers: Array) -> Estimate:
    """Computes the mean of numbers [n], of at least two, and its 95% interval.

    Args:
      numbers: Numbers [n], independent of each other.

    Returns:
      Mean and half width.

    Example:
      >>> found = metajax.rl.strategies.estimate(jnp.array([1.0, 3.0]))
      >>> found.mean.item(), round(found.interval.item(), 2)  # 1.96 standard errors of 1
      (2.0, 1.96)
    """
    error = jnp.std(numbers, ddof=1) / math.sqrt(len(numbers))
    return Estimate(jnp.mean(numbers), 1.96 * error)


def posterior_mean(wins: Array, losses: Array) -> Array:
    """Computes the posterior means (wins + 1) / (wins + losses + 2) of the probabilities.

    Args:
      wins: Numbers of successes [K].
      losses: Numbers of failures [K].

    Returns:
      Means [K].

    Example:
      >>> metajax.rl.strategies.posterior_mean(jnp.array([2.0]), jnp.array([0.0])).tolist()
      [0.75]
    """
    return (wins + 1) / (wins + losses + 2)


def uniform() -> Strategy:
    """Makes the strategy that pulls an arm at random.

    Returns:
      Strategy.

    Example:
      >>> arm = metajax.rl.strategies.uniform()(jax.random.key(0), jnp.zeros(3), jnp.zeros(3), 0)
      >>> int(arm) in range(3)
      True
    """
    return lambda key, wins, losses, pull: jax.random.randint(key, (), 0, len(wins))


def greedy() -> Strategy:
    """Makes the strategy that pulls the arm with the largest posterior mean.

    Returns:
      Strategy.

    Example:
      >>> pull = metajax.rl.strategies.greedy()
      >>> int(pull(jax.random.key(0), jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0]), 1))
      1
    """
    return lambda key, wins, losses, pull: _best(key, posterior_mean(wins, losses))


def epsilon_greedy(epsilon: float) -> Strategy:
    """Makes the strategy that is greedy, but pulls an arm at random with probability epsilon.

    Args:
      epsilon: Probability of a random arm, in [0, 1].

    Returns:
      Strategy.

    Raises:
      ValueError: If `epsilon` is not in [0, 1].

    Example:
      >>> pull = metajax.rl.strategies.epsilon_greedy(0.0)
      >>> int(pull(jax.random.key(0), jnp.array([0.0, 1.0]), jnp.array([0.0, 0.0]), 1))
      1
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; use a number in [0, 1].")

    def strategy(key: Key, wins: Array, losses: Array, pull: Array) -> Array:
        coin_key, arm_key, tie_key = jax.random.split(key, 3)
        explores = jax.random.bernoulli(coin_key, epsilon)
        by_chance = jax.random.randint(arm_key, (), 0, len(wins))
        return jnp.where(explores, by_chance, _best(tie_key, posterior_mean(wins, losses)))

    return strategy


def thompson(*, optimistic: bool = False) -> Strategy:
    """Makes Thompson sampling: draws probabilities from the posterior and pulls the best arm of the draw.

    Args:
      optimistic: Whether a draw below the posterior mean is replaced by the mean.

    Returns:
      Strategy.

    Example:
      >>> pull = metajax.rl.strategies.thompson()
      >>> int(pull(jax.random.key(0), jnp.array([0.0, 900.0]), jnp.array([900.0, 0.0]), 1))
      1

    Reference: Thompson, 1933, Biometrika 25; May et al., 2012 (https://jmlr.org/papers/v13/may12a.html),
      section 3.3, the optimistic one.
    """

    def strategy(key: Key, wins: Array, losses: Array, pull: Array) -> Array:
        draw_key, tie_key = jax.random.split(key)
        drawn = jax.random.beta(draw_key, wins + 1, losses + 1)
        if optimistic:
            drawn = jnp.maximum(drawn, posterior_mean(wins, losses))
        return _best(tie_key, drawn)

    return strategy


def ucb1(c: float = 1.0) -> Strategy:
    """Makes UCB1: pulls the arm with the largest upper bound, mean + c sqrt(2 log t / n).

    The statistics of each arm start with one success and one failure, as in RL2's comparison, so that n is
    the number of pulls of an arm plus 2; t is the number of all pulls plus 1.

    Args:
      c: Factor of the width of the bound; RL2's comparison tunes it.

    Returns:
      Strategy.

    Raises:
      ValueError: If `c` is below 0.

    Example:
      >>> pull = metajax.rl.strategies.ucb1(1.0)
      >>> int(pull(jax.random.key(0), jnp.array([5.0, 0.0]), jnp.array([5.0, 0.0]), 10))  # the unknown arm
      1

    Reference: Auer et al., 2002, Machine Learning 47; Duan et al., 2016 (https://arxiv.org/abs/1611.02779),
      section 3.1.
    """
    if not c >= 0:
        raise ValueError(f"c is {c}; use 0 or more.")

    def strategy(key: Key, wins: Array, losses: Array, pull: Array) -> Array:
        width = jnp.sqrt(2 * jnp.log(pull + 1.0) / (wins + losses + 2))
        return _best(key, posterior_mean(wins, losses) + c * width)

    return strategy


def gittins(discount: float = 0.99) -> Strategy:
    """Makes the strategy of Gittins' index, in Whittle's approximation.

    Args:
      discount: Discount per pull for which the index is optimal, in (0, 1); about 1 - 1 / pulls for a finite
        number of pulls.

    Returns:
      Strategy.

    Raises:
      ValueError: If `discount` is not in (0, 1).

    Example:
      >>> pull = metajax.rl.strategies.gittins(0.99)
      >>> int(pull(jax.random.key(0), jnp.array([5.0, 0.0]), jnp.array([4.0, 0.0]), 9))  # the unknown arm
      1
    """
    if not 0 < discount < 1:
        raise ValueError(f"discount is {discount}; use a number in (0, 1), such as 0.99.")
    return lambda key, wins, losses, pull: _best(key, gittins_index(wins, losses, discount))


def gittins_index(wins: Array, losses: Array, discount: float) -> Array:
    """Approximates the Gittins indices of Bernoulli arms with a uniform prior.

    With mean m and n = wins + losses + 2, the index is about
    m + m (1 - m) / (n sqrt((2 a + 1 / n) m (1 - m)) + m - 1/2), where a = -log(discount).

    Args:
      wins: Numbers of successes [K].
      losses: Numbers of failures [K].
      discount: Discount per pull, in (0, 1); the nearer to 1, the better the approximation.

    Returns:
      Indices [K].

    Example:
      >>> nothing = jnp.zeros(())
      >>> index = metajax.rl.strategies.gittins_index(nothing, nothing, 0.99)
      >>> round(index.item(), 2)  # exact: 0.87
      0.85

    Reference: Whittle, 1982, Optimization over Time, volume 1; one of the approximations that the comparison
      in Duan et al., 2016 (https://arxiv.org/abs/1611.02779), section 3.1, chooses from.
    """
    number = wins + losses + 2
    mean = posterior_mean(wins, losses)
    spread = mean * (1 - mean)
    root = jnp.sqrt((1 / number - 2 * math.log(discount)) * spread)
    return mean + spread / (number * root + mean - 0.5)


def psrl(env: Env, key: Key, *, episodes: int, instances: int, prior_mean: float = 0.0) -> Estimate:
    """Simulates posterior sampling (PSRL) on random tabular MDPs.

    At the start of each episode it draws an MDP from the posterior (Dirichlet transitions with a flat prior,
    normal mean rewards with the prior N(prior_mean, 1) and unit noise) and follows its optimal policy.

    Args:
      env: Environment of `metajax.rl.envs.tabular_mdp`.
      key: Random key; consumed.
      episodes: Number of episodes of an instance.
      instances: Number of MDPs.
      prior_mean: Prior mean of the mean rewards. The tasks' is 1; with 0, RL2's published numbers come out
        (138.1 in ten episodes), which are better than with 1 (133.6), where less is tried twice.

    Returns:
      Mean total reward of an instance over all episodes.

    Raises:
      ValueError: If `episodes` is below 1 or `instances` below 2.

    Example:
      >>> env = metajax.rl.envs.tabular_mdp(states=3, choices=2, horizon=4)
      >>> run = lambda key: metajax.rl.strategies.psrl(env, key, episodes=2, instances=8)
      >>> jax.eval_shape(run, jax.random.key(0)).mean.shape
      ()

    Reference: Osband et al., 2013 (https://arxiv.org/abs/1306.0940), algorithm 1.
    """
    for name, number, least in (("episodes", episodes, 1), ("instances", instances, 2)):
        if number < least:
            raise ValueError(f"{name} is {number}; use {least} or more.")

    @jax.jit
    def totals(key: Key) -> Array:
        return jax.vmap(one)(jax.random.split(key, instances))

    def one(key: Key) -> Array:
        task_key, life_key = jax.random.split(key)
        task = env.sample(task_key)
        posterior = _Posterior(
            jnp.ones_like(task.transitions),
            jnp.full_like(task.rewards, prior_mean),
            jnp.ones_like(task.rewards),
        )

        def episode(posterior: _Posterior, key: Key) -> tuple[_Posterior, Array]:
            draw_key, reset_key, step_key = jax.random.split(key, 3)
            choices = plan(*_draw(draw_key, posterior), horizon=env.horizon).choice
            state, _ = env.reset(reset_key, task)

            def step(carry: tuple[_Posterior, Array], now: tuple) -> tuple[tuple, Array]:
                posterior, state = carry
                key, choices = now
                action = choices[state]
                after = env.step(key, task, state, action)
                seen = _read(posterior, state, action, after.reward, after.state)
                return (seen, after.state), after.reward

            times = jax.random.split(step_key, env.horizon), choices
            (posterior, _), rewards = jax.lax.scan(step, (posterior, state), times)
            return posterior, jnp.sum(rewards)

        return jnp.sum(jax.lax.scan(episode, posterior, jax.random.split(life_key, episodes))[1])

    return estimate(totals(key))


def _best(key: Key, values: Array) -> Array:
    """Returns the place of the largest of values [K], one of them at random where several are equal."""
    return jnp.argmax(
        jnp.where(values == jnp.max(values), jax.random.uniform(key, values.shape), -1)
    )


class _Posterior(NamedTuple):
    """Posterior of a tabular MDP: `moves` [S, A, S] are Dirichlet parameters; mean rewards [S, A] are normal
    with mean `total / number` and variance `1 / number`, where the prior is one observation of 1."""

    moves: Array
    total: Array
    number: Array


def _draw(key: Key, posterior: _Posterior) -> tuple[Array, Array]:
    """Draws transitions and mean rewards from a posterior."""
    move_key, reward_key = jax.random.split(key)
    noise = jax.random.normal(reward_key, posterior.total.shape, posterior.total.dtype)
    rewards = posterior.total / posterior.number + noise / jnp.sqrt(posterior.number)
    return jax.random.dirichlet(move_key, posterior.moves), rewards


def _read(
    posterior: _Posterior, state: Array, action: Array, reward: Array, after: Array
) -> _Posterior:
    """Adds a transition to a posterior."""
    return _Posterior(
        posterior.moves.at[state, action, after].add(1),
        posterior.total.at[state, action].add(reward),
        posterior.number.at[state, action].add(1),
    )
