"""The Flax layers that the models are made of."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from metajax import nn

Array = jax.Array
Initializer = Callable[..., Array]

NORMS = ("batch", "group", "layer", "running", "none")

# Under the policy "running": the collection into which norms that train sow how far their averages are off.
PULL = "pull"

# MAML's own code draws kernels from Glorot's uniform distribution and starts biases at zero.
glorot = linen.initializers.glorot_uniform()
# MetaOptNet's ResNet-12 follows He: normal with variance 2 / (outputs of a kernel), for rectifiers.
he_fan_out = linen.initializers.variance_scaling(2.0, "fan_out", "normal")


def one_of(what: str, value: str, options: tuple[str, ...]) -> None:
    """Raises a ValueError unless the value is among the options."""
    if value not in options:
        raise ValueError(f"{what} {value!r} is not known; use one of {', '.join(options)}.")


class Conv(linen.Module):
    """A convolution [B, H, W, C] -> [B, H', W', filters], padded to H' = ceil(H / stride).

    Attributes:
      filters: channels out.
      window: height and width of the kernel.
      strides: steps down and across.
      use_bias: whether to add one number a filter. A batch norm that follows subtracts it again,
        and its gradient is zero; group and layer norm have a bias of their own to do its work. So a
        model needs it only where no norm follows.
      kernel_init: draws the kernel [h, w, C, filters].
      implementation: how to compute the convolution, as in `metajax.nn.conv2d`; None is the quickest known.
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
    """Normalises [B, ..., C] by a policy that the model fixes.

    Under "running" the averages are parameters: `running` holds mean and variance [C], by which `Norm` goes
    unless it trains. In training it goes by the batch at hand, and sows into the collection `PULL` half the
    squared distance of the averages from the batch's statistics, whose gradient is that distance: a step of
    1 - decay down that gradient is a running average of this decay. See `metajax.train.running_averages`.

    Attributes:
      policy: what the statistics are over. "batch": the batch at hand, so that predictions for a
        query batch are transductive; "group" and "layer": each example alone; "running": the batches of
        training; "none": no normalisation and no parameters.
      groups: groups of channels for the policy "group"; divides C.
      epsilon: added to the variance.
      training: whether "running" goes by the batch at hand, and sows.
    """

    policy: str = "batch"
    groups: int = 8
    epsilon: float = 1e-3
    training: bool = False

    def __post_init__(self) -> None:
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
        normalise = {
            "batch": nn.batch_norm,
            "running": nn.batch_norm,
            "group": functools.partial(nn.group_norm, groups=self.groups),
            "layer": nn.layer_norm,
        }[self.policy]
        return normalise(inputs, *affine, epsilon=self.epsilon)


class NormReluPool(Norm):
    """`Norm`, ReLU and a 2 x 2 max-pool, computed as one; its attributes are those of `Norm`."""

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
    return (
        module.param("scale", linen.initializers.ones, inputs.shape[-1:], jnp.float32),
        module.param("bias", linen.initializers.zeros, inputs.shape[-1:], jnp.float32),
    )


def _running(module: Norm, inputs: Array) -> tuple[Array, Array] | None:
    """The averages to normalise by; None where the statistics of the batch are to be taken."""
    if module.policy != "running":
        return None
    channels = inputs.shape[-1:]
    start = {
        "mean": jnp.zeros(channels, jnp.float32),
        "variance": jnp.ones(channels, jnp.float32),
    }
    averages = module.param("running", lambda key: start)
    if not module.training:
        # Only the pull moves them.
        return jax.lax.stop_gradient((averages["mean"], averages["variance"]))
    if not module.is_initializing():
        # Of the variance the unbiased estimate, that of many batches being what is averaged towards.
        count = inputs.size // channels[0]
        mean, variance = jax.lax.stop_gradient(nn.batch_moments(inputs))
        seen = {"mean": mean, "variance": variance * (count / max(count - 1, 1))}
        pull = sum(jnp.sum(jnp.square(averages[name] - seen[name])) / 2 for name in averages)
        module.sow(PULL, "pull", pull)
    return None


def normed_conv(
    module: linen.Module, inputs: Array, filters: int, *, window: int, stride: int = 1, suffix: str
) -> Array:
    """Convolves and normalises, for residual networks: the layers `conv<suffix>` and `norm<suffix>`.

    Call it within a compact module, whose `norm`, `implementation` and `training` it goes by. Kernels start
    from He's normal distribution over the fan-out.
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
    """Maps features [B, D] to outputs [B, outputs] by a linear layer; None returns the features.

    Call it within a compact module: the layer is that module's "head", the name by which learners
    find the last layer.
    """
    if outputs is None:
        return features
    return linen.Dense(outputs, kernel_init=glorot, name="head")(features)


def check_images(inputs: Array, at_least: int, model: str) -> None:
    """Raises a ValueError unless inputs are [B, H, W, C] with H and W at least that large."""
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
