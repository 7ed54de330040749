import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from helpers.differences import noisy, relative_error
from helpers.toys import classification_episode, normed_model, point_model
from metajax import trees
from metajax.inner.per_step import PerStep, draw_minibatches, stack_rows, take_row
from metajax.types import Batch, Episode


def test_minibatches_pass_over_all_examples_before_any_comes_again():
    places = draw_minibatches(jax.random.key(0), None, 12, 4, 6)
    assert places.shape == (6, 4)
    passes = np.sort(places.reshape(2, 12))
    np.testing.assert_array_equal(passes, np.tile(np.arange(12), (2, 1)))
    assert not np.array_equal(places[:3], places[3:])


def test_minibatches_never_show_padding():
    weights = jnp.array([1.0, 0, 0.5, 1, 0, 1])
    places = draw_minibatches(jax.random.key(0), weights, 6, 3, 8)
    passes = np.sort(places.reshape(-1, 4))
    np.testing.assert_array_equal(passes, np.tile([0, 2, 3, 5], (6, 1)))
    none = draw_minibatches(jax.random.key(0), jnp.zeros(6), 6, 3, 2)
    assert ((none >= 0) & (none < 6)).all()


@pytest.mark.parametrize("true", [1, 3, 5])
def test_fewer_examples_than_a_minibatch_are_all_shown_once(float64, true):
    centers = jnp.arange(8.0)[:, None] ** 2
    weights = (jnp.arange(8) < true).astype(float)
    learner = metajax.maml(
        point_model(1), metajax.squared_error, rule=optax.sgd(0.25), steps=3, minibatch=5
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    start = learner.start(meta, jax.random.key(0))
    padded = Batch(jnp.zeros((8, 1)), centers, weights)
    bare = Batch(jnp.zeros((true, 1)), centers[:true])
    ends = [learner.adapt(meta, start, jax.random.key(7), b).params for b in (padded, bare)]
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_no_steps_on_minibatches_adapt_nothing():
    learner = metajax.maml(
        point_model(1), metajax.squared_error, rule=optax.sgd(0.25), steps=0, minibatch=2
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    start = learner.start(meta, jax.random.key(0))
    batch = Batch(jnp.zeros((6, 1)), jnp.ones((6, 1)))
    fast = learner.adapt(meta, start, jax.random.key(7), batch)
    np.testing.assert_array_equal(fast.params, meta.params)


def test_each_step_descends_on_its_minibatch(float64):
    centers = jnp.arange(6.0)[:, None]
    batch = Batch(jnp.zeros((6, 1)), centers)
    learner = metajax.maml(
        point_model(1), metajax.squared_error, rule=optax.sgd(0.25), steps=4, minibatch=2
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    start = learner.start(meta, jax.random.key(0))
    fast = learner.adapt(meta, start, jax.random.key(7), batch)
    x = meta.params
    for places in draw_minibatches(jax.random.key(7), None, 6, 2, 4):
        # Mean of squares about two centers: the gradient is twice the difference from their mean.
        x = x - 0.5 * (x - centers[places].mean())
    np.testing.assert_allclose(fast.params, x, rtol=1e-12)
    again = learner.adapt(meta, fast, jax.random.key(8), batch)
    assert again.step == 8 and jnp.isfinite(again.params).all()


@pytest.mark.parametrize("adjoint", ["reverse", "mixed", "recursive"])
def test_minibatches_and_fixed_leaves_have_true_derivatives(float64, adjoint):
    model = normed_model(4, 3)
    episode = classification_episode(jax.random.key(0), shots=3, dtype=jnp.float64)
    learner = metajax.learners.gradient_learner(
        model,
        metajax.cross_entropy,
        rule=optax.sgd(0.3),
        steps=3,
        adapts=trees.under("head"),
        per_step=PerStep(trees.in_norms, 2),
        minibatch=4,
        adjoint=metajax.ADJOINTS[adjoint],
    )
    meta = learner.init(jax.random.key(1), episode.support.inputs)
    objective = metajax.query_objective(learner, metajax.cross_entropy)

    def loss(meta):
        return objective(meta, jax.random.key(2), episode)[0]

    assert relative_error(loss, noisy(meta, 0.1)) < 1e-6


def test_a_minibatch_of_all_examples_is_the_whole_batch():
    episode = classification_episode(jax.random.key(0))
    outputs = []
    for minibatch in (None, 6, 100):
        learner = metajax.maml(
            normed_model(4, 3),
            metajax.cross_entropy,
            rule=optax.sgd(0.3),
            steps=2,
            minibatch=minibatch,
        )
        meta = learner.init(jax.random.key(1), episode.support.inputs)
        outputs.append(metajax.objectives.query_outputs(learner, meta, jax.random.key(2), episode))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_rows_are_stacked_and_taken():
    tree = {"norm": {"scale": jnp.arange(3.0)}, "kernel": jnp.ones(2)}
    stacked = stack_rows(tree, PerStep(trees.in_norms, 4))
    assert stacked["norm"]["scale"].shape == (4, 3) and stacked["kernel"].shape == (2,)
    rows = {"scale": np.arange(8.0).reshape(4, 2)}
    for step, row in ((-1, 0), (0, 0), (2, 2), (3, 3), (9, 3)):
        np.testing.assert_array_equal(take_row(rows, step)["scale"], rows["scale"][row])


def test_wrong_options_raise():
    model = normed_model(4, 3)
    options = {"rule": optax.sgd(0.1), "steps": 1}
    with pytest.raises(ValueError, match="minibatch is 0; use 1 or more"):
        metajax.maml(model, metajax.cross_entropy, minibatch=0, **options)
    learner = metajax.learners.gradient_learner(
        model,
        metajax.cross_entropy,
        adapts=trees.under("head"),
        per_step=PerStep(trees.in_norms, 0),
        **options,
    )
    with pytest.raises(ValueError, match="rows is 0"):
        learner.init(jax.random.key(0), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="steps is 0; use 1 or more"):
        metajax.learned_rates(0.1, steps=0)


def test_each_step_reads_its_own_row(float64):
    # Outputs are norm/scale * params: with loss (s_i x - c)^2 / 2 a step of size r is x -= r s_i (s_i x - c).
    scales, center, rate = jnp.array([[1.0], [2.0], [0.5]]), 3.0, 0.1
    model = metajax.Model(
        lambda key, inputs: {"x": jnp.ones(1), "norm": {"scale": jnp.ones(1)}},
        lambda params, inputs: (params["norm"]["scale"] * params["x"])[None],
    )

    def loss(outputs, batch):
        return jnp.sum((outputs - batch.targets) ** 2) / 2

    learner = metajax.learners.gradient_learner(
        model,
        loss,
        rule=optax.sgd(rate),
        steps=4,
        adapts=trees.below("x"),
        per_step=PerStep(trees.in_norms, 3),
    )
    meta = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    meta = meta._replace(params={**meta.params, "norm": {"scale": scales}})
    batch = Batch(jnp.zeros((1, 1)), jnp.full((1, 1), center))
    x = 1.0
    for scale in (1.0, 2.0, 0.5, 0.5):
        x -= rate * scale * (scale * x - center)
    output = metajax.objectives.query_outputs(
        learner, meta, jax.random.key(0), Episode(batch, batch)
    )
    np.testing.assert_allclose(output, [[0.5 * x]], rtol=1e-14)
