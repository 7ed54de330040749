"""Losses against values in closed form, and padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from metajax.losses import accuracy, cross_entropy, squared_error
from metajax.types import Batch


def batch(targets, weights=None):
    """Makes a batch without inputs."""
    return Batch(None, jnp.asarray(targets), None if weights is None else jnp.asarray(weights))


def test_cross_entropy_is_the_mean_negative_log_probability():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]))
    expected = -(np.log(0.7) + np.log(0.4)) / 2
    np.testing.assert_allclose(cross_entropy(logits, batch([0, 2])), expected, rtol=1e-6)


def test_accuracy_counts_the_largest_logit():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    assert accuracy(logits, batch([0, 1, 1, 1])) == 0.75


def test_squared_error_averages_examples_and_dimensions():
    outputs, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(squared_error(outputs, batch(targets)), (1 + 4 + 0 + 16) / 4)


@pytest.mark.parametrize("metric", [cross_entropy, accuracy])
def test_weight_zero_leaves_an_example_out(metric):
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [9.0, -9.0]])
    whole = metric(logits[:2], batch([0, 0]))
    padded = metric(logits, batch([0, 0, 1], [1.0, 1.0, 0.0]))
    np.testing.assert_allclose(padded, whole, rtol=1e-6)


def test_squared_error_refuses_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        squared_error(jnp.ones((3, 1)), batch(jnp.ones(3)))


def test_nan_logits_are_never_right():
    logits = jnp.array([[jnp.nan, jnp.nan], [1.0, jnp.nan], [-jnp.inf, 0.0]])
    np.testing.assert_allclose(accuracy(logits, batch([0, 1, 1])), 1 / 3)
