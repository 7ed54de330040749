"""ViT, a small vision transformer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from metajax import nn
from metajax.models import layers

Array = jax.Array


class TransformerBlock(linen.Module):
    """Attention among the tokens of an image, then a network of two layers on each, both with a shortcut.

    Attributes:
      heads: Number of attention heads; divides the features E of a token.
      norm: Policy of `layers.Norm`, before both.
      training: Whether norms train their running averages, as in `layers.Norm`.
    """

    heads: int
    norm: str = "layer"
    training: bool = False

    @linen.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps tokens [B, L, E] to the same shape."""
        width = tokens.shape[-1]
        normed = normed_tokens(self, tokens, "norm0")
        queries, keys, values = (
            linen.Dense(width, kernel_init=layers.glorot, name=name)(normed)
            for name in ("query", "key", "value")
        )
        attend = jax.vmap(lambda q, k, v: nn.attend(q, k, v, heads=self.heads))
        attended = attend(queries, keys, values)
        tokens = tokens + linen.Dense(width, kernel_init=layers.glorot, name="out")(attended)
        hidden = linen.Dense(4 * width, kernel_init=layers.glorot, name="widen")(
            normed_tokens(self, tokens, "norm1")
        )
        return tokens + linen.Dense(width, kernel_init=layers.glorot, name="narrow")(
            jax.nn.gelu(hidden)
        )


class ViT(linen.Module):
    """Patches as tokens, transformer blocks, the mean over tokens, then a linear head.

    Attributes:
      outputs: Width of the layer "head"; None leaves it out and returns features [B, width].
      width: Features E of a token.
      depth: Number of blocks.
      heads: Number of attention heads; divides the width.
      patch: Side of a patch in pixels; divides the sides of an image.
      norm: Policy of `layers.Norm`, to which each token is an example; papers use "layer".
      implementation: Implementation of the convolution that makes tokens, as in `metajax.nn.conv2d`.
      training: Whether norms train their running averages, as in `layers.Norm`.

    Example:
      >>> model = metajax.models.from_flax(ViT(5, width=8, depth=1))
      >>> images = jnp.zeros((2, 8, 8, 3))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 5)

    Reference: Dosovitskiy et al., 2021 (https://arxiv.org/abs/2010.11929), eq. 1 to 4; the mean instead of a
    class token, Beyer et al., 2022 (https://arxiv.org/abs/2205.01580).
    """

    outputs: int | None
    width: int = 128
    depth: int = 6
    heads: int = 4
    patch: int = 4
    norm: str = "layer"
    implementation: str | nn.Implementations | None = None
    training: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        layers.one_of("Norm", self.norm, layers.NORMS)
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a token of {self.width}; use a multiple of "
                f"{self.heads}."
            )
        if self.patch < 1:
            raise ValueError(f"The side of a patch is {self.patch}; use 1 or more.")
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to outputs [B, outputs]."""
        layers.check_images(inputs, 1, "ViT")
        batch, height, width, _ = inputs.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"Patches of {self.patch} pixels do not divide images of {height} x {width}; use a divisor."
            )
        side = (self.patch, self.patch)
        patches = layers.Conv(
            self.width,
            window=side,
            strides=side,
            kernel_init=linen.initializers.lecun_normal(),  # tokens as large as the pixels
            implementation=self.implementation,
            name="patches",
        )(inputs)
        tokens = patches.reshape(batch, -1, self.width)
        positions = linen.initializers.normal(0.02)
        tokens += self.param("positions", positions, tokens.shape[1:], jnp.float32)
        for index in range(self.depth):
            tokens = TransformerBlock(
                self.heads, norm=self.norm, training=self.training, name=f"block{index}"
            )(tokens)
        return layers.head(self.outputs, normed_tokens(self, tokens, "norm").mean(axis=1))


def normed_tokens(module: Any, tokens: Array, name: str) -> Array:
    """Normalizes tokens by the module's policy, each token as an example.

    Args:
      module: Flax module with fields `norm` and `training`.
      tokens: Float tokens [B, L, E].
      name: Name of the layer.

    Returns:
      Float tokens [B, L, E].
    """
    norm = layers.Norm(module.norm, training=module.training, name=name)
    return norm(tokens.reshape(-1, tokens.shape[-1])).reshape(tokens.shape)
