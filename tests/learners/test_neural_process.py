"""Neural processes, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from helpers.toys import normed_model
from metajax.learners.sequence.neural_process import (
    anp,
    cnp,
    gaussian_nll,
    log_likelihood,
    mean_and_std,
    mean_error,
    mixture,
)
from metajax.types import Batch

KEY = jax.random.key(0)


def pixels(key, count):
    """Draws points of the plane with three targets each."""
    x = jax.random.uniform(key, (count, 2), jnp.float64, -1, 1)
    return Batch(x, jnp.stack([jnp.sin(3 * x[:, 0]), x[:, 1] ** 2, x.prod(1)], axis=1))


def points(key, count, dtype=jnp.float64):
    x = jax.random.uniform(key, (count, 1), dtype, -3, 3)
    return Batch(x, jnp.sin(x))


@pytest.fixture(params=["cnp", "anp"])
def make(request):
    def make(values, outputs=None):
        networks = normed_model(8, None), normed_model(8, outputs or 2 * values)
        if request.param == "cnp":
            return cnp(*networks, num_outputs=values)
        return anp(*networks, normed_model(6, None), num_outputs=values, heads=2)

    return make


def answers(learner, meta, batches, queries):
    like = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    fast = learner.start(meta, KEY, like)
    for batch in batches:
        fast = learner.adapt(meta, fast, KEY, batch)
    return learner.predict(meta, fast, queries)


def test_order_and_pieces_of_the_context_change_nothing(float64, make):
    batch, queries, learner = pixels(KEY, 7), pixels(jax.random.key(1), 5).inputs, make(values=3)
    meta = learner.init(KEY, batch.inputs)
    whole = answers(learner, meta, [batch], queries)
    assert whole.shape == (5, 6)
    order = jnp.array([3, 0, 6, 1, 5, 2, 4])
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    pieces = [jax.tree.map(lambda leaf, p=part: leaf[p], batch) for part in (slice(3), slice(3, 7))]
    np.testing.assert_allclose(answers(learner, meta, [shuffled], queries), whole, rtol=1e-9)
    np.testing.assert_allclose(answers(learner, meta, pieces, queries), whole, rtol=1e-9)
    assert not np.allclose(answers(learner, meta, pieces[:1], queries), whole)


def test_attention_is_its_equations(float64):
    learner = anp(normed_model(8, None), normed_model(8, 2), normed_model(6, None), heads=2)
    batch = points(KEY, 7)
    meta = learner.init(KEY, batch.inputs)
    fast = learner.adapt(meta, learner.start(meta, KEY, batch), KEY, batch)
    params, for_queries, for_keys, for_values = meta.attention
    query = batch.inputs[:1] + 0.1
    embedded = [normed_model(6, None).apply(params, x) for x in (query, batch.inputs)]
    codes = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k = embedded[0] @ for_queries[:, head], embedded[1] @ for_keys[:, head]
        codes.append(jax.nn.softmax(q @ k.T / 2) @ (fast.made @ for_values[:, head]))
    read = jnp.concatenate([query, *codes], axis=1)
    expected = normed_model(8, 2).apply(meta.decoder, read)
    np.testing.assert_allclose(learner.predict(meta, fast, query), expected, rtol=1e-9)


def test_the_loss_is_the_density_of_the_normal_distribution(float64):
    outputs = jax.random.normal(KEY, (6, 6))
    batch = Batch(None, jax.random.normal(jax.random.key(1), (6, 3)))
    mean, std = mean_and_std(outputs)
    density = jax.scipy.stats.norm.logpdf(batch.targets, mean, std).sum(1)
    np.testing.assert_allclose(gaussian_nll(outputs, batch), -density.mean(), rtol=1e-9)
    np.testing.assert_allclose(log_likelihood(outputs, batch), density.mean(), rtol=1e-9)
    weighted = batch._replace(weights=jnp.array([1.0, 0, 0, 2, 0, 0]))
    expected = (density[0] + 2 * density[3]) / 3
    np.testing.assert_allclose(log_likelihood(outputs, weighted), expected, rtol=1e-9)
    assert mean_error(outputs, batch) == metajax.squared_error(mean, batch)
    assert (std > 0.01).all()


def test_a_mixture_has_the_moments_of_its_members(float64):
    outputs = jax.random.normal(KEY, (3, 5, 2))
    mean, std = mean_and_std(outputs)
    mixed_mean, mixed_std = mean_and_std(mixture(outputs))
    np.testing.assert_allclose(mixed_mean, mean.mean(0), rtol=1e-9)
    variance = (std**2 + mean**2).mean(0) - mean.mean(0) ** 2
    np.testing.assert_allclose(mixed_std**2, variance, rtol=1e-9)
    np.testing.assert_allclose(mixture(outputs[:1]), outputs[0], rtol=1e-6)


def test_heads_that_do_not_divide_are_refused():
    learner = anp(normed_model(8, None), normed_model(8, 2), normed_model(6, None), heads=3)
    with pytest.raises(ValueError, match="3 heads do not divide codes of 8"):
        learner.init(KEY, jnp.zeros((2, 1)))


def test_a_decoder_of_another_size_is_refused(make):
    with pytest.raises(ValueError, match="gives 2 numbers, and 3 values have 6"):
        make(values=3, outputs=2).init(KEY, jnp.zeros((4, 2)))


def test_targets_of_another_shape_than_the_means_are_refused():
    for targets in (jnp.zeros(4), jnp.zeros((4, 3))):
        with pytest.raises(ValueError, match=r"outputs \(4, 2\) are of values \(4, 1\)"):
            metajax.learners.gaussian_nll(jnp.zeros((4, 2)), metajax.Batch(None, targets))
