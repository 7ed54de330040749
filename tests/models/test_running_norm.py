"""Batch norm by running averages: their updates in training, and their use in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import models, nn, zoo
from metajax.learners.transfer.baselines import simpleshot
from metajax.models import layers
from metajax.models.adapters import with_pull
from metajax.types import Batch, Episode

KEY = jax.random.key(0)


@pytest.mark.parametrize("where", ["together", "in turn", "on two devices"])
def test_a_step_averages_the_statistics_of_all_batches(float64, where):
    trainee, encoder = (
        zoo.build_model("conv4_stride", outputs=None, filters=2, norm="running", training=training)
        for training in (True, False)
    )
    images = jax.random.normal(KEY, (2, 5, 8, 8, 1))
    labels = jnp.zeros((2, 5), int)
    episodes = Episode(Batch(images, labels), Batch(images, labels))
    meta = simpleshot(encoder, ways=2, classes=3).init(KEY, images[0])
    meta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), meta)
    objective = metajax.learners.classification_objective(trainee, metajax.cross_entropy)
    meta_grad = metajax.backprop(objective, tasks_at_once=1 if where == "in turn" else None)
    if where == "on two devices":
        meta_grad = metajax.over_tasks(metajax.task_mesh(jax.devices()[:2]), meta_grad)
    grads, _ = jax.jit(meta_grad)(meta, jax.random.split(KEY), episodes)
    optimizer = metajax.train.running_averages(optax.sgd(0.0), decay=0.9)
    updates, _ = optimizer.update(grads, optimizer.init(meta), meta)
    after = optax.apply_updates(meta, updates).encoder["norm0"]["running"]

    kernel = meta.encoder["conv0"]["kernel"]
    made = [np.asarray(nn.conv2d(x, kernel, strides=(2, 2))) for x in images]
    means = np.mean([x.mean((0, 1, 2)) for x in made], axis=0)
    variances = np.mean([x.var((0, 1, 2), ddof=1) for x in made], axis=0)
    np.testing.assert_allclose(after["mean"], 0.1 * means, rtol=1e-9)
    np.testing.assert_allclose(after["variance"], 0.9 + 0.1 * variances, rtol=1e-9)


def test_training_goes_by_the_batch_and_a_test_by_the_averages(float64):
    x = jax.random.normal(KEY, (6, 4, 4, 2))
    averages = {"mean": jnp.array([0.5, -1.0]), "variance": jnp.array([2.0, 0.3])}
    affine = {"scale": jnp.array([1.5, -0.5]), "bias": jnp.array([0.1, 0.2])}
    params = {**affine, "running": averages}

    def applied(module, x):
        return module.apply({"params": params}, x, mutable=[layers.PULL])[0]

    expected = nn.batch_norm(x, **affine)
    np.testing.assert_allclose(
        applied(layers.Norm("running", training=True), x), expected, rtol=1e-9
    )
    by_averages = (x - averages["mean"]) / np.sqrt(averages["variance"] + 1e-3)
    by_averages = by_averages * affine["scale"] + affine["bias"]
    np.testing.assert_allclose(applied(layers.Norm("running"), x), by_averages, rtol=1e-9)
    np.testing.assert_allclose(applied(layers.Norm("running"), x[:1]), by_averages[:1], rtol=1e-9)
    pooled = nn.max_pool(jax.nn.relu(by_averages))
    np.testing.assert_allclose(applied(layers.NormReluPool("running"), x), pooled, rtol=1e-9)


@pytest.mark.parametrize(
    "module",
    [
        models.Conv4(None, filters=2, pooling="stride", training=True),
        models.WideConv4(None, filters=(2, 3), training=True),
        models.ResNet12(None, filters=(2, 3), training=True),
        models.ResNet18(None, filters=(2, 3), training=True),
        models.ViT(None, width=4, depth=1, heads=2, training=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_network_that_trains_pulls_and_others_do_not(module):
    images = jnp.ones((3, 8, 8, 1)) * jnp.arange(3)[:, None, None, None]
    for norm, pulls in (("running", True), ("batch", False)):
        model = with_pull(module.clone(norm=norm))
        params = model.init(KEY, images)
        _, pull = jax.jit(model.apply)(params, images)
        assert (pull > 0) == pulls


def test_no_learner_moves_the_averages_in_a_task():
    model = zoo.build_model("conv4_stride", outputs=3, filters=2, norm="running")
    images, labels = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.arange(3)
    learners = (
        metajax.learners.meta_lstm(
            model, metajax.cross_entropy, learning_rate=0.1, steps=1, units=2
        ),
        metajax.learners.boil(model, metajax.cross_entropy, rule=optax.sgd(0.1), steps=1),
        metajax.learners.warpgrad(model, metajax.cross_entropy, rule=optax.sgd(0.1), steps=1),
    )
    for learner in learners:
        meta = learner.init(KEY, images)
        start = learner.start(meta, KEY)
        fast = jax.jit(learner.adapt)(meta, start, KEY, Batch(images, labels))
        before, moved = (
            state.params.get("model", state.params)["norm0"] for state in (start, fast)
        )
        assert moved["running"] == {"mean": None, "variance": None}
        assert np.abs(moved["scale"] - before["scale"]).max() > 0
