"""Small models, episodes and data that tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.data.images import LabelledImages
from metajax.inner.rules.base import Rule
from metajax.nn import batch_norm, conv2d
from metajax.types import Batch, Episode, Model


def linear_model(features: int, outputs: int) -> Model:
    """Makes a tanh layer and a linear head named `head`, without biases; it has second derivatives."""

    def init(key, inputs):
        body_key, head_key = jax.random.split(key)
        dtype = inputs.dtype
        return {
            "body": jax.random.normal(body_key, (inputs.shape[-1], features), dtype) / 2,
            "head": {"kernel": jax.random.normal(head_key, (features, outputs), dtype) / 2},
        }

    def apply(params, inputs):
        return jnp.tanh(inputs @ params["body"]) @ params["head"]["kernel"]

    return Model(init, apply)


def normed_model(features: int, outputs: int | None) -> Model:
    """As `linear_model`, with the scale of a norm and a bias; without its head if outputs is None."""

    def init(key, inputs):
        body_key, head_key = jax.random.split(key)
        dtype = inputs.dtype
        params = {
            "body": jax.random.normal(body_key, (inputs.shape[-1], features), dtype) / 2,
            "norm": {"scale": jnp.ones(features, dtype)},
        }
        if outputs is not None:
            params["head"] = {
                "kernel": jax.random.normal(head_key, (features, outputs), dtype) / 2,
                "bias": jnp.zeros(outputs, dtype),
            }
        return params

    def apply(params, inputs):
        hidden = jnp.tanh(inputs @ params["body"] * params["norm"]["scale"])
        if outputs is None:
            return hidden
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    return Model(init, apply)


def batch_normed_model(outputs: int | None) -> Model:
    """A linear layer, batch norm, ReLU and a linear head; without it if outputs is None."""

    def init(key, inputs):
        keys = jax.random.split(key)
        params = {
            "body": jax.random.normal(keys[0], (inputs.shape[-1], 5), inputs.dtype) / 2,
            "norm": {"scale": jnp.ones(5, inputs.dtype), "bias": jnp.zeros(5, inputs.dtype)},
        }
        if outputs is not None:
            params["head"] = {
                "kernel": jax.random.normal(keys[1], (5, outputs), inputs.dtype) / 2,
                "bias": jnp.zeros(outputs, inputs.dtype),
            }
        return params

    def apply(params, inputs):
        hidden = jax.nn.relu(batch_norm(inputs @ params["body"], **params["norm"]))
        if outputs is None:
            return hidden
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    return Model(init, apply)


def conv_model(side: int, outputs: int, *, implementation: str | None) -> Model:
    """A convolution of flattened images, tanh, and a linear head; `implementation` as of `nn.conv2d`."""
    filters = 2

    def init(key, inputs):
        body_key, head_key = jax.random.split(key)
        dtype, features = inputs.dtype, side**2 * filters
        return {
            "body": jax.random.normal(body_key, (3, 3, 1, filters), dtype) / 2,
            "head": {
                "kernel": jax.random.normal(head_key, (features, outputs), dtype) / 2,
                "bias": jnp.zeros(outputs, dtype),
            },
        }

    def apply(params, inputs):
        images = inputs.reshape(-1, side, side, 1)
        features = jnp.tanh(conv2d(images, params["body"], implementation=implementation))
        return features.reshape(len(inputs), -1) @ params["head"]["kernel"] + params["head"]["bias"]

    return Model(init, apply)


def point_model(size: int) -> Model:
    """A model that ignores its inputs: its outputs are its parameters, [1, size]."""
    return Model(
        init=lambda key, inputs: jax.random.normal(key, (size,), inputs.dtype),
        apply=lambda params, inputs: jnp.broadcast_to(params, (inputs.shape[0], size)),
    )


def classification_episode(
    key, *, ways=3, shots=2, queries=2, size=4, dtype=jnp.float32
) -> Episode:
    """Gaussian clusters, one a class."""
    center_key, noise_key = jax.random.split(key)
    centers = jax.random.normal(center_key, (ways, 1, size), dtype)
    inputs = centers + 0.3 * jax.random.normal(noise_key, (ways, shots + queries, size), dtype)
    labels = jnp.broadcast_to(jnp.arange(ways)[:, None], inputs.shape[:2])

    def batch(part):
        return Batch(inputs[:, part].reshape(-1, size), labels[:, part].reshape(-1))

    return Episode(batch(slice(None, shots)), batch(slice(shots, None)))


def as_numbers(tree):
    """The tree with its random keys as the numbers behind them, which numpy can compare."""

    def numbers(leaf):
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(numbers, tree)


def labelled_images(*, classes=12, size=8, channels=1, seed=0, fewest=6, most=9) -> LabelledImages:
    """Images whose every pixel tells class and number: 20 * class + number; ragged classes."""
    counts = np.random.default_rng(seed).integers(fewest, most + 1, classes)
    labels = np.repeat(np.arange(classes), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    images = np.broadcast_to(
        (20 * labels + numbers)[:, None, None, None], (len(labels), size, size, channels)
    )
    return LabelledImages.from_labels(
        images.astype(np.uint8), labels, [f"class {i}" for i in range(classes)]
    )


def bound(rule: Rule, learned) -> optax.GradientTransformation:
    """The transformation of a rule with these values of what it learns."""
    return optax.GradientTransformation(rule.start, functools.partial(rule.update, learned))
