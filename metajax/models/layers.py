"""The Flax layers that the networks are made of."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from metajax import nn

Array = jax.Array
Initializer = Callable[..., Array]

NORMS = ("batch", "group", "layer", "running", "none")

# Collection into which norms of the policy "running" sow the distance of their averages, in training.
PULL = "pull"

# MAML's own code draws kernels from Glorot's uniform distribution and starts biases at zero.
glorot = linen.initializers.glorot_uniform()
# MetaOptNet's ResNet-12 follows He: normal with variance 2 / (outputs of a kernel), for rectifiers.
he_fan_out = linen.initializers.variance_scaling(2.0, "fan_out", "normal")


def one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raises an error unless a value is among its options.

    Args:
      name: Name of the option, for the error message.
      value: Value to check.
      options: Allowed values.

    Raises:
      ValueError: If the value is not among them.
    """
    if value not in options:
        raise ValueError(f"{name} {value!r} is not known; use one of {', '.join(options)}.")


class Conv(linen.Module):
    """A convolution [B, H, W, C] -> [B, H', W', filters], padded to H' = ceil(H / stride).

    Attributes:
      filters: Number of output channels.
      window: Height and width of the kernel.
      strides: Vertical and horizontal stride.
      use_bias: Whether to add a bias per filter. A model needs it only if no norm follows: batch norm
        subtracts it again, so its gradient is zero; group and layer norm have their own bias.
      kernel_init: Initializer of the kernel [h, w, C, filters].
      implementation: Implementation of the convolution, as in `metajax.nn.conv2d`; None chooses the fastest
        one known.
    """

    filters: int
    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    use_bias: bool = True
    kernel_init: Initializer = glorot
    implementation: str | nn.Implementations | None = None

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to [B, H', W', filters]."""
        shape = (*self.window, inputs.shape[-1], self.filters)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        outputs = nn.conv2d(
            inputs, kernel, strides=self.strides, implementation=self.implementation
        )
        if not self.use_bias:
            return outputs
        return outputs + self.param("bias", linen.initializers.zeros, (self.filters,), jnp.float32)


class Norm(linen.Module):
    """Normalizes [B, ..., C] by a policy that the model fixes.

    Under "running" the averages are parameters: `running` holds mean and variance [C], and `Norm` normalizes
    by them unless it trains. In training it normalizes by the batch, and sows into the collection `PULL` half
    the squared distance of the averages from the batch's statistics. The gradient of the pull is that
    difference, so a gradient step of size 1 - decay updates a running average of that decay. See
    `metajax.train.running_averages`.

    Attributes:
      policy: Statistics to normalize by. "batch": the batch's, so that predictions for a query batch are
        transductive; "group" and "layer": each example's alone; "running": running averages over the batches
        of training; "none": no normalization and no parameters.
      groups: Number of groups of channels for the policy "group"; divides C.
      epsilon: Number that is added to the variance.
      training: Whether "running" normalizes by the batch, and sows.
    """

    policy: str = "batch"
    groups: int = 8
    epsilon: float = 1e-3
    training: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        one_of("Norm", self.policy, NORMS)
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps inputs [B, ..., C] to the same shape."""
        if self.policy == "none":
            return inputs
        affine = _scale_and_bias(self, inputs)
        moments = _running(self, inputs)
        if moments:
            return nn.fixed_norm(inputs, *affine, *moments, epsilon=self.epsilon)
        normalize = {
            "batch": nn.batch_norm,
            "running": nn.batch_norm,
            "group": functools.partial(nn.group_norm, groups=self.groups),
            "layer": nn.layer_norm,
        }[self.policy]
        return normalize(inputs, *affine, epsilon=self.epsilon)


class NormReluPool(Norm):
    """Computes `Norm`, ReLU and a 2 x 2 max-pool as one; attributes as in `Norm`."""

    @linen.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps images [B, H, W, C] to [B, H // 2, W // 2, C]."""
        if self.policy == "none":
            return jax.nn.relu(nn.max_pool(inputs))
        affine = _scale_and_bias(self, inputs)
        groups = {"group": self.groups, "layer": 1}.get(self.policy)
        return nn.norm_relu_pool(
            inputs, *affine, groups=groups, moments=_running(self, inputs), epsilon=self.epsilon
        )


def _scale_and_bias(module: linen.Module, inputs: Array) -> tuple[Array, Array]:
    """Makes the parameters of a norm, both [C]."""
    return (
        module.param("scale", linen.initializers.ones, inputs.shape[-1:], jnp.float32),
        module.param("bias", linen.initializers.zeros, inputs.shape[-1:], jnp.float32),
    )


def _running(module: Norm, inputs: Array) -> tuple[Array, Array] | None:
    """Returns the running averages to normalize by; None to use the batch's statistics. Sows the pull."""
    if module.policy != "running":
        return None
    channels = inputs.shape[-1:]
    start = {
        "mean": jnp.zeros(channels, jnp.float32),
        "variance": jnp.ones(channels, jnp.float32),
    }
    averages = module.param("running", lambda key: start)
    if not module.training:
        # Only the pull moves the averages.
        return jax.lax.stop_gradient((averages["mean"], averages["variance"]))
    if not module.is_initializing():
        # Unbiased variances: the average over batches should approach the variance of the data.
        count = inputs.size // channels[0]
        mean, variance = jax.lax.stop_gradient(nn.batch_moments(inputs))
        seen = {"mean": mean, "variance": variance * (count / max(count - 1, 1))}
        pull = sum(jnp.sum(jnp.square(averages[name] - seen[name])) / 2 for name in averages)
        module.sow(PULL, "pull", pull)
    return None


def normed_conv(
    module: Any, inputs: Array, filters: int, *, window: int, stride: int = 1, suffix: str
) -> Array:
    """Convolves and normalizes, for residual networks: the layers `conv<suffix>` and `norm<suffix>`.

    Call it within a compact module. Kernels start from He's normal distribution over the fan-out.

    Args:
      module: Flax module with fields `norm`, `implementation` and `training`.
      inputs: Float images [B, H, W, C].
      filters: Number of output channels.
      window: Side of the kernel.
      stride: Stride of both axes.
      suffix: Suffix of the layers' names.

    Returns:
      Float images [B, ceil(H / stride), ceil(W / stride), filters].
    """
    x = Conv(
        filters,
        window=(window, window),
        strides=(stride, stride),
        use_bias=module.norm == "none",
        kernel_init=he_fan_out,
        implementation=module.implementation,
        name=f"conv{suffix}",
    )(inputs)
    return Norm(module.norm, training=module.training, name=f"norm{suffix}")(x)


def head(outputs: int | None, features: Array) -> Array:
    """Maps features to outputs by a linear layer.

    Call it within a compact module: the layer is that module's "head", the name by which learners find the
    last layer.

    Args:
      outputs: Number of outputs; None returns the features.
      features: Float features [B, D].

    Returns:
      Float outputs [B, outputs], or the features.
    """
    if outputs is None:
        return features
    return linen.Dense(outputs, kernel_init=glorot, name="head")(features)


def check_images(inputs: Array, at_least: int, model: str) -> None:
    """Raises an error unless inputs are images that are large enough.

    Args:
      inputs: Array that should be images [B, H, W, C].
      at_least: Least height and width.
      model: Name of the network, for the error message.

    Raises:
      ValueError: If inputs do not have four axes, or H or W is too small.
    """
    if inputs.ndim != 4:
        raise ValueError(
            f"{model} takes images [B, H, W, C], not {inputs.shape}; add the missing axes, or vmap "
            "over the extra ones."
        )
    if min(inputs.shape[1:3]) < at_least:
        raise ValueError(
            f"{model} takes images of at least {at_least} x {at_least}, not {inputs.shape[1]} x "
            f"{inputs.shape[2]}; use larger images or a model with less pooling."
        )
