"""The wider network of four blocks that closed-form learners were published with."""

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

    Features are the maps of the last two blocks, flattened and side by side. The last block has no leaky
    ReLU: MetaOptNet's authors could not reproduce the published accuracy with one.

    Attributes:
      outputs: width of the layer "head"; None leaves it out and returns features [B, D].
      filters: channels of each block.
      norm: policy of `layers.Norm`. The convolutions have a bias only under "none".
      implementation: how to compute the convolutions, as in `metajax.nn.conv2d`; None is the quickest known.
      drop_rate: of `DropBlock`, behind the last two blocks; the papers drop single numbers there.
      drop_size: side of its blocks.
      training: as of `layers.Norm`.

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
            to_come = len(self.filters) - 1 - index
            if to_come:
                x = jax.nn.leaky_relu(x, negative_slope=0.1)
            if to_come < 2:
                x = DropBlock(self.drop_rate, self.drop_size, name=f"drop{index}")(x)
                maps.append(x.reshape(x.shape[0], -1))
        return layers.head(self.outputs, jnp.concatenate(maps, axis=1))
