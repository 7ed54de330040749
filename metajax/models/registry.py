"""Models by name, for a driver's flags; Flax is imported only when one is built."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from metajax.models.adapters import from_flax, require, with_pull
from metajax.types import Model


def build(
    name: str,
    *,
    outputs: int | None,
    filters: int | None = None,
    features: Sequence[int] | None = None,
    norm: str | None = None,
    kernels: str | None = None,
    maps: bool = False,
    training: bool = False,
) -> Model:
    """Builds a model by its name.

    An option left at None takes the model's own default.

    Args:
      name: one of `MODELS`.
      outputs: width of the layer "head"; None leaves it out, for the features before it.
      filters: channels of the first block of a convolutional network; all blocks of "conv4" have as
        many, those of "resnet12" 1, 2.5, 5 and 10 times as many.
      features: width of each hidden layer of "mlp".
      norm: "batch", "group", "layer", "running" or "none"; see `metajax.models.layers.Norm`.
      kernels: how to compute convolutions: "matmul", "lax" or "grouped"; see `metajax.nn.conv2d`.
      maps: gives maps of features [B, H, W, C], of a quarter of the image's height and width, as relation
        networks compare them; without a head.
      training: `apply` returns outputs and a pull, as of `with_pull`, which moves the averages of
        norm="running".

    Raises:
      ImportError: if Flax is not installed.
      ValueError: if there is no such model, or it has no such option, or the option no such value.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, cutoff=0.4) or sorted(MODELS)
        raise ValueError(f"There is no model {name!r}; did you mean {' or '.join(near)}?")
    make, known = MODELS[name]
    options = {"filters": filters, "features": features, "norm": norm, "kernels": kernels}
    options = {option: value for option, value in options.items() if value is not None}
    if maps:
        options |= {"maps": True, "halvings": 2}
    for option in options:
        if option not in known:
            raise ValueError(f"Model {name!r} has no option {option!r}; leave it out.")
    require("flax.linen", extra="flax")
    if training and norm == "running":
        options["training"] = True
    module = make(outputs, **options)
    return with_pull(module) if training else from_flax(module)


def build_comparer(
    *, filters: int | None = None, norm: str | None = None, kernels: str | None = None
) -> Model:
    """Builds what compares maps of features in relation networks; the options are those of `build`."""
    require("flax.linen", extra="flax")
    from metajax.models.relation import RelationModule

    options = {"filters": filters, "norm": norm, "kernels": kernels}
    return from_flax(RelationModule(**{k: v for k, v in options.items() if v is not None}))


def _mlp(outputs: int | None, **options) -> Any:
    from metajax.models.mlp import MLP

    return MLP(outputs=outputs, **options)


def _conv4(outputs: int | None, **options) -> Any:
    from metajax.models.conv4 import Conv4

    return Conv4(outputs, **options)


def _resnet12(outputs: int | None, *, filters: int = 64, **options) -> Any:
    from metajax.models.resnet12 import ResNet12

    widths = (filters, filters * 5 // 2, filters * 5, filters * 10)
    return ResNet12(outputs, filters=widths, **options)


_CONV4 = ("filters", "norm", "kernels", "maps", "halvings")

# Each model's maker, of a Flax module, and the options of `build` it has.
MODELS: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = MappingProxyType(
    {
        "mlp": (_mlp, ("features",)),
        "conv4": (functools.partial(_conv4, pooling="max"), _CONV4),
        "conv4_stride": (functools.partial(_conv4, pooling="stride"), _CONV4),
        "resnet12": (_resnet12, ("filters", "norm", "kernels")),
    }
)
