"""Models by name, for a driver's flags; Flax is imported only when one is built."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax.models.adapters import from_flax, require, with_pull
from metajax.names import find
from metajax.nn import conv_implementations
from metajax.nn.conv import PLAIN
from metajax.types import Key, Model
from metajax.zoo.options import Option, complete, option


def build_model(
    name: str,
    *,
    outputs: int | None,
    features: Sequence[int] | None = None,
    maps: bool = False,
    training: bool = False,
    noise: Key | None = None,
    **options: Any,
) -> Model:
    """Builds a model by its name.

    Args:
      name: A key of `MODELS`.
      outputs: Width of the layer `head`; None leaves it out, for the features before it.
      features: Width of each hidden layer of "mlp", its own option.
      maps: Whether outputs are maps of features [B, H', W', C] of a quarter of the image's height and width,
        as relation networks compare them, without a head.
      training: Whether `apply` returns outputs and a pull, as in `models.adapters.with_pull`, which moves the
        averages of norm="running".
      noise: Random key of dropout, as in `models.from_flax`.
      **options: Options that `MODELS[name].options` declares: `filters`, the channels of the first block
        ("conv4" has as many in all blocks, "conv4_wide" 1, 2, 4 and 5 1/3 times as many, "resnet12" 1, 2.5, 5
        and 10 times, "resnet18" 1, 2, 4 and 8 times; of "vit" the numbers in a token), `norm`,
        `implementation` of convolutions, `patch`, `drop_rate`. None stands for the default.

    Returns:
      The model.

    Raises:
      ImportError: If Flax is not installed.
      ValueError: If there is no such model, or it has no such option, or the option no such value.

    Example:
      >>> model = build_model("conv4_stride", outputs=5, filters=8)
      >>> params = model.init(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
      >>> model.apply(params, jnp.zeros((2, 28, 28, 1))).shape
      (2, 5)
    """
    entry = find("model", name, MODELS)
    options = complete(f"Model {name!r}", options, entry.options)
    if features is not None:
        if name != "mlp":
            raise ValueError(f"Model {name!r} has no option features; it is for mlp.")
        options["features"] = features
    if maps:
        if not entry.maps:
            givers = " or ".join(other for other, entry in MODELS.items() if entry.maps)
            raise ValueError(
                f"Model {name!r} has no maps of features, which relation networks compare; use {givers}."
            )
        options |= {"maps": True, "halvings": 2}
    require("flax.linen", extra="flax")
    if training and options.get("norm") == "running":
        options["training"] = True
    module = entry.make(outputs, **options)
    return with_pull(module, noise=noise) if training else from_flax(module, noise=noise)


def build_comparer(
    *, filters: int | None = None, norm: str | None = None, implementation: str | None = None
) -> Model:
    """Builds the network that compares maps of features in relation networks.

    Args:
      filters: Channels of its layers.
      norm: Norm policy.
      implementation: Implementation of convolutions, as in `metajax.nn.conv2d`.

    Returns:
      The model.
    """
    require("flax.linen", extra="flax")
    from metajax.models.relation import RelationModule

    options = {"filters": filters, "norm": norm, "implementation": implementation}
    return from_flax(RelationModule(**{k: v for k, v in options.items() if v is not None}))


def _mlp(outputs: int | None, **options) -> Any:
    from metajax.models.mlp import MLP

    return MLP(outputs=outputs, **options)


def _conv4(outputs: int | None, **options) -> Any:
    from metajax.models.conv4 import Conv4

    return Conv4(outputs, **options)


def _wide(outputs: int | None, *, filters: int = 96, **options) -> Any:
    from metajax.models.conv4_wide import WideConv4

    if filters % 3:
        raise ValueError(
            f"conv4_wide has filters in the ratio 3 : 6 : 12 : 16, which {filters} of the first block do not "
            "allow; use a multiple of 3, such as 96."
        )
    widths = (filters, 2 * filters, 4 * filters, 16 * filters // 3)
    return WideConv4(outputs, filters=widths, **options)


def _resnet12(outputs: int | None, *, filters: int = 64, **options) -> Any:
    from metajax.models.resnet12 import ResNet12

    widths = (filters, filters * 5 // 2, filters * 5, filters * 10)
    return ResNet12(outputs, filters=widths, **options)


def _resnet18(outputs: int | None, *, filters: int = 64, **options) -> Any:
    from metajax.models.resnet18 import ResNet18

    return ResNet18(outputs, filters=tuple(filters * 2**stage for stage in range(4)), **options)


def _vit(outputs: int | None, *, filters: int = 128, **options) -> Any:
    from metajax.models.vit import ViT

    return ViT(outputs, width=filters, **options)


class Entry(NamedTuple):
    """A model by name.

    Attributes:
      make: Function (outputs, **options) -> a Flax module.
      options: Options of the network, declared with default, help and limits.
      maps: Whether it can return maps of features.
    """

    make: Callable[..., Any]
    options: Mapping[str, Option] = MappingProxyType({})
    maps: bool = False

    @property
    def norm(self) -> str:
        """Norm policy if none is named."""
        return self.options["norm"].default if "norm" in self.options else "none"


def _filters(default: int, help: str = "Filters of the first layer.") -> dict[str, Option]:
    return {"filters": option(int, default, help, least=1)}


def _norm(default: str) -> dict[str, Option]:
    return {
        "norm": option(
            str,
            default,
            "Normalization. batch uses the statistics of the batch at hand, hence is transductive on "
            "queries; running uses averages over the batches of supervised training.",
            choices=("batch", "group", "layer", "running", "none"),
        ),
        "implementation": option(
            str,
            None,
            "Implementation of convolutions and their gradients; by default the fastest known for the device "
            "and the shape.",
            choices=(*conv_implementations.NAMES, PLAIN),
            was=("kernels",),
            protocol=False,
        ),
    }


_DROP_RATE = {
    "drop_rate": option(
        float,
        0.0,
        "Share of feature maps that DropBlock drops in training.",
        least=0,
        most=0.9,
    )
}
_CONV4 = {**_filters(64), **_norm("batch")}

MODELS: Mapping[str, Entry] = MappingProxyType(
    {
        "mlp": Entry(_mlp),
        "conv4": Entry(functools.partial(_conv4, pooling="max"), _CONV4, maps=True),
        "conv4_stride": Entry(functools.partial(_conv4, pooling="stride"), _CONV4, maps=True),
        "conv4_wide": Entry(_wide, {**_filters(96), **_norm("batch"), **_DROP_RATE}),
        "resnet12": Entry(_resnet12, {**_CONV4, **_DROP_RATE}),
        "resnet18": Entry(_resnet18, _CONV4),
        "vit": Entry(
            _vit,
            {
                **_filters(128, "Numbers in a token."),
                **_norm("layer"),
                "patch": option(
                    int, 4, "Side of a patch in pixels; it divides the image's side.", least=1
                ),
            },
        ),
    }
)
