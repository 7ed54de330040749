"""DINOv2, a vision transformer that was trained without labels, as an encoder of photographs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from metajax import nn

Array = jax.Array

_CUBIC = -0.75  # constant of the cubic that PyTorch interpolates by; Keys' own is -0.5

# The layers of a block: our name, and the name in the files of Hugging Face.
_LINEAR = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "widen": "mlp.fc1",
    "narrow": "mlp.fc2",
}
_NORMS = ("norm1", "norm2")
_SCALES = ("layer_scale1", "layer_scale2")


def dinov2_params(arrays: Mapping[str, np.ndarray], *, depth: int, side: int) -> dict[str, Any]:
    """Sorts the arrays of a DINOv2 file into the parameters of `DinoV2`.

    Args:
      arrays: Arrays by their names in the file, such as `encoder.layer.0.mlp.fc1.weight`, with or without the
        prefix `dinov2.`. Kernels are [outputs, inputs].
      depth: Number of blocks.
      side: Side of the pictures in patches; the table of positions is interpolated to it.

    Returns:
      Tree of float32 arrays.

    Raises:
      ValueError: If an array is missing, or the table of positions is of no square.

    Example:
      >>> dinov2_params({}, depth=1, side=16)
      Traceback (most recent call last):
      ValueError: The weights have no array 'embeddings.cls_token' among 0.
    """
    arrays = {name.removeprefix("dinov2."): array for name, array in arrays.items()}

    def take(name: str) -> np.ndarray:
        if name not in arrays:
            raise ValueError(f"The weights have no array {name!r} among {len(arrays)}.")
        return np.asarray(arrays[name], np.float32)

    def layer(name: str, kernel: str) -> dict[str, np.ndarray]:
        weight = take(f"{name}.weight")
        return {kernel: weight.T if kernel == "kernel" else weight, "bias": take(f"{name}.bias")}

    patches = "embeddings.patch_embeddings.projection"
    params: dict[str, Any] = {
        "first": take("embeddings.cls_token").reshape(1, -1),
        "positions": _positions(take("embeddings.position_embeddings"), side),
        "patches": {
            "kernel": take(f"{patches}.weight").transpose(2, 3, 1, 0),
            "bias": take(f"{patches}.bias"),
        },
        "norm": layer("layernorm", "scale"),
    }
    for index in range(depth):
        block = f"encoder.layer.{index}"
        params[f"block{index}"] = {
            **{ours: layer(f"{block}.{theirs}", "kernel") for ours, theirs in _LINEAR.items()},
            **{name: layer(f"{block}.{name}", "scale") for name in _NORMS},
            **{name: take(f"{block}.{name}.lambda1") for name in _SCALES},
        }
    return params


def _positions(table: np.ndarray, side: int) -> np.ndarray:
    """Interpolates the vectors of patches [1, 1 + S * S, E] to other sides; the first token keeps its own."""
    before = round((table.shape[1] - 1) ** 0.5) if table.ndim == 3 else 0
    if not before or table.shape[:2] != (1, 1 + before * before):
        raise ValueError(f"The table of positions has the shape {table.shape}, of no square.")
    first, grid = table[0, :1], table[0, 1:]
    weights = _cubic_weights(before, side)
    grid = grid.reshape(before, before, -1)
    moved = np.einsum("ih,jw,hwe->ije", weights, weights, grid, optimize=True)
    return np.concatenate([first, moved.reshape(side * side, -1)]).astype(np.float32)


def _cubic_weights(before: int, after: int) -> np.ndarray:
    """Returns the weights [after, before] of cubic interpolation, whose borders repeat the last value."""
    weights = np.zeros((after, before))
    places = (np.arange(after) + 0.5) * before / after - 0.5
    for row, place in enumerate(places):
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            far = abs(place - column)
            near = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
            outer = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
            weights[row, np.clip(column, 0, before - 1)] += near if far <= 1 else outer
    return weights


class DinoBlock(linen.Module):
    """Attention among the tokens, then a network of two layers, each with factors and a shortcut.

    Attributes:
      heads: Number of attention heads; divides the features of a token.
      hidden: Width between the two layers.
      epsilon: Number that is added to variances in layer norms.
    """

    heads: int
    hidden: int
    epsilon: float

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps tokens [B, L, E] to the same shape."""
        width = tokens.shape[-1]
        scales = [self.param(name, linen.initializers.ones, (width,)) for name in _SCALES]
        normed = linen.LayerNorm(self.epsilon, name="norm1")(tokens)
        queries, keys, values = (
            linen.Dense(width, name=name)(normed) for name in ("query", "key", "value")
        )
        attend = jax.vmap(lambda q, k, v: nn.attend(q, k, v, heads=self.heads))
        attended = linen.Dense(width, name="out")(attend(queries, keys, values))
        tokens = tokens + attended * scales[0]
        hidden = linen.Dense(self.hidden, name="widen")(
            linen.LayerNorm(self.epsilon, name="norm2")(tokens)
        )
        # Its activation is the exact one; jax.nn.gelu approximates it by default.
        hidden = jax.nn.gelu(hidden, approximate=False)
        return tokens + linen.Dense(width, name="narrow")(hidden) * scales[1]


class DinoV2(linen.Module):
    """A transformer on the patches of a picture and one token more, whose last vector are the features.

    Attributes:
      width: Features E of a token.
      depth: Number of blocks.
      heads: Number of attention heads; divides the width.
      patch: Side of a patch in pixels; divides the side of a picture.
      hidden: Width between the two layers of a block.
      epsilon: Number that is added to variances in layer norms.

    Example:
      >>> network = metajax.models.dinov2.DinoV2(width=8, depth=1, heads=2, patch=4, hidden=16)
      >>> pictures = jnp.zeros((2, 8, 8, 3))
      >>> params = jax.eval_shape(network.init, jax.random.key(0), pictures)
      >>> jax.eval_shape(network.apply, params, pictures).shape
      (2, 8)

    Reference: Oquab et al., 2023 (https://arxiv.org/abs/2304.07193); Touvron et al., 2021
    (https://arxiv.org/abs/2103.17239), eq. 4, for the factors.
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    epsilon: float = 1e-6

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps pictures [B, H, W, 3] to features [B, width]."""
        patches = (self.patch, self.patch)
        tokens = linen.Conv(self.width, patches, patches, padding="VALID", name="patches")(inputs)
        batch = inputs.shape[0]  # which can be a symbol
        tokens = tokens.reshape(batch, -1, self.width)
        first = self.param("first", linen.initializers.zeros, (1, self.width))
        first = jnp.broadcast_to(first, (batch, 1, self.width))
        tokens = jnp.concatenate([first, tokens], axis=1)
        tokens += self.param("positions", linen.initializers.zeros, tokens.shape[1:])
        for index in range(self.depth):
            block = DinoBlock(self.heads, self.hidden, self.epsilon, name=f"block{index}")
            tokens = block(tokens)
        return linen.LayerNorm(self.epsilon, name="norm")(tokens)[:, 0]
