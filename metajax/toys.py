"""Small models and tasks for examples and tests, which need no data and run in milliseconds."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Episode, Key, Model


def toy_model(outputs: int | None, *, features: int = 8) -> Model:
    """Makes a network of two layers: a tanh layer and a linear layer named `head`.

    Args:
      outputs: Width of the head; None leaves the head out, for learners that take an encoder.
      features: Width D of the hidden layer.

    Returns:
      A model from inputs [B, D'] to outputs [B, outputs], or to features [B, D].

    Example:
      >>> model = toy_model(3)
      >>> params = model.init(jax.random.key(0), jnp.zeros((5, 2)))
      >>> model.apply(params, jnp.zeros((5, 2))).shape
      (5, 3)
    """

    def init(key: Key, inputs: Array) -> dict[str, Any]:
        body_key, head_key = jax.random.split(key)
        width = inputs.shape[-1]
        params: dict[str, Any] = {
            "body": jax.random.normal(body_key, (width, features)) / jnp.sqrt(width)
        }
        if outputs is not None:
            kernel = jax.random.normal(head_key, (features, outputs)) / jnp.sqrt(features)
            params["head"] = {"kernel": kernel, "bias": jnp.zeros(outputs)}
        return params

    def apply(params: dict, inputs: Array) -> Array:
        hidden = jnp.tanh(inputs @ params["body"])
        if outputs is None:
            return hidden
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    return Model(init, apply)


def toy_episode(
    key: Key, *, ways: int = 3, shots: int = 2, queries: int = 4, features: int = 2
) -> Episode:
    """Draws a classification task: each class is a cloud of points around a random center.

    Args:
      key: Random key; consumed.
      ways: Number of classes N.
      shots: Number of support examples K per class.
      queries: Number of query examples Q per class.
      features: Number of features D of an input.

    Returns:
      An episode of support inputs [N K, D] and query inputs [N Q, D] with labels in [0, N).

    Example:
      >>> episode = toy_episode(jax.random.key(0))
      >>> episode.support.inputs.shape, episode.query.targets.shape
      ((6, 2), (12,))
    """
    center_key, support_key, query_key = jax.random.split(key, 3)
    centers = 3 * jax.random.normal(center_key, (ways, features))

    def draw(key: Key, examples: int) -> Batch:
        labels = jnp.repeat(jnp.arange(ways), examples)
        noise = jax.random.normal(key, (ways * examples, features))
        return Batch(centers[labels] + noise / 2, labels)

    return Episode(draw(support_key, shots), draw(query_key, queries))
