"""DropBlock, and learners whose networks drop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import models
from metajax.models.dropblock import NOISE, DropBlock
from metajax.types import Batch
from toys import classification_episode

KEY = jax.random.key(0)


def dropped(module, shape, key=KEY):
    return np.asarray(module.apply({}, jnp.ones(shape), rngs={NOISE: key}))


def test_it_drops_whole_blocks_at_the_rate_it_says_and_keeps_the_mean():
    out = dropped(DropBlock(0.2, size=3), (8, 12, 12, 16))
    zero = out == 0
    assert abs(zero.mean() - 0.2) < 0.02
    np.testing.assert_allclose(out.mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(out[~zero], 1 / (1 - zero.mean()), rtol=1e-5)
    # Every zero lies in a block of 3 x 3 zeros, and channels drop apart.
    blocks = np.lib.stride_tricks.sliding_window_view(zero, (3, 3), axis=(1, 2)).all((-2, -1))
    covered = np.zeros_like(zero)
    for down in range(3):
        for across in range(3):
            covered[:, down : down + 10, across : across + 10] |= blocks
    np.testing.assert_array_equal(covered, zero)
    assert (zero[..., 0] != zero[..., 1]).any()


def test_a_block_of_one_is_dropout_and_a_larger_one_is_cut_to_the_map():
    assert abs((dropped(DropBlock(0.3), (16, 8, 8, 16)) == 0).mean() - 0.3) < 0.01
    small = dropped(DropBlock(0.3, size=5), (64, 2, 2, 16)) == 0
    assert abs(small.mean() - 0.3) < 0.05 and (small == small[:, :1, :1]).all()


def test_without_noise_it_is_the_identity_and_a_rate_of_one_is_refused():
    np.testing.assert_array_equal(DropBlock(0.5).apply({}, jnp.ones((1, 2, 2, 1))), 1.0)
    with pytest.raises(ValueError, match=r"rate to drop is 1\.0; use one from 0"):
        DropBlock(1.0)


@functools.cache
def network(drop_rate=0.5):
    # The smallest that is said to drop.
    return functools.partial(
        models.build, "conv4_wide", filters=3, norm="none", drop_rate=drop_rate
    )


def learners():
    def noisy_maml(adjoint="reverse"):
        return lambda noise: metajax.maml(
            network()(outputs=3, noise=noise),
            metajax.cross_entropy,
            rule=optax.sgd(0.1),
            steps=2,
            adjoint=metajax.ADJOINTS[adjoint],
        )

    return {
        "protonet": lambda noise: metajax.protonet(network()(outputs=None, noise=noise), ways=3),
        **{
            f"maml_{name}": noisy_maml(name)
            for name in ("reverse", "remat", "mixed", "recursive", "truncated")
        },
        "imaml": lambda noise: metajax.imaml(
            network()(outputs=3, noise=noise), metajax.cross_entropy, rule=optax.sgd(0.1), steps=2
        ),
    }


@pytest.mark.parametrize("name", learners())
def test_a_task_draws_its_noise_once_and_adjoints_differentiate_through_it(name):
    make = learners()[name]
    episode = jax.tree.map(
        lambda leaf: leaf.reshape(-1, 16, 16, 1) if leaf.ndim == 2 else leaf,
        classification_episode(KEY, size=256),
    )
    keys = jax.random.split(KEY, 2)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), episode)
    learner, loss = metajax.noisy(make), metajax.cross_entropy
    meta = learner.init(KEY, episode.support.inputs)
    objective = metajax.query_objective(learner, loss)
    together, _ = jax.jit(metajax.backprop(objective))(meta, keys, tasks)

    def by_hand(key):
        # As `query_objective` and `start` split it.
        start_key = jax.random.split(key)[0]
        noise, _ = jax.random.split(start_key)
        fixed = metajax.query_objective(make(noise), loss)
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
    make = learners()["protonet"]
    noisy, quiet = metajax.noisy(make), make(None)
    images, labels = jax.random.normal(KEY, (3, 16, 16, 1)), jnp.arange(3)
    meta = noisy.init(KEY, images)

    def answers(learner, key):
        fast = learner.adapt(meta, learner.start(meta, key), key, Batch(images, labels))
        return learner.predict(meta, fast, images)

    without = answers(quiet, KEY)
    np.testing.assert_array_equal(without, answers(quiet, jax.random.key(1)))
    assert not np.allclose(without, answers(noisy, KEY))
