"""What the surrogates' derivatives are in expectation, by enumerating every trajectory of a small MDP."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import rl
from metajax.types import Batch

STATES, CHOICES, DISCOUNT = 2, 2, 0.9


class Enumerated:
    """Every trajectory of a random MDP, with its probability as a function of the policy's logits.

    Attributes:
      horizon: Number of steps.
      states: States [M, H] of the M trajectories.
      actions: Actions [M, H].
      rewards: Rewards [M, H].
    """

    def __init__(self, horizon: int):
        draw = np.random.default_rng(0)
        self.horizon = horizon
        self.begin = draw.dirichlet(np.ones(STATES))
        self.moves = draw.dirichlet(np.ones(STATES), size=(STATES, CHOICES))
        self.table = draw.normal(size=(STATES, CHOICES))
        self.logits = jnp.asarray(draw.normal(size=(STATES, CHOICES)))
        every = itertools.product(
            itertools.product(range(STATES), repeat=horizon),
            itertools.product(range(CHOICES), repeat=horizon),
        )
        self.states, self.actions = (np.array(part) for part in zip(*every, strict=True))
        self.rewards = self.table[self.states, self.actions]

    def probabilities(self, logits):
        """Computes the probabilities [M] of the trajectories."""
        policy = jax.nn.softmax(logits)[self.states, self.actions]
        before, after = self.states[:, :-1], self.states[:, 1:]
        moves = self.moves[before, self.actions[:, :-1], after]
        return self.begin[self.states[:, 0]] * policy.prod(axis=1) * moves.prod(axis=1)

    def value(self, logits):
        """Computes the expected discounted return from the first state."""
        discounts = DISCOUNT ** np.arange(self.horizon)
        return jnp.sum(self.probabilities(logits) * (self.rewards @ discounts))

    def state_values(self, logits):
        """Computes the exact values [H, STATES] of the states at each time."""
        policy, found = jax.nn.softmax(logits), [jnp.zeros(STATES)]
        for _ in range(self.horizon):
            ahead = self.table + DISCOUNT * self.moves @ found[0]
            found.insert(0, jnp.sum(policy * ahead, axis=1))
        return jnp.stack(found[:-1])

    def surrogate(self, curvature, *, baseline):
        """Makes the function of logits whose derivatives are those of the surrogate in expectation."""
        at = self.logits
        weights = self.probabilities(at)
        value = self.state_values(at)[np.arange(self.horizon), self.states] * baseline
        returns = rl.discounted_sums(jnp.asarray(self.rewards), DISCOUNT)
        # `none` and `lvc` leave the discount from the start to the advantage.
        start = 1 if curvature in ("dice", "loaded") else DISCOUNT ** np.arange(self.horizon)
        loss = rl.policy_gradient(curvature=curvature, discount=DISCOUNT)

        def of_one(logits, states, actions, rewards, advantage, returns, value):
            ends = jnp.arange(self.horizon) == self.horizon - 1
            behavior = rl.Categorical(at[states])
            decisions = rl.Decisions(actions, rewards, ends, behavior, advantage, returns, value)
            batch = Batch(states, decisions, jnp.ones(self.horizon))
            return -self.horizon * loss(rl.Categorical(logits[states]), batch)

        rows = (self.states, self.actions, self.rewards, (returns - value) * start, returns, value)

        def expected(logits):
            each = jax.vmap(of_one, (None, *[0] * len(rows)))(logits, *map(jnp.asarray, rows))
            return jnp.sum(weights * each)

        return expected


def derivatives(function, at):
    size = at.size
    return jax.grad(function)(at), jax.hessian(function)(at).reshape(size, size)


def error(found, true):
    return float(jnp.linalg.norm(found - true) / jnp.linalg.norm(true))


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("baseline", [0, 1])
@pytest.mark.parametrize("curvature", ["none", "lvc", "dice", "loaded"])
def test_expected_derivatives(curvature, baseline, horizon, float64):
    every = Enumerated(horizon)
    assert float(every.probabilities(every.logits).sum()) == pytest.approx(1, abs=1e-12)
    gradient, hessian = derivatives(every.value, every.logits)
    found, bent = derivatives(every.surrogate(curvature, baseline=baseline), every.logits)
    assert error(found, gradient) < 1e-10
    if curvature in ("dice", "loaded") or (curvature == "lvc" and horizon == 1):
        assert error(bent, hessian) < 1e-10
    elif curvature == "none" and baseline:
        assert float(jnp.abs(bent).max()) < 1e-12  # not a Hessian at all
    else:
        assert error(bent, hessian) > 0.1
