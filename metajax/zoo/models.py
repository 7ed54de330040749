"""Models by name, for a driver's flags; Flax is imported only when one is built."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from metajax.models.adapters import from_flax, require, with_pull
from metajax.names import find
from metajax.types import Key, Model


def build_model(
    name: str,
    *,
    outputs: int | None,
    filters: int | None = None,
    features: Sequence[int] | None = None,
    norm: str | None = None,
    implementation: str | None = None,
    patch: int | None = None,
    drop_rate: float | None = None,
    maps: bool = False,
    training: bool = False,
    noise: Key | None = None,
) -> Model:
    """Builds a model by its name.

    An option left at None takes the model's own default.

    Args:
      name: one of `MODELS`.
      outputs: width of the layer "head"; None leaves it out, for the features before it.
      filters: channels of the first block of a convolutional network; all blocks of "conv4" have as
        many, those of "conv4_wide" 1, 2, 4 and 5 1/3 times as many, of "resnet12" 1, 2.5, 5 and 10 times, of
        "resnet18" 1, 2, 4 and 8 times. Of "vit", the numbers in a token.
      features: width of each hidden layer of "mlp".
      norm: "batch", "group", "layer", "running" or "none"; see `metajax.models.layers.Norm`.
      implementation: how to compute convolutions: "matmul", "lax" or "grouped"; see `metajax.nn.conv2d`.
      patch: side in pixels of a patch of "vit".
      drop_rate: of the `DropBlock`s in "conv4_wide" and "resnet12", where there is noise.
      maps: gives maps of features [B, H, W, C], of a quarter of the image's height and width, as relation
        networks compare them; without a head.
      training: `apply` returns outputs and a pull, as of `with_pull`, which moves the averages of
        norm="running".
      noise: as of `from_flax`.

    Raises:
      ImportError: if Flax is not installed.
      ValueError: if there is no such model, or it has no such option, or the option no such value.
    """
    make, known, _ = find("model", name, MODELS)
    options = {
        "filters": filters,
        "features": features,
        "norm": norm,
        "implementation": implementation,
        "patch": patch,
        "drop_rate": drop_rate,
    }
    options = {option: value for option, value in options.items() if value is not None}
    if maps:
        options |= {"maps": True, "halvings": 2}
    if maps and "maps" not in known:
        givers = " or ".join(other for other, entry in MODELS.items() if "maps" in entry.options)
        raise ValueError(
            f"Model {name!r} gives no maps of features, which relation networks compare; use {givers}."
        )
    for option in options:
        if option not in known:
            raise ValueError(f"Model {name!r} has no option {option!r}; leave it out.")
    require("flax.linen", extra="flax")
    if training and norm == "running":
        options["training"] = True
    module = make(outputs, **options)
    return with_pull(module, noise=noise) if training else from_flax(module, noise=noise)


def build_comparer(
    *, filters: int | None = None, norm: str | None = None, implementation: str | None = None
) -> Model:
    """Builds what compares maps of features in relation networks; the options are those of `build_model`."""
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
      make: (outputs, **options) -> a Flax module.
      options: those of `build_model` that it has.
      norm: the norm policy if none is named.
    """

    make: Callable[..., Any]
    options: tuple[str, ...]
    norm: str = "batch"


_CONV = ("filters", "norm", "implementation")
_CONV4 = (*_CONV, "maps", "halvings")

MODELS: Mapping[str, Entry] = MappingProxyType(
    {
        "mlp": Entry(_mlp, ("features",), norm="none"),
        "conv4": Entry(functools.partial(_conv4, pooling="max"), _CONV4),
        "conv4_stride": Entry(functools.partial(_conv4, pooling="stride"), _CONV4),
        "conv4_wide": Entry(_wide, (*_CONV, "drop_rate")),
        "resnet12": Entry(_resnet12, (*_CONV, "drop_rate")),
        "resnet18": Entry(_resnet18, _CONV),
        "vit": Entry(_vit, (*_CONV, "patch"), norm="layer"),
    }
)
