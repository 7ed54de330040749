"""ResNet-12, the residual network of the few-shot literature."""

import functools
from collections.abc import Sequence

import jax
from flax import linen

from metajax import nn
from metajax.models import layers
from metajax.models.dropblock import DropBlock

Array = jax.Array


class ResidualBlock(linen.Module):
    """Three 3 x 3 convolutions plus a 1 x 1 shortcut, a 2 x 2 max-pool, then `DropBlock`.

    Attributes:
      filters: Channels of all its convolutions.
      norm: Policy of `layers.Norm`.
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`.
      drop_rate: Rate of `DropBlock`.
      drop_size: Side of the dropped blocks.
      training: Whether norms train their running averages, as in `layers.Norm`.
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
      outputs: Width of the layer "head"; None leaves it out and returns features [B, filters[-1]].
      filters: Channels of each block; each block halves the image and crops an odd row.
      norm: Policy of `layers.Norm`. The convolutions have a bias only under "none".
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.
      drop_rate: Rate of `DropBlock` after each block; the first blocks drop single numbers.
      drop_size: Side of the dropped blocks after the last two blocks.
      training: Whether norms train their running averages, as in `layers.Norm`.

    Example:
      >>> model = metajax.models.from_flax(ResNet12(5, filters=(8, 8, 8, 8)))
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 5)

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
        """Checks the options."""
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
