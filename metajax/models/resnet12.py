"""The twelve-layer residual network of the few-shot literature."""

import functools
from collections.abc import Sequence

import jax
from flax import linen

from metajax import nn
from metajax.models import layers

Array = jax.Array


class ResidualBlock(linen.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 shortcut, then a 2 x 2 max-pool.

    Attributes:
      filters: channels of all its convolutions.
      norm: policy of `layers.Norm`.
      kernels: how to compute the convolutions, as in `metajax.nn.conv2d`.
      training: as of `layers.Norm`.
    """

    filters: int
    norm: str = "batch"
    kernels: str | nn.Kernels | None = None
    training: bool = False

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, H // 2, W // 2, filters]."""
        activation = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)
        x = inputs
        for index in range(3):
            x = activation(x) if index else x
            x = self._normed_conv(x, (3, 3), str(index))
        return nn.max_pool(activation(x + self._normed_conv(inputs, (1, 1), "_shortcut")))

    def _normed_conv(self, x: Array, window: tuple[int, int], suffix: str) -> Array:
        x = layers.Conv(
            self.filters,
            window=window,
            use_bias=self.norm == "none",
            kernel_init=layers.he_fan_out,
            kernels=self.kernels,
            name=f"conv{suffix}",
        )(x)
        return layers.Norm(self.norm, training=self.training, name=f"norm{suffix}")(x)


class ResNet12(linen.Module):
    """Four residual blocks, the mean over positions, then a linear head; no DropBlock.

    Kernels start from He's normal distribution over the fan-out, as in MetaOptNet's code, and
    biases at zero.

    Attributes:
      outputs: width of the layer "head"; None leaves it out and returns features [B, filters[-1]].
      filters: channels of each block; each halves the image, cropping the odd row.
      norm: policy of `layers.Norm`. The convolutions have a bias only under "none".
      kernels: how to compute the convolutions, as in `metajax.nn.conv2d`; None is the quickest known.
      training: as of `layers.Norm`.

    Reference: Lee et al., 2019 (https://arxiv.org/abs/1904.03758), section 4.1; Oreshkin et al.,
    2018 (https://arxiv.org/abs/1805.10123), with 64, 128, 256 and 512 filters.
    """

    outputs: int | None
    filters: Sequence[int] = (64, 160, 320, 640)
    norm: str = "batch"
    kernels: str | nn.Kernels | None = None
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
                kernels=self.kernels,
                training=self.training,
                name=f"block{index}",
            )
            x = block(x)
        return layers.head(self.outputs, nn.global_avg_pool(x))
