"""Losses of policies: closed forms, and their derivatives under every adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.rl_worlds import walk
from metajax import rl
from metajax.types import Batch, Episode


def batch_of(logits, action, advantage, ends, *, reward=None, weights=None):
    """Makes experience of a policy with logits [B, A]."""
    nothing = jnp.zeros_like(advantage)
    reward = advantage if reward is None else reward
    behavior = rl.Categorical(logits)
    decisions = rl.Decisions(action, reward, ends, behavior, advantage, nothing, nothing)
    return Batch(jnp.zeros((len(advantage), 1)), decisions, weights)


def some_batch():
    draw = np.random.default_rng(0)
    logits, action = jnp.asarray(draw.normal(size=(6, 3))), jnp.asarray([0, 1, 2, 2, 1, 0])
    advantage = jnp.asarray(draw.normal(size=6))
    ends = jnp.array([False, False, True, False, True, False])
    return batch_of(
        logits, action, advantage, ends, weights=jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    )


def test_first_derivatives_agree_where_the_policy_acted(float64):
    batch = some_batch()
    logits = batch.targets.behavior.logits
    losses = [
        rl.clipped(epsilon=0.1),
        *(rl.policy_gradient(curvature=name) for name in ("none", "lvc", "loaded")),
    ]

    @jax.jit
    def gradients(logits):
        return [jax.grad(lambda x, f=f: f(rl.Categorical(x), batch))(logits) for f in losses]

    grads = gradients(logits)
    for other in grads[1:]:
        np.testing.assert_allclose(other, grads[0], atol=1e-15)
    assert np.all(np.asarray(grads[0][5]) == 0)


@pytest.mark.parametrize(
    ("advantage", "logit", "moves"), [(1, 1, False), (1, -1, True), (-1, 1, True), (-1, -1, False)]
)
def test_ratios_beyond_the_clip(advantage, logit, moves, float64):
    batch = batch_of(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([advantage * 1.0]), jnp.ones(1))
    now = jnp.array([[float(logit), 0.0]])
    loss = rl.clipped(epsilon=0.2)
    loss, grad = jax.jit(jax.value_and_grad(lambda x: loss(rl.Categorical(x), batch)))(now)
    ratio = float(jax.nn.softmax(now)[0, 0] / 0.5)
    true = -min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    assert float(loss) == pytest.approx(true, rel=1e-12)
    assert bool(jnp.any(grad != 0)) is moves


def test_value_and_entropy_terms(float64):
    batch = some_batch()
    returns = jnp.arange(6.0)
    batch = batch._replace(targets=batch.targets._replace(returns=returns))
    outputs = rl.ActorCritic(batch.targets.behavior, jnp.ones(6))
    plain = rl.clipped()(outputs, batch)
    found = rl.clipped(value_cost=0.5, entropy_bonus=0.1)(outputs, batch)
    errors = (1 - np.arange(5.0)) ** 2 / 2
    entropy = np.asarray(outputs.policy.entropy())[:5].mean()
    true = plain + 0.5 * errors.mean() - 0.1 * entropy
    assert float(found) == pytest.approx(float(true), rel=1e-12)
    assert float(rl.value_loss(outputs, batch)) == pytest.approx(errors.mean(), rel=1e-12)
    with pytest.raises(ValueError, match="predicts no value"):
        rl.value_loss(batch.targets.behavior, batch)


def test_dice_discounts_from_the_start_of_each_episode(float64):
    # Three episodes of three steps, of which the first ends after one and the second after two.
    weights = jnp.array([1.0, 0, 0, 1, 1, 0, 1, 1, 1])
    ends = jnp.array([True, False, False, False, True, False, False, False, True])
    reward = jnp.arange(1.0, 10.0)
    batch = batch_of(
        jnp.zeros((9, 2)), jnp.zeros(9, int), reward, ends, reward=reward * weights, weights=weights
    )
    loss = jax.jit(rl.policy_gradient(curvature="dice", discount=0.5))
    found = loss(batch.targets.behavior, batch)
    true = 1 + (4 + 0.5 * 5) + (7 + 0.5 * 8 + 0.25 * 9)
    assert float(found) == pytest.approx(-true / 6, rel=1e-12)


def life_of(learner, env, *, calls=1):
    """Lives a life, in one program."""
    task = env.sample(jax.random.key(5))
    meta = learner.init(jax.random.key(1), env.reset(jax.random.key(2), task)[1][None])
    live = rl.live(learner, env, episodes=3, calls=calls, advantage=rl.advantages(baseline="none"))
    return meta, jax.jit(live)(meta, jax.random.key(3), task)


def learner_of(loss, adjoint="reverse"):
    return metajax.maml(
        rl.mlp_policy(walk().actions, hidden=(4,)),
        loss,
        rule=optax.sgd(0.3),
        steps=2,
        adjoint=metajax.ADJOINTS[adjoint],
    )


def two_curvatures(outputs, batch):
    """Adds two surrogates, of ratios of single steps and of whole episodes."""
    names = ("lvc", "dice")
    return sum(rl.policy_gradient(curvature=name, discount=0.9)(outputs, batch) for name in names)


def test_adjoints_agree(float64):
    meta, life = life_of(learner_of(two_curvatures), walk(horizon=3))
    key = jax.random.key(4)

    def gradient(adjoint):
        objective = rl.lifetime_objective(learner_of(two_curvatures, adjoint), rl.clipped())
        return jax.grad(lambda meta: objective(meta, key, life)[0])(meta)

    # One of those that store, one of those that differentiate forward over reverse; the others are these with
    # other stores, which test_adjoints.py compares.
    names = ("reverse", "mixed", "first_order")
    found = jax.jit(lambda: [jax.flatten_util.ravel_pytree(gradient(name))[0] for name in names])()
    size = float(jnp.linalg.norm(found[0]))
    assert float(jnp.linalg.norm(found[1] - found[0])) < 1e-14 * size
    assert float(jnp.linalg.norm(found[2] - found[0])) > 1e-3 * size


def test_one_call_is_a_query_objective(float64):
    learner = learner_of(rl.policy_gradient())
    meta, life = life_of(learner, walk())
    loss, key = rl.clipped(), jax.random.key(4)
    episode = Episode(jax.tree.map(lambda leaf: leaf[0], life.support), life.query)

    def both(meta):
        ours = rl.lifetime_objective(learner, loss)(meta, key, life)[0]
        return ours, metajax.query_objective(learner, loss)(meta, key, episode)[0]

    values, slopes = jax.jit(lambda meta: (both(meta), jax.jacrev(both)(meta)))(meta)
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-14)
    for ours, theirs in zip(jax.tree.leaves(slopes[0]), jax.tree.leaves(slopes[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_adapting_again_reaches_the_policy_that_acted(float64):
    learner = learner_of(rl.policy_gradient())
    meta, life = life_of(learner, walk(), calls=2)
    outputs, batch = jax.jit(rl.lifetime_outputs(learner))(meta, jax.random.key(4), life)
    np.testing.assert_allclose(outputs.logits, batch.targets.behavior.logits, atol=1e-13)
    objective = rl.lifetime_objective(learner, rl.clipped(), kl_cost=2.0)
    loss, metrics = jax.jit(objective)(meta, jax.random.key(4), life)
    assert float(metrics["inner_kl"]) == pytest.approx(0, abs=1e-13)
    assert float(loss) == pytest.approx(float(metrics["loss"]), abs=1e-12)
    # Where the meta-parameters have moved, the penalty is the mean over the calls.
    moved = jax.tree.map(lambda leaf: leaf + 0.1, meta)
    loss, metrics = jax.jit(objective)(moved, jax.random.key(4), life)
    assert float(metrics["inner_kl"]) > 1e-4
    assert float(loss - metrics["loss"]) == pytest.approx(2 * float(metrics["inner_kl"]), rel=1e-9)
    outputs = learner.predict(moved, learner.start(moved, None), life.support.inputs[0])
    first = rl.policy_kl(outputs, jax.tree.map(lambda leaf: leaf[0], life.support))
    assert float(metrics["inner_kl"]) != pytest.approx(float(first), rel=1e-3)


def test_names_and_numbers_that_are_refused():
    with pytest.raises(ValueError, match="curvature is 'lcv'; use one of none, lvc"):
        rl.policy_gradient(curvature="lcv")
    with pytest.raises(ValueError, match="epsilon is 0; use a number above 0"):
        rl.clipped(epsilon=0)
