"""Attacks on linear models, whose worst point in a box is known, and training on attacked inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.toys import classification_episode, normed_model
from metajax.objectives.adversarial import Attack, adversarial_objective, perturb

KEY = jax.random.key(0)


@pytest.mark.parametrize("steps", [1, 10])
def test_the_worst_of_a_box_for_a_linear_loss_is_its_corner(float64, steps):
    slopes = jnp.array([[1.0, -2.0, 0.5]])
    inputs, epsilon = jnp.array([[0.2, 0.9, 0.5]]), jnp.array([0.1, 0.2, 0.3])
    attack = Attack(epsilon, steps=steps, rate=1.0)
    changed = perturb(attack, lambda x: jnp.sum(slopes * x), inputs, KEY)
    np.testing.assert_allclose(changed, inputs + epsilon * jnp.sign(slopes), rtol=1e-12)
    bounded = attack._replace(low=0.0, high=0.75)
    changed = perturb(bounded, lambda x: jnp.sum(slopes * x), inputs, KEY)
    np.testing.assert_allclose(changed, [[0.3, 0.7, 0.75]], rtol=1e-12)


def test_nothing_flows_through_an_attack():
    def changed(scale):
        attack = Attack(0.1)
        return jnp.sum(perturb(attack, lambda x: jnp.sum(scale * x), jnp.ones((1, 2)), KEY))

    assert jax.grad(changed)(2.0) == 0


def setting(**options):
    """Makes a learner and an adversarial objective."""
    learner = metajax.maml(normed_model(8, 3), metajax.cross_entropy, rule=optax.sgd(0.5), steps=1)
    attack = options.pop("attack", Attack(0.5))
    objective = adversarial_objective(
        learner,
        metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy}),
        attack,
        **options,
    )
    return learner, objective


def test_an_attack_of_nothing_changes_nothing(float64):
    learner, objective = setting(attack=Attack(0.0), attack_support=True)
    episode = classification_episode(KEY, dtype=jnp.float64)
    meta = learner.init(KEY, episode.support.inputs)
    loss, metrics = objective(meta, KEY, episode)
    clean, _ = metajax.query_objective(learner, metajax.cross_entropy)(meta, KEY, episode)
    np.testing.assert_allclose(loss, clean, rtol=1e-12)
    np.testing.assert_allclose(metrics["robust_loss"], metrics["loss"], rtol=1e-12)


def test_attacks_raise_the_loss_of_the_attacked_set():
    episode = classification_episode(KEY)
    learner, of_queries = setting()
    _, of_support = setting(attack_support=True, attack_query=False)
    meta = learner.init(KEY, episode.support.inputs)
    clean, _ = metajax.query_objective(learner, metajax.cross_entropy)(meta, KEY, episode)
    loss, metrics = of_queries(meta, KEY, episode)
    np.testing.assert_allclose(metrics["loss"], clean, rtol=1e-5)
    assert loss == metrics["robust_loss"] > clean + 0.1
    loss, metrics = of_support(meta, KEY, episode)
    assert loss == metrics["loss"] != clean


def test_training_on_attacked_queries_makes_a_learner_robust():
    def sample(data, key):
        del data
        return classification_episode(key, shots=5, queries=5)

    def trained(robust):
        learner, objective = setting(attack_query=robust)
        step = metajax.make_step(metajax.backprop(objective), optax.adam(0.02), sample, num_tasks=8)
        meta = learner.init(jax.random.key(1), sample(None, KEY).support.inputs)
        state = metajax.init_state(meta, optax.adam(0.02), KEY)
        _, metrics = jax.jit(metajax.many_steps(step, 200))(state, None)
        return metrics["robust_loss"][-50:].mean()

    assert trained(True) < 0.95 * trained(False)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"attack.steps is 0"):
        perturb(Attack(0.1, steps=0), jnp.sum, jnp.ones((1, 2)), KEY)


@pytest.mark.parametrize("steps", [1, 10])
def test_every_floating_leaf_is_attacked_within_its_own_box(float64, steps):
    inputs = {
        "near": jnp.array([[0.2], [0.7]]),
        "ids": jnp.arange(2),
        "pair": (jnp.ones((2, 3)),) * 2,
    }

    def loss(inputs):
        near, (left, right) = inputs["near"], inputs["pair"]
        return jnp.sum((near - left + 2 * right) * (1 + inputs["ids"][:, None]))

    attack = Attack(
        {"near": 0.1, "ids": 0.0, "pair": jnp.array([0.1, 0.2, 0.3])}, steps=steps, rate=1.0
    )
    changed = perturb(attack, loss, inputs, KEY)
    np.testing.assert_allclose(changed["near"], inputs["near"] + 0.1, rtol=1e-12)
    np.testing.assert_array_equal(changed["ids"], [0, 1])
    left, right = changed["pair"]
    np.testing.assert_allclose(left, [[0.9, 0.8, 0.7]] * 2, rtol=1e-12)
    np.testing.assert_allclose(right, [[1.1, 1.2, 1.3]] * 2, rtol=1e-12)
    bounded = attack._replace(low=0.85, high={"near": 0.75, "ids": 0, "pair": (2.0, 1.15)})
    changed = perturb(bounded, loss, inputs, KEY)
    np.testing.assert_allclose(changed["near"], [[0.75], [0.75]], rtol=1e-12)
    np.testing.assert_allclose(changed["pair"][0][0], [0.9, 0.85, 0.85], rtol=1e-12)
    np.testing.assert_allclose(changed["pair"][1][0], [1.1, 1.15, 1.15], rtol=1e-12)


def test_leaves_start_at_independent_points():
    inputs = (jnp.zeros((4, 2)),) * 2
    start = perturb(Attack(1.0, steps=2, rate=1e-9), lambda x: jnp.sum(x[0]), inputs, KEY)
    assert np.abs(np.corrcoef(*map(np.ravel, start))[0, 1]) < 0.9
    alone = perturb(Attack(1.0, steps=2, rate=1e-9), jnp.sum, inputs[0], KEY)
    np.testing.assert_allclose(start[0], alone, rtol=1e-6)


def test_an_attack_on_inputs_without_a_floating_array_is_refused():
    with pytest.raises(ValueError, match="inputs are of type uint8; an attack needs gradients"):
        perturb(Attack(0.1), jnp.sum, {"x": jnp.ones(3, jnp.uint8)}, KEY)
    with pytest.raises(ValueError, match="inputs are of type None; an attack"):
        perturb(Attack(0.1), jnp.sum, {}, KEY)


@pytest.mark.parametrize("name", ["epsilon", "low", "high"])
def test_a_box_of_another_structure_than_the_inputs_is_refused(name):
    attack = Attack(0.1)._replace(**{name: [0.1, 0.2, 0.3]})
    message = (
        rf"attack.{name} is \[0.1, 0.2, 0.3\], which .* inputs; use a number, an array such as"
    )
    with pytest.raises(ValueError, match=message):
        perturb(attack, jnp.sum, jnp.ones((2, 3)), KEY)
