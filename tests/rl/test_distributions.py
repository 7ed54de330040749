"""Distributions of actions against SciPy, numerical integrals and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from metajax import rl

LOGITS = np.array([[0.3, -1.0, 2.0, 0.0], [1.0, 1.0, -3.0, 0.5]])
OTHERS = np.array([[0.0, 0.5, 1.0, -0.2], [0.1, -1.0, 2.0, 0.5]])
MEAN, LOG_STD = np.array([[0.3, -1.0], [2.0, 0.1]]), np.array([[0.2, -0.7], [0.0, 0.4]])
OTHER_MEAN, OTHER_LOG_STD = MEAN + np.array([0.5, -0.2]), LOG_STD + np.array([[0.3], [-0.2]])


def test_categorical(float64):
    policy, other = rl.Categorical(jnp.asarray(LOGITS)), rl.Categorical(jnp.asarray(OTHERS))
    p, q = np.exp(LOGITS), np.exp(OTHERS)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    for action in range(4):
        found = policy.log_prob(jnp.full(2, action))
        np.testing.assert_allclose(found, np.log(p[:, action]), rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), stats.entropy(p, axis=1), rtol=1e-12)
    np.testing.assert_allclose(policy.kl(other), stats.entropy(p, q, axis=1), rtol=1e-12)
    assert policy.mode().tolist() == [2, 0]


def test_an_impossible_choice_leaves_the_others_alone():
    policy = rl.Categorical(jnp.array([0.0, -jnp.inf, 0.0]))
    assert float(policy.log_prob(jnp.array(2))) == pytest.approx(-np.log(2), rel=1e-6)
    assert float(policy.log_prob(jnp.array(1))) == -np.inf


def test_normal(float64):
    policy = rl.Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    other = rl.Normal(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD))
    action = np.array([[0.0, 1.0], [-2.0, 0.7]])
    # Sums, not means, over the components.
    ours = stats.norm(MEAN, np.exp(LOG_STD))
    np.testing.assert_allclose(policy.log_prob(action), ours.logpdf(action).sum(1), rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), ours.entropy().sum(1), rtol=1e-12)
    np.testing.assert_array_equal(policy.mode(), MEAN)
    divergences = np.zeros((2, 2))
    for place in np.ndindex(2, 2):
        one = stats.norm(MEAN[place], np.exp(LOG_STD[place]))
        two = stats.norm(OTHER_MEAN[place], np.exp(OTHER_LOG_STD[place]))
        divergences[place], _ = integrate.quad(
            lambda x, one=one, two=two: one.pdf(x) * (one.logpdf(x) - two.logpdf(x)),
            *one.interval(1 - 1e-15),
        )
    np.testing.assert_allclose(policy.kl(other), divergences.sum(1), rtol=1e-7)
    assert float(jnp.abs(policy.kl(policy)).max()) == 0


def test_sampling():
    draws = 50_000
    keys = jax.random.split(jax.random.key(0), draws)
    choices = jax.jit(jax.vmap(rl.Categorical(jnp.asarray(LOGITS[0])).sample))(keys)
    p = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    counts = np.bincount(np.asarray(choices), minlength=4)
    assert np.all(np.abs(counts / draws - p) < 5 * np.sqrt(p * (1 - p) / draws))
    vectors = jax.jit(jax.vmap(rl.Normal(jnp.asarray(MEAN[0]), jnp.asarray(LOG_STD[0])).sample))
    found, std = np.asarray(vectors(keys)), np.exp(LOG_STD[0])
    assert np.all(np.abs(found.mean(0) - MEAN[0]) < 5 * std / np.sqrt(draws))
    np.testing.assert_allclose(found.std(0), std, rtol=5 / np.sqrt(2 * draws))
    assert abs(np.corrcoef(found.T)[0, 1]) < 5 / np.sqrt(draws)


@pytest.mark.parametrize("kind", ["categorical", "normal"])
def test_vectorized_as_in_a_loop(kind):
    if kind == "categorical":
        policy, other = rl.Categorical(jnp.asarray(LOGITS)), rl.Categorical(jnp.asarray(OTHERS))
    else:
        policy = rl.Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
        other = rl.Normal(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD))

    def everything(policy, other, key):
        action = policy.sample(key)
        return action, policy.log_prob(action), policy.entropy(), policy.kl(other), policy.mode()

    keys = jax.random.split(jax.random.key(1), 2)
    at_once = jax.jit(jax.vmap(everything))(policy, other, keys)
    one = jax.jit(everything)
    for index in range(2):
        parts = jax.tree.map(lambda leaf, index=index: leaf[index], (policy, other))
        alone = one(*parts, keys[index])
        for ours, theirs in zip(at_once, alone, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-6)


@pytest.mark.parametrize("action", [np.zeros((2, 1), int), np.zeros((), int)])
def test_actions_of_another_shape_are_refused(action):
    with pytest.raises(AssertionError):
        rl.Categorical(jnp.asarray(LOGITS)).log_prob(action)
    with pytest.raises(AssertionError):
        rl.Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD)).log_prob(action)


def test_clipping_and_features():
    box = rl.Continuous(2, -1.0, 0.5)
    assert rl.clip_action(box, jnp.array([[-3.0, 3.0]])).tolist() == [[-1.0, 0.5]]
    assert rl.action_features(box, jnp.array([[-3.0, 0.2]])).tolist() == [
        [-1.0, pytest.approx(0.2)]
    ]
    assert rl.clip_action(rl.Discrete(3), jnp.array([7])).tolist() == [7]
