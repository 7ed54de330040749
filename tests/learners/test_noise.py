"""Learners whose networks have dropout in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import metajax
from helpers.toys import classification_episode, normed_model
from metajax import models, zoo
from metajax.learners.gradient.latent import leo_penalty
from metajax.learners.wrappers.dropout import dropout_penalty
from metajax.types import Batch, Model

KEY = jax.random.key(0)


def network(outputs, noise):
    """Builds the smallest registered network with dropout."""
    options = {"filters": 3, "norm": "none", "drop_rate": 0.5}
    return zoo.build_model("conv4_wide", outputs=outputs, noise=noise, **options)


def toy(outputs, noise):
    """Makes an encoder, or a classifier, that drops half of its inputs."""
    model = normed_model(5, outputs)

    def apply(params, inputs):
        kept = 1.0 if noise is None else jax.random.bernoulli(noise, 0.5, inputs.shape)
        return model.apply(params, inputs * kept)

    return Model(model.init, apply)


def noisy_maml(build, adjoint):
    return lambda noise: metajax.maml(
        build(3, noise),
        metajax.cross_entropy,
        rule=optax.sgd(0.1),
        steps=2,
        adjoint=metajax.ADJOINTS[adjoint],
    )


# Adjoints on the toy: the network's layers take most of the time, and have the noise of one key in all.
LEARNERS = {
    "protonet": (network, lambda noise: metajax.protonet(network(None, noise), ways=3)),
    "maml_reverse": (network, noisy_maml(network, "reverse")),
    **{
        f"maml_{adjoint}": (toy, noisy_maml(toy, adjoint))
        for adjoint in ("remat", "mixed", "recursive", "truncated")
    },
    "imaml": (
        toy,
        lambda noise: metajax.imaml(
            toy(3, noise), metajax.cross_entropy, rule=optax.sgd(0.1), steps=2
        ),
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_task_draws_its_noise_once_and_adjoints_differentiate_through_it(name):
    build, make = LEARNERS[name]
    episode = classification_episode(KEY, size=256 if build is network else 4)
    if build is network:
        episode = jax.tree.map(
            lambda leaf: leaf.reshape(-1, 16, 16, 1) if leaf.ndim == 2 else leaf, episode
        )
    keys = jax.random.split(KEY, 2)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), episode)
    learner, loss = metajax.learners.with_dropout(make), metajax.cross_entropy
    meta = jax.jit(learner.init)(KEY, episode.support.inputs)
    objective = metajax.query_objective(learner, loss)
    together, _ = jax.jit(metajax.backprop(objective))(meta, keys, tasks)

    def by_hand(key):
        # The splits of `query_objective` and `start`.
        start_key = jax.random.split(key)[0]
        noise, _ = jax.random.split(start_key)
        reads, answers = (make(jax.random.fold_in(noise, role)) for role in range(2))
        fixed = metajax.query_objective(reads._replace(predict=answers.predict), loss)
        return jax.grad(lambda meta: fixed(meta, key, episode)[0])(meta)

    each = [jax.jit(by_hand)(key) for key in keys]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 2, *each)
    for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max() + 1e-8)
    first = jax.tree.leaves(each[0])
    assert any(
        np.abs(a - b).max() > 1e-6 for a, b in zip(first, jax.tree.leaves(each[1]), strict=True)
    )


def test_its_test_is_without_noise_on_the_same_parameters():
    _, make = LEARNERS["protonet"]
    noisy, quiet = metajax.learners.with_dropout(make), make(None)
    images = jax.random.normal(KEY, (3, 16, 16, 1))
    support = Batch(images, jnp.arange(3))
    meta = noisy.init(KEY, images)

    def answers(learner, key):
        fast = learner.adapt(meta, learner.start(meta, key, support), key, support)
        return learner.predict(meta, fast, images)

    without = answers(quiet, KEY)
    np.testing.assert_array_equal(without, answers(quiet, jax.random.key(1)))
    assert not np.allclose(without, answers(noisy, KEY))


TOYS = {
    "protonet": lambda noise: metajax.protonet(toy(None, noise), ways=3),
    "anil": lambda noise: metajax.anil(
        toy(3, noise), metajax.cross_entropy, rule=optax.sgd(0.4), steps=2
    ),
    "leo": lambda noise: metajax.learners.leo(
        toy(None, noise), metajax.cross_entropy, ways=3, latent=3, learning_rate=0.1, steps=2
    ),
}


def test_an_example_and_a_query_in_the_same_place_are_not_alike_by_what_is_dropped():
    identity = lambda noise: Model(  # noqa: E731
        lambda key, inputs: (),
        lambda params, inputs: inputs * jax.random.bernoulli(noise, 0.5, inputs.shape),
    )
    learner = metajax.learners.with_dropout(
        lambda noise: metajax.protonet(identity(KEY if noise is None else noise), ways=3)
    )
    ones = jnp.ones((3, 64))
    meta = learner.init(KEY, ones)
    support = Batch(ones, jnp.arange(3))
    fast = learner.adapt(meta, learner.start(meta, KEY, support), KEY, support)
    logits = np.asarray(learner.predict(meta, fast, ones))
    # Two masks of 64 entries, each kept with probability 1/2, differ in about 32, for every class.
    assert np.all((logits < -16) & (logits > -48))


@pytest.mark.parametrize("name", TOYS)
def test_jit_is_eager_and_vmap_a_loop_and_keys_decide(name):
    learner = metajax.learners.with_dropout(TOYS[name])
    episode = classification_episode(KEY)
    meta = learner.init(KEY, episode.support.inputs)
    penalty = dropout_penalty(leo_penalty) if name == "leo" else None
    objective = metajax.query_objective(
        learner, metajax.Scoring(metajax.cross_entropy, penalty=penalty)
    )
    keys = jax.random.split(KEY, 3)
    eager = [float(objective(meta, key, episode)[0]) for key in keys]
    together = jax.jit(jax.vmap(lambda key: objective(meta, key, episode)[0]))(keys)
    np.testing.assert_allclose(together, eager, rtol=1e-4)
    assert len(set(eager)) == 3


@pytest.mark.parametrize("outer", ["reptile", "multi_step", "pes"])
def test_every_estimator_takes_it(outer):
    learner = metajax.learners.with_dropout(TOYS["anil"])
    episode = classification_episode(KEY)
    meta = learner.init(KEY, episode.support.inputs)
    keys = jax.random.split(KEY, 2)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), episode)
    loss = metajax.cross_entropy
    if outer == "pes":
        grad = metajax.metagrads.pes(learner, loss, sigma=0.1, unrolls=2)
        memory = jax.jit(grad.init)(meta, keys, tasks)
        update = jax.jit(grad.update)
        _, memory, _ = update(meta, memory, keys, tasks)
        assert memory.fasts.noise.shape == (2, 2), "of each particle of each task"
        grads, *_ = update(meta, memory, keys, tasks)
    elif outer == "reptile":
        grads, _ = jax.jit(metajax.reptile(learner, loss))(meta, keys, tasks)
    else:
        objective = metajax.multi_step_objective(learner, loss, weights=jnp.full(2, 0.5))
        grads, _ = jax.jit(metajax.backprop(objective))(meta, keys, tasks)
    leaves = jax.tree.leaves(grads)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(np.any(leaf) for leaf in leaves)


class Dropping(linen.Module):
    """Drops half of its inputs."""

    @linen.compact
    def __call__(self, x, deterministic):
        dropped = linen.Dropout(0.5)(x, deterministic=deterministic)
        return linen.Dense(3, name="head")(dropped)


def test_linen_dropout_draws_one_mask_a_task():
    masks = []

    def loss(outputs, batch):
        return jnp.mean(jnp.square(outputs))

    def make(noise):
        model = models.from_flax(Dropping(), noise=noise, deterministic=noise is None)
        return metajax.maml(model, loss, rule=optax.sgd(0.1), steps=3)

    learner, ones = metajax.learners.with_dropout(make), jnp.ones((4, 16))
    meta, support = learner.init(KEY, ones), Batch(ones, jnp.zeros(4, jnp.int32))
    for key in jax.random.split(KEY, 2):
        start = learner.start(meta, key)
        fast = learner.adapt(meta, start, KEY, support)
        # By hand, with the mask of the task: rows of the kernel move only where their input is kept.
        model = models.from_flax(
            Dropping(), noise=jax.random.fold_in(start.noise, 0), deterministic=False
        )
        params = meta.params
        for _ in range(3):
            grads = jax.grad(lambda p, m=model: loss(m.apply(p, ones), None))(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            fast.fast.params,
            params,
        )
        masks.append(np.asarray(fast.fast.params["head"]["kernel"]))
    assert np.abs(masks[0] - masks[1]).max() > 1e-3, "tasks have masks of their own"
    still = make(None)
    quiet = [still.predict(meta, still.start(meta, key), ones) for key in jax.random.split(KEY, 2)]
    np.testing.assert_array_equal(*quiet)
