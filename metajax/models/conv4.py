"""Conv4, the four-block convolutional network of the few-shot literature."""

import jax
from flax import linen

from metajax import nn
from metajax.models import layers

Array = jax.Array

POOLINGS = ("max", "stride")
BLOCKS = 4


class Conv4(linen.Module):
    """Four blocks of 3 x 3 convolution, norm and ReLU, then a linear head.

    Kernels start from Glorot's uniform distribution and biases at zero, as in MAML's code (whose
    Omniglot head alone starts from a unit normal).

    Attributes:
      outputs: Width of the layer "head"; None leaves it out and returns features [B, D].
      filters: Channels of every block; papers use 64, or 32 for MAML on miniImageNet.
      pooling: Way of each block to halve the image. "max": a 2 x 2 max-pool at its end, which crops an odd
        row; the last maps are flattened (Vinyals et al., and MAML on miniImageNet). "stride": a convolution
        of stride 2; the last maps are averaged over positions (MAML on Omniglot).
      norm: Policy of `layers.Norm`. The convolutions have a bias only under "none".
      halvings: Number of blocks, the first ones, that halve the image.
      maps: Whether to return the last block's feature maps [B, H', W', filters], without a head.
      implementation: Implementation of the convolutions, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.
      training: Whether norms train their running averages, as in `layers.Norm`.

    Example:
      >>> model = metajax.models.from_flax(Conv4(5))
      >>> images = jnp.zeros((2, 28, 28, 1))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 5)

    Reference: Vinyals et al., 2016 (https://arxiv.org/abs/1606.04080), section 4.1; Finn et al.,
    2017 (https://arxiv.org/abs/1703.03400), section 5.2.
    """

    outputs: int | None
    filters: int = 64
    pooling: str = "max"
    norm: str = "batch"
    halvings: int = BLOCKS
    maps: bool = False
    implementation: str | nn.Implementations | None = None
    training: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        layers.one_of("Pooling", self.pooling, POOLINGS)
        layers.one_of("Norm", self.norm, layers.NORMS)
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to outputs [B, outputs]."""
        pooled = self.pooling == "max"
        least = 2**self.halvings if pooled else 1
        layers.check_images(inputs, least, f"Conv4(pooling={self.pooling!r})")
        x = inputs
        for index in range(BLOCKS):
            halves = index < self.halvings
            x = layers.Conv(
                self.filters,
                strides=(2, 2) if halves and not pooled else (1, 1),
                use_bias=self.norm == "none",
                implementation=self.implementation,
                name=f"conv{index}",
            )(x)
            norm = {"policy": self.norm, "training": self.training, "name": f"norm{index}"}
            pools = pooled and halves
            x = layers.NormReluPool(**norm)(x) if pools else jax.nn.relu(layers.Norm(**norm)(x))
        if self.maps:
            return x
        features = x.reshape(x.shape[0], -1) if pooled else nn.global_avg_pool(x)
        return layers.head(self.outputs, features)
