"""DropBlock: dropout of blocks of feature maps, for networks in training."""

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

Array = jax.Array

# Flax's stream of random numbers for dropout layers here; without it they drop nothing.
NOISE = "noise"


class DropBlock(linen.Module):
    """Zeroes square blocks of each channel of [B, H, W, C], and scales up the rest.

    It drops if the network is applied with a dropout key, as by `from_flax(module, noise=key)`, and is the
    identity otherwise. The rate is constant; papers raise it from zero over training.

    Attributes:
      rate: Expected share of dropped numbers, about, in [0, 1): as blocks overlap, high rates drop less.
      size: Side of a block, an int of 1 or more, cut to the map's side if that is smaller; 1 is dropout.

    Reference: Ghiasi et al., 2018 (https://arxiv.org/abs/1810.12890), algorithm 1 and eq. 1.
    """

    rate: float
    size: int = 1

    def __post_init__(self) -> None:
        """Checks the options."""
        if not 0 <= self.rate < 1:
            raise ValueError(f"The rate to drop is {self.rate}; use one from 0 to less than 1.")
        if self.size < 1:
            raise ValueError(f"The side of a block is {self.size}; use 1 or more.")
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Drops blocks of feature maps [B, H, W, C]; the result has the same shape."""
        if not self.rate or not self.has_rng(NOISE):
            return inputs
        batch, height, width, channels = inputs.shape
        size = min(self.size, height, width)
        # Eq. 1: blocks lie within the map, so fewer places can start a block than numbers can be dropped.
        rows, columns = height - size + 1, width - size + 1
        start = min(self.rate / size**2 * (height * width) / (rows * columns), 1.0)
        shape = (batch, rows, columns, channels)
        starts = jax.random.bernoulli(self.make_rng(NOISE), jnp.float32(start), shape)
        starts = starts.astype(jnp.float32)
        # A number is dropped if any of the size x size places that cover it starts a block: a maximum.
        pads = ((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0))
        window = (1, size, size, 1)
        dropped = lax.reduce_window(
            jnp.pad(starts, pads), jnp.float32(0), lax.max, window, (1,) * 4, "VALID"
        )
        kept = 1 - dropped
        # In float32: float16 ends at 65,504, below many counts. The lower limit avoids 0 / 0 if all drop.
        scaled = kept / jnp.maximum(jnp.mean(kept), 1 / kept.size)
        return inputs * scaled.astype(inputs.dtype)
