"""Normalized inputs: shifts and scales that are measured once, on demonstrations or other experience."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from metajax.rl.policies import flattened
from metajax.types import Array, Model


class Normalizer(NamedTuple):
    """Shifts and scales features to the mean 0 and deviation 1 that they have in demonstrations.

    Attributes:
      mean: Means [D].
      deviation: Standard deviations [D].
    """

    mean: Array
    deviation: Array

    def __call__(self, values: Array) -> Array:
        """Normalizes features [..., D], and clips them to [-10, 10]."""
        return jnp.clip((values - self.mean) / self.deviation, -10, 10)


def fit_normalizer(values: Array, weights: Array | None = None) -> Normalizer:
    """Measures means and deviations of features.

    Args:
      values: Features [B, D], such as `flattened` observations of demonstrations.
      weights: Weights [B]; rows of weight zero do not count, whatever they hold. None counts all.

    Returns:
      A `Normalizer`. Deviations below 0.001 count as 0.001: a feature that the expert keeps constant would
      otherwise tell the expert from everybody else by rounding errors.

    Example:
      >>> normalize = fit_normalizer(jnp.array([[1.0], [3.0], [jnp.nan]]), jnp.array([1.0, 1.0, 0.0]))
      >>> normalize(jnp.array([[5.0]])).tolist()
      [[3.0]]
    """
    if weights is not None:
        chex.assert_equal_shape([values[:, 0], weights])
    weights = jnp.ones(len(values), values.dtype) if weights is None else weights
    column, total = weights[:, None], jnp.maximum(jnp.sum(weights), 1e-6)
    kept = jnp.where(column > 0, values, 0)
    mean = jnp.sum(kept * column, axis=0) / total
    variance = jnp.sum((kept - mean) ** 2 * column, axis=0) / total
    return Normalizer(mean, jnp.sqrt(jnp.maximum(variance, 1e-6)))


def with_normalizer(model: Model, normalizer: Normalizer) -> Model:
    """Lets a policy see normalized observations.

    Args:
      model: Policy of observations [B, D].
      normalizer: Normalizer of flattened observations.

    Returns:
      A model with the same parameters, from observations [B, ...], an array or a tree of arrays.

    Example:
      >>> model = metajax.rl.mlp_policy(metajax.rl.Discrete(2), hidden=())
      >>> normalizer = metajax.rl.fit_normalizer(jnp.array([[1.0], [3.0]]))
      >>> scaled = with_normalizer(model, normalizer)
      >>> params = scaled.init(jax.random.key(0), jnp.zeros((1, 1)))
      >>> found, same = scaled.apply(params, jnp.array([[4.0]])), model.apply(params, jnp.array([[2.0]]))
      >>> bool(jnp.allclose(found.logits, same.logits))
      True
    """
    return Model(
        lambda key, inputs: model.init(key, normalizer(flattened(inputs))),
        lambda params, inputs: model.apply(params, normalizer(flattened(inputs))),
        model.parts,
    )
