"""What the surrogates' derivatives are in expectation, by enumerating every trajectory of a small MDP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.rl_worlds import DISCOUNT, Enumerated
from metajax import rl
from metajax.types import Batch


def surrogate(every, curvature, baseline):
    """Makes the function of logits whose derivatives are those of the surrogate in expectation."""
    at = jnp.asarray(every.logits)
    weights = every.probabilities(at)
    value = every.state_values(at)[np.arange(every.horizon), every.states] * baseline
    returns = rl.discounted_sums(jnp.asarray(every.rewards), DISCOUNT)
    # `none` and `lvc` leave the discount from the start to the advantage.
    start = 1 if curvature in ("dice", "loaded") else DISCOUNT ** np.arange(every.horizon)
    loss = rl.policy_gradient(curvature=curvature, discount=DISCOUNT)

    def of_one(logits, states, actions, rewards, advantage, returns, value):
        ends = jnp.arange(every.horizon) == every.horizon - 1
        behavior = rl.Categorical(at[states])
        decisions = rl.Decisions(actions, rewards, ends, behavior, advantage, returns, value)
        batch = Batch(states, decisions, jnp.ones(every.horizon))
        return -every.horizon * loss(rl.Categorical(logits[states]), batch)

    rows = (every.states, every.actions, every.rewards, (returns - value) * start, returns, value)

    def expected(logits):
        each = jax.vmap(of_one, (None, *[0] * len(rows)))(logits, *map(jnp.asarray, rows))
        return jnp.sum(weights * each)

    return expected


def derivatives(function, at):
    gradient = jax.grad(function)
    return gradient(at), jax.jacfwd(gradient)(at).reshape(at.size, at.size)


@functools.cache
def exact(horizon):
    """Derivatives of the expected return, and the sum of all probabilities."""
    every = Enumerated(horizon)
    program = jax.jit(lambda at: (derivatives(every.value, at), every.probabilities(at).sum()))
    return program(jnp.asarray(every.logits))


@functools.cache
def program(horizon, curvature):
    """Derivatives of a surrogate as a compiled function of the logits and the factor of the baseline."""
    every = Enumerated(horizon)
    return jax.jit(lambda at, baseline: derivatives(surrogate(every, curvature, baseline), at))


def error(found, true):
    return float(jnp.linalg.norm(found - true) / jnp.linalg.norm(true))


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("baseline", [0, 1])
@pytest.mark.parametrize("curvature", ["none", "lvc", "dice", "loaded"])
def test_expected_derivatives(curvature, baseline, horizon, float64):
    (gradient, hessian), total = exact(horizon)
    assert float(total) == pytest.approx(1, abs=1e-12)
    at = jnp.asarray(Enumerated(horizon).logits)
    found, bent = program(horizon, curvature)(at, float(baseline))
    assert error(found, gradient) < 1e-10
    if curvature in ("dice", "loaded") or (curvature == "lvc" and horizon == 1):
        assert error(bent, hessian) < 1e-10
    elif curvature == "none" and baseline:
        assert float(jnp.abs(bent).max()) < 1e-12  # not a Hessian at all
    else:
        assert error(bent, hessian) > 0.1


# Errors of the Hessian and of the meta-gradient for 1, 2 and 3 steps, as in docs/howto/reinforcement.md.
TABLE = {
    ("none", 0): [(5.40, 0.209), (7.42, 0.470), (8.52, 0.786)],
    ("none", 1): [(1.00, 0.036), (1.00, 0.044), (1.00, 0.062)],
    ("lvc", 0): [(0.00, 0.000), (0.69, 0.035), (0.90, 0.071)],
    ("lvc", 1): [(0.00, 0.000), (0.69, 0.035), (0.90, 0.071)],
}


@pytest.mark.parametrize(("curvature", "baseline"), TABLE)
def test_the_numbers_of_the_page(curvature, baseline, float64):
    for horizon, (of_hessian, of_meta) in enumerate(TABLE[curvature, baseline], 1):
        every = Enumerated(horizon)
        at, step = jnp.asarray(every.logits), 0.5
        (gradient, hessian), _ = exact(horizon)
        _, bent = program(horizon, curvature)(at, float(baseline))
        after = jax.jit(jax.grad(every.value))(at + step * gradient).reshape(-1)
        true, found = (after + step * matrix @ after for matrix in (hessian, bent))
        assert error(bent, hessian) == pytest.approx(of_hessian, abs=0.006)
        assert error(found, true) == pytest.approx(of_meta, abs=0.0006)
