"""WideConv4, the wider network of four blocks that closed-form learners were published with."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen

from metajax import nn
from metajax.models import layers
from metajax.models.dropblock import DropBlock

Array = jax.Array


class WideConv4(linen.Module):
    """Four blocks of 3 x 3 convolution, norm, 2 x 2 max-pool and leaky ReLU, then a linear head.

    Features are the maps of the last two blocks, flattened and concatenated. The last block has no leaky
    ReLU: MetaOptNet's authors could not reproduce the published accuracy with one.

    Attributes:
      outputs: Width of the layer "head"; None leaves it out and returns features [B, D].
      filters: Channels of each block.
      norm: Policy of `layers.Norm`. The convolutions have a bias only under "none".
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.
      drop_rate: Rate of `DropBlock`, after the last two blocks; the papers drop single numbers there.
      drop_size: Side of the dropped blocks.
      training: Whether norms train their running averages, as in `layers.Norm`.

    Example:
      >>> model = metajax.models.from_flax(WideConv4(5, filters=(8, 8, 8, 8)))
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 5)

    Reference: Bertinetto et al., 2019 (https://arxiv.org/abs/1805.08136), section 4 (R2D2); the order within
    a block, Lee et al., 2019 (https://arxiv.org/abs/1904.03758), in their code.
    """

    outputs: int | None
    filters: Sequence[int] = (96, 192, 384, 512)
    norm: str = "batch"
    implementation: str | nn.Implementations | None = None
    drop_rate: float = 0.0
    drop_size: int = 5
    training: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        layers.one_of("Norm", self.norm, layers.NORMS)
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to outputs [B, outputs]."""
        layers.check_images(inputs, 2 ** len(self.filters), "WideConv4")
        x, maps = inputs, []
        for index, filters in enumerate(self.filters):
            x = layers.Conv(
                filters,
                use_bias=self.norm == "none",
                implementation=self.implementation,
                name=f"conv{index}",
            )(x)
            x = layers.Norm(self.norm, training=self.training, name=f"norm{index}")(x)
            x = nn.max_pool(x)
            remaining = len(self.filters) - 1 - index
            if remaining:
                x = jax.nn.leaky_relu(x, negative_slope=0.1)
            if remaining < 2:
                x = DropBlock(self.drop_rate, self.drop_size, name=f"drop{index}")(x)
                maps.append(x.reshape(x.shape[0], -1))
        return layers.head(self.outputs, jnp.concatenate(maps, axis=1))
