"""Models by name, for a driver's flags; Flax is imported only when one is built."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from metajax.models.adapters import from_flax, require
from metajax.types import Model


def build(
    name: str,
    *,
    outputs: int | None,
    filters: int | None = None,
    features: Sequence[int] | None = None,
    norm: str | None = None,
    kernels: str | None = None,
) -> Model:
    """Builds a model by its name.

    An option left at None takes the model's own default.

    Args:
      name: one of `MODELS`.
      outputs: width of the layer "head"; None leaves it out, for the features before it.
      filters: channels of the first block of a convolutional network; all blocks of "conv4" have as
        many, those of "resnet12" 1, 2.5, 5 and 10 times as many.
      features: width of each hidden layer of "mlp".
      norm: "batch", "group", "layer" or "none"; see `metajax.models.layers.Norm`.
      kernels: how to compute convolutions: "matmul", "lax" or "grouped"; see `metajax.nn.conv2d`.

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
    for option in options:
        if option not in known:
            raise ValueError(f"Model {name!r} has no option {option!r}; leave it out.")
    require("flax.linen", extra="flax")
    return make(outputs, **options)


def _mlp(outputs: int | None, **options) -> Model:
    from metajax.models.mlp import MLP

    return from_flax(MLP(outputs=outputs, **options))


def _conv4(outputs: int | None, **options) -> Model:
    from metajax.models.conv4 import Conv4

    return from_flax(Conv4(outputs, **options))


def _resnet12(outputs: int | None, *, filters: int = 64, **options) -> Model:
    from metajax.models.resnet12 import ResNet12

    widths = (filters, filters * 5 // 2, filters * 5, filters * 10)
    return from_flax(ResNet12(outputs, filters=widths, **options))


# Each model's maker and the options of `build` it has.
MODELS: Mapping[str, tuple[Callable[..., Model], tuple[str, ...]]] = MappingProxyType(
    {
        "mlp": (_mlp, ("features",)),
        "conv4": (functools.partial(_conv4, pooling="max"), ("filters", "norm", "kernels")),
        "conv4_stride": (
            functools.partial(_conv4, pooling="stride"),
            ("filters", "norm", "kernels"),
        ),
        "resnet12": (_resnet12, ("filters", "norm", "kernels")),
    }
)
