"""What the tests of both kinds of evolution strategies start from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from helpers.toys import point_model
from metajax.types import Batch, Episode


def assert_close(measured, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), measured, expected
    )


def data_of(tree):
    """The tree with numbers for keys, as a checkpoint holds it."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def z_scores(samples, expected):
    error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    return (np.mean(samples, axis=0) - expected) / error


def half_square(outputs, batch):
    return 0.5 * jnp.sum((outputs - batch.targets) ** 2)


def far(outputs, batch):
    return jnp.sum(jnp.abs(outputs - batch.targets)) > 2


CENTER = np.array([3.0, -2.0], np.float32)


def point_episode(key):
    """The support set shows a target, the query set asks for it; targets lie around CENTER."""
    target = CENTER + 0.5 * jax.random.normal(key, (1, 2))
    return Episode(*[Batch(jnp.zeros((1, 1)), target)] * 2)


def sample(data, key):
    del data
    return point_episode(key)


@functools.partial(jax.jit, static_argnums=1)
def offers(step, num_tasks):
    return metajax.draw_tasks(sample, None, jax.random.key(9), step, jnp.arange(num_tasks))


def points(steps=1):
    """A learner that moves a point towards the target, and its start."""
    learner = metajax.maml(point_model(2), half_square, rule=optax.adam(0.1), steps=steps)
    return learner, learner.init(jax.random.key(2), jnp.zeros((1, 1)))
