"""The relation network's second module, which scores pairs of a class and a query."""

import jax
from flax import linen

from metajax import nn
from metajax.models import layers

Array = jax.Array


class RelationModule(linen.Module):
    """Two blocks of convolution, norm, ReLU and max-pool, then a hidden layer of 8 and the logit of a score.

    Attributes:
      filters: Channels of both blocks.
      norm: Policy of `layers.Norm`.
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.

    Reference: Sung et al., 2018 (https://arxiv.org/abs/1711.06025), figure 2.
    """

    filters: int = 64
    norm: str = "batch"
    implementation: str | nn.Implementations | None = None

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps pairs [B, H, W, C], the concatenated features of class and query, to logits [B, 1]."""
        layers.check_images(inputs, 4, "RelationModule")
        x = inputs
        for index in range(2):
            x = layers.Conv(
                self.filters,
                use_bias=self.norm == "none",
                implementation=self.implementation,
                name=f"conv{index}",
            )(x)
            x = layers.NormReluPool(self.norm, name=f"norm{index}")(x)
        x = linen.Dense(8, kernel_init=layers.glorot, name="hidden")(x.reshape(x.shape[0], -1))
        return layers.head(1, jax.nn.relu(x))
