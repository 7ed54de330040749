"""The examples of hyper-gradients, against finite differences and on real digits."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments import learn_to_regularise, learn_to_reweight
from experiments.learn_to_regularise import RegulariseSettings, validation_objective
from experiments.learn_to_reweight import (
    NoisyEpisode,
    ReweightSettings,
    clean_objective,
    example_weights,
    take,
)
from experiments.reports import digits
from helpers.driver_runs import run
from helpers.toys import linear_model
from metajax.types import Batch, Episode

DIFFERENCE = 1e-5


def a_batch(key, examples, *, dim=3, ways=4):
    input_key, label_key = jax.random.split(key)
    inputs = jax.random.normal(input_key, (examples, dim), jnp.float64)
    return Batch(inputs, jax.random.randint(label_key, (examples,), 0, ways))


def by_differences(function, point):
    """Central differences of a scalar function in every element of its argument."""
    flat = np.asarray(point, np.float64).ravel()
    slopes = []
    for i in range(flat.size):
        step = DIFFERENCE * (np.arange(flat.size) == i)
        ends = [function(jnp.reshape(end, point.shape)) for end in (flat + step, flat - step)]
        slopes.append((ends[0] - ends[1]) / (2 * DIFFERENCE))
    return np.reshape(slopes, point.shape)


def meta_gradient(objective, point, episode):
    tasks = jax.tree.map(lambda leaf: leaf[None], (jax.random.key(0), episode))
    return metajax.backprop(objective)(point, *tasks)[0]


@pytest.fixture
def noisy_task(float64):
    keys = jax.random.split(jax.random.key(1), 3)
    episode = NoisyEpisode(a_batch(keys[0], 6), a_batch(keys[1], 5), jnp.zeros(6, bool))
    model = linear_model(5, 4)
    return model, model.init(keys[2], episode.support.inputs), episode


def test_gradients_of_example_weights_are_finite_differences_and_inner_products(noisy_task):
    model, params, episode = noisy_task
    objective = clean_objective(model, params)
    zeros = jnp.zeros(6)
    grads = meta_gradient(objective, zeros, episode)
    loss = jax.jit(lambda weights: objective(weights, jax.random.key(0), episode)[0])
    np.testing.assert_allclose(grads, by_differences(loss, zeros), rtol=1e-7, atol=1e-9)

    def slope(batch):
        def loss(params):
            return metajax.cross_entropy(model.apply(params, batch.inputs), batch)

        return jax.grad(loss)(params)

    each = jax.vmap(slope)(jax.tree.map(lambda leaf: leaf[:, None], episode.support))
    products = jax.tree.map(
        lambda ours, wanted: -jnp.sum(ours * wanted, axis=range(1, ours.ndim)),
        each,
        slope(episode.query),
    )
    np.testing.assert_allclose(grads, sum(jax.tree.leaves(products)), rtol=1e-11)


def test_weights_are_the_helpful_part_of_the_gradient_or_all_zero(noisy_task):
    model, params, episode = noisy_task
    grads = meta_gradient(clean_objective(model, params), jnp.zeros(6), episode)
    assert (grads < 0).any() and (grads > 0).any()
    weights = example_weights(model, params, jax.random.key(0), episode)
    helpful = np.maximum(-grads, 0)
    np.testing.assert_allclose(weights, helpful / helpful.sum(), rtol=1e-12)

    # Undecided between two classes, what raises one lowers the other by as much.
    support = Batch(episode.support.inputs, jnp.zeros(6, int))
    query = Batch(support.inputs[:1], jnp.ones(1, int))
    against = NoisyEpisode(take(support, jnp.zeros(6, int)), query, episode.wrong)
    undecided = linear_model(5, 2).init(jax.random.key(3), support.inputs)
    undecided["head"]["kernel"] = jnp.zeros((5, 2))
    weights = example_weights(model, undecided, jax.random.key(0), against)
    np.testing.assert_array_equal(weights, 0)


@pytest.mark.parametrize("adjoint", ["reverse", "mixed", "recursive"])
def test_gradients_of_strengths_are_finite_differences(float64, adjoint):
    settings = RegulariseSettings(inner_steps=7, adjoint=adjoint)
    train_key, valid_key, strength_key = jax.random.split(jax.random.key(2), 3)
    episode = Episode(a_batch(train_key, 6, ways=10), a_batch(valid_key, 5, ways=10))
    strengths = jax.random.normal(strength_key, (3, 10), jnp.float64) - 1
    objective = validation_objective(settings)
    grads = meta_gradient(objective, strengths, episode)
    loss = jax.jit(lambda strengths: objective(strengths, jax.random.key(0), episode)[0])
    assert np.abs(grads).max() > 1e-3
    np.testing.assert_allclose(grads, by_differences(loss, strengths), rtol=1e-5, atol=1e-9)


def test_reweighted_training_sees_through_wrong_labels():
    pytest.importorskip("sklearn")
    settings = ReweightSettings(noise=0.6, hidden=50, lr=5e-3, batch=250, steps=250, runs=2)
    result = learn_to_reweight.run(settings)
    assert np.mean(result["reweighted"]) > 0.85
    assert np.mean(result["reweighted"] - result["noisy"]) > 0.05
    # Example by example: six in ten are wrong, and those share what is said to be on wrong labels.
    wrong, right = result["wrong_weight"] / 0.6, (1 - result["wrong_weight"]) / 0.4
    assert np.all(wrong < right / 2)
    assert np.all(result["stopped_early"] > 0.5)


def test_learned_strengths_beat_the_best_single_one():
    pytest.importorskip("sklearn")
    settings = RegulariseSettings(inner_steps=60, steps=30, lr=0.4, runs=2)
    result = learn_to_regularise.run(settings)
    learned, single = result["learned"], result["single"]
    assert np.all(learned["valid_loss"] < single["valid_loss"] - 0.03)
    assert np.all(learned["test_loss"] < single["test_loss"])
    # The grid holds no penalty too, so that its best is no worse in validation.
    assert np.all(single["valid_loss"] <= result["none"]["valid_loss"] + 1e-6)


def test_an_example_prints_a_table_and_writes_where_asked(tmp_path):
    pytest.importorskip("sklearn")
    flags = "--inner_steps=3 --steps=1 --runs=2".split()
    status, out, err = run(*flags, f"--workdir={tmp_path}", driver="learn_to_regularise")
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["learned"]["test_loss"]) == 2
    assert f"{np.mean(result['learned']['test_loss']):.3f}" in out
    defaults = dataclasses.asdict(RegulariseSettings())
    given = {"inner_steps": 3, "steps": 1, "runs": 2, "workdir": str(tmp_path)}
    assert result["settings"] == {**defaults, **given}


@pytest.mark.parametrize(
    ("driver", "flag", "says"),
    [
        ("learn_to_reweight", "--noise=2", "--noise=2.0 is too large; use 0.9 or less"),
        ("learn_to_reweight", "--steps=15", "--steps=15 is not a multiple of 10"),
        ("learn_to_regularise", "--adjoint=mixt", "--adjoint=mixt is unknown; did you mean mixed"),
    ],
)
def test_bad_flags_are_one_line(driver, flag, says):
    status, out, err = run(flag, driver=driver)
    assert (status, out) == (2, ""), err
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn, .*metajax\[examples\]"):
        digits.digits()
