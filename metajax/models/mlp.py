"""MLP, a fully connected network."""

from collections.abc import Callable, Sequence

import jax
from flax import linen

from metajax.models import layers

Array = jax.Array


class MLP(linen.Module):
    """Flattened examples, then linear layers with an activation between them.

    The defaults are the network of MAML's sinusoid regression, except that kernels start from Glorot's
    uniform distribution where MAML's code draws a truncated normal of deviation 0.01. Biases start at zero.

    Attributes:
      features: Width of each hidden layer.
      outputs: Width of the layer "head"; None leaves it out and returns features [B, D].
      activation: Function applied after each hidden layer.

    Example:
      >>> model = metajax.models.from_flax(MLP((8, 8), outputs=3))
      >>> params = model.init(jax.random.key(0), jnp.zeros((5, 2)))
      >>> model.apply(params, jnp.zeros((5, 2))).shape
      (5, 3)

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), section 5.1.
    """

    features: Sequence[int] = (40, 40)
    outputs: int | None = 1
    activation: Callable[[Array], Array] = jax.nn.relu

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps inputs [B, ...] to outputs [B, outputs]."""
        x = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.features):
            x = linen.Dense(width, kernel_init=layers.glorot, name=f"hidden{index}")(x)
            x = self.activation(x)
        return layers.head(self.outputs, x)
