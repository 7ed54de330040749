"""A small pre-norm transformer that classifies sequences, as plain JAX functions."""

import jax
import jax.numpy as jnp

from benchmarks.harness.cases import HEADS, LAYERS, NORM_EPSILON

Array = jax.Array


def apply(params: dict, inputs: Array) -> Array:
    """Computes logits.

    Args:
      params: Parameters of `cases.make_parameters`.
      inputs: Sequences [B, L, D].

    Returns:
      Logits [B, N].
    """
    x = _dense(params["embed"], inputs) + params["positions"]
    for index in range(LAYERS):
        block = params[f"block{index}"]
        x = x + _attention(block, _layer_norm(block["attention_norm"], x))
        hidden = jax.nn.gelu(_dense(block["up"], _layer_norm(block["mlp_norm"], x)))
        x = x + _dense(block["down"], hidden)
    return _dense(params["head"], jnp.mean(_layer_norm(params["norm"], x), axis=1))


def _attention(block: dict, x: Array) -> Array:
    """Computes multi-head self-attention."""
    batch, length, width = x.shape
    qkv = _dense(block["qkv"], x).reshape(batch, length, 3, HEADS, width // HEADS)
    query, key, value = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key) / (width // HEADS) ** 0.5
    mixed = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), value)
    return _dense(block["out"], mixed.reshape(batch, length, width))


def _dense(params: dict, x: Array) -> Array:
    """Applies a linear layer."""
    return x @ params["kernel"] + params["bias"]


def _layer_norm(params: dict, x: Array) -> Array:
    """Applies a layer norm."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normal = centered * jax.lax.rsqrt(variance + NORM_EPSILON["transformer"])
    return normal * params["scale"] + params["bias"]
