"""ResNet-18, with the stem that small images need."""

import functools
from collections.abc import Sequence

import jax
from flax import linen

from metajax import nn
from metajax.models import layers

Array = jax.Array


class BasicBlock(linen.Module):
    """Two 3 x 3 convolutions plus a shortcut, which is a 1 x 1 convolution where the shape changes.

    Attributes:
      filters: Channels of its convolutions.
      stride: Stride of the first convolution and of the shortcut.
      norm: Policy of `layers.Norm`.
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`.
      training: Whether norms train their running averages, as in `layers.Norm`.
    """

    filters: int
    stride: int = 1
    norm: str = "batch"
    implementation: str | nn.Implementations | None = None
    training: bool = False

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), filters]."""
        conv = functools.partial(layers.normed_conv, self, filters=self.filters)
        x = jax.nn.relu(conv(inputs, window=3, stride=self.stride, suffix="0"))
        x = conv(x, window=3, suffix="1")
        if self.stride > 1 or inputs.shape[-1] != self.filters:
            inputs = conv(inputs, window=1, stride=self.stride, suffix="_shortcut")
        return jax.nn.relu(x + inputs)


class ResNet18(linen.Module):
    """A convolution, four stages of two residual blocks, the mean over positions, then a linear head.

    The first convolution is 3 x 3 without stride and no pooling follows it, as in few-shot papers for images
    of 84 pixels and less; the rest is ImageNet's network for 224 pixels.

    Attributes:
      outputs: Width of the layer "head"; None leaves it out and returns features [B, filters[-1]].
      filters: Channels of each stage; all but the first halve the image.
      norm: Policy of `layers.Norm`. The convolutions have a bias only under "none".
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.
      training: Whether norms train their running averages, as in `layers.Norm`.

    Example:
      >>> model = metajax.models.from_flax(ResNet18(5, filters=(8, 8, 8, 8)))
      >>> images = jnp.zeros((2, 16, 16, 3))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 5)

    Reference: He et al., 2016 (https://arxiv.org/abs/1512.03385), table 1; the stem, Wang et al., 2019
    (SimpleShot, https://arxiv.org/abs/1911.04623), section 4.1.
    """

    outputs: int | None
    filters: Sequence[int] = (64, 128, 256, 512)
    norm: str = "batch"
    implementation: str | nn.Implementations | None = None
    training: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        layers.one_of("Norm", self.norm, layers.NORMS)
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to outputs [B, outputs]."""
        layers.check_images(inputs, 1, "ResNet18")
        x = jax.nn.relu(layers.normed_conv(self, inputs, self.filters[0], window=3, suffix=""))
        common = {
            "norm": self.norm,
            "implementation": self.implementation,
            "training": self.training,
        }
        for stage, filters in enumerate(self.filters):
            for index in range(2):
                stride = 2 if stage and not index else 1
                x = BasicBlock(filters, stride, **common, name=f"block{2 * stage + index}")(x)
        return layers.head(self.outputs, nn.global_avg_pool(x))
