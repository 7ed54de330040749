"""The twelve-layer residual network of the few-shot literature."""

import functools
from collections.abc import Sequence

import jax
from flax import linen

from metajax import nn
from metajax.models import layers
from metajax.models.dropblock import DropBlock

Array = jax.Array


class ResidualBlock(linen.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 shortcut, a 2 x 2 max-pool, then `DropBlock`.

    Attributes:
      filters: channels of all its convolutions.
      norm: policy of `layers.Norm`.
      implementation: how to compute the convolutions, as in `metajax.nn.conv2d`.
      drop_rate, drop_size: of `DropBlock`.
      training: as of `layers.Norm`.
    """

    filters: int
    norm: str = "batch"
    implementation: str | nn.Implementations | None = None
    drop_rate: float = 0.0
    drop_size: int = 1
    training: bool = False

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, H // 2, W // 2, filters]."""
        activation = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)
        x = inputs
        for index in range(3):
            x = activation(x) if index else x
            x = layers.normed_conv(self, x, self.filters, window=3, suffix=str(index))
        shortcut = layers.normed_conv(self, inputs, self.filters, window=1, suffix="_shortcut")
        x = nn.max_pool(activation(x + shortcut))
        return DropBlock(self.drop_rate, self.drop_size, name="drop")(x)


class ResNet12(linen.Module):
    """Four residual blocks, the mean over positions, then a linear head.

    Kernels start from He's normal distribution over the fan-out, as in MetaOptNet's code, and
    biases at zero.

    Attributes:
      outputs: width of the layer "head"; None leaves it out and returns features [B, filters[-1]].
      filters: channels of each block; each halves the image, cropping the odd row.
      norm: policy of `layers.Norm`. The convolutions have a bias only under "none".
      implementation: how to compute the convolutions, as in `metajax.nn.conv2d`; None is the quickest known.
      drop_rate: of `DropBlock` behind each block, in the first ones of single numbers.
      drop_size: side of what it drops behind the last two blocks.
      training: as of `layers.Norm`.

    Reference: Lee et al., 2019 (https://arxiv.org/abs/1904.03758), section 4.1; Oreshkin et al.,
    2018 (https://arxiv.org/abs/1805.10123), with 64, 128, 256 and 512 filters.
    """

    outputs: int | None
    filters: Sequence[int] = (64, 160, 320, 640)
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
        layers.check_images(inputs, 2 ** len(self.filters), "ResNet12")
        x = inputs
        for index, filters in enumerate(self.filters):
            block = ResidualBlock(
                filters,
                norm=self.norm,
                implementation=self.implementation,
                drop_rate=self.drop_rate,
                drop_size=self.drop_size if index >= len(self.filters) - 2 else 1,
                training=self.training,
                name=f"block{index}",
            )
            x = block(x)
        return layers.head(self.outputs, nn.global_avg_pool(x))
