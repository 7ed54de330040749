"""Layers of the networks that are plain functions of a dictionary of parameters: linear layers and norms."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metajax import nn
from metajax.types import Array, Key, Params

Activation = Callable[[Array], Array]

_glorot = jax.nn.initializers.glorot_uniform()


def init_dense(key: Key, before: int, after: int) -> dict[str, Array]:
    """Draws a linear layer by Glorot's uniform distribution; its bias is zero.

    Args:
      key: Random key; consumed.
      before: Width of the inputs.
      after: Width of the outputs.

    Returns:
      Dict of `kernel` [before, after] and `bias` [after].

    Example:
      >>> jax.tree.map(jnp.shape, init_dense(jax.random.key(0), 2, 3))
      {'bias': (3,), 'kernel': (2, 3)}
    """
    return {"kernel": _glorot(key, (before, after)), "bias": jnp.zeros(after)}


def apply_dense(layer: Params, inputs: Array) -> Array:
    """Applies a linear layer.

    Args:
      layer: Dict of `kernel` [D, D'] and `bias` [D'].
      inputs: Float inputs [..., D].

    Returns:
      Float outputs [..., D'].

    Example:
      >>> apply_dense({"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}, jnp.ones((1, 2))).tolist()
      [[3.0]]
    """
    return inputs @ layer["kernel"] + layer["bias"]


def init_norm(width: int) -> dict[str, Array]:
    """Makes a layer norm: scales of one and biases of zero.

    Args:
      width: Width of the inputs.

    Returns:
      Dict of `scale` [width] and `bias` [width].

    Example:
      >>> init_norm(2)["scale"].tolist()
      [1.0, 1.0]
    """
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def apply_norm(layer: Params, inputs: Array, *, epsilon: float = 1e-3) -> Array:
    """Normalizes each vector by its own mean and variance.

    Args:
      layer: Dict of `scale` [D] and `bias` [D].
      inputs: Float inputs [..., D].
      epsilon: Number that is added to the variance.

    Returns:
      Float outputs [..., D].

    Example:
      >>> apply_norm(init_norm(2), jnp.array([[[1.0, 3.0]]]), epsilon=0.0).tolist()
      [[[-1.0, 1.0]]]
    """
    flat = inputs.reshape(-1, inputs.shape[-1])
    normed = nn.layer_norm(flat, layer["scale"], layer["bias"], epsilon=epsilon)
    return normed.reshape(inputs.shape)


def init_layers(key: Key, width: int, hidden: Sequence[int], outputs: int | None) -> dict[str, Any]:
    """Draws the layers `hidden0`, `hidden1` and so on, and the layer `head` if there are outputs.

    Args:
      key: Random key; consumed.
      width: Width of the inputs.
      hidden: Widths of the hidden layers.
      outputs: Width of the head; None leaves it out.

    Returns:
      Dict of linear layers.

    Example:
      >>> sorted(init_layers(jax.random.key(0), 4, (8,), 3))
      ['head', 'hidden0']
    """
    widths = [width, *hidden]
    names = [f"hidden{index}" for index in range(len(hidden))]
    if outputs is not None:
        widths, names = [*widths, outputs], [*names, "head"]
    keys = jax.random.split(key, max(len(names), 1))
    sizes = zip(keys, widths, widths[1:], strict=False)
    return {name: init_dense(*size) for name, size in zip(names, sizes, strict=False)}


def apply_layers(params: Params, inputs: Array, *, activation: Activation = jax.nn.relu) -> Array:
    """Applies the layers of `init_layers`, with an activation after each hidden one.

    Args:
      params: Dict of linear layers; other entries are ignored.
      inputs: Float inputs [..., D].
      activation: Function applied after each hidden layer.

    Returns:
      Outputs of the head, or of the last hidden layer without one; the inputs if there is no layer.

    Example:
      >>> apply_layers({}, jnp.ones((2, 3))).shape
      (2, 3)
    """
    for index in range(sum(name.startswith("hidden") for name in params)):
        inputs = activation(apply_dense(params[f"hidden{index}"], inputs))
    return apply_head(params, inputs)


def apply_head(params: Params, features: Array) -> Array:
    """Applies the layer `head` if there is one.

    Args:
      params: Dict of layers.
      features: Float features [..., D].

    Returns:
      Outputs of the head, or the features.

    Example:
      >>> apply_head({}, jnp.ones((2, 3))).shape
      (2, 3)
    """
    return apply_dense(params["head"], features) if "head" in params else features


def dtype_of(params: Params) -> Any:
    """Finds the floating dtype in which a network computes from integers: that of its parameters.

    Args:
      params: Tree of arrays.

    Returns:
      Common dtype of the floating leaves; JAX's default without any.

    Example:
      >>> dtype_of({"kernel": jnp.ones(2, jnp.bfloat16)})
      dtype(bfloat16)
    """
    floats = [leaf.dtype for leaf in jax.tree.leaves(params)]
    floats = [dtype for dtype in floats if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def roots(counts: Array, dtype: Any) -> Array:
    """Computes square roots of counts; at zero both the root and its derivative are zero.

    Args:
      counts: Counts [...] of any dtype, 0 or more.
      dtype: Floating dtype of the result.

    Returns:
      Float roots [...].

    Example:
      >>> roots(jnp.array([0, 4], jnp.uint8), jnp.float32).tolist()
      [0.0, 2.0]
    """
    counts = counts.astype(dtype)
    return jnp.where(counts > 0, jnp.sqrt(jnp.where(counts > 0, counts, 1)), 0)


def unit(vectors: Array) -> Array:
    """Scales vectors to length one; zeros stay zeros, and have finite derivatives.

    Args:
      vectors: Float vectors [..., D].

    Returns:
      Float vectors [..., D].

    Example:
      >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    # The square root has no derivative at zero, where one replaces it.
    return vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1))
