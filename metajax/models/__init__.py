"""Networks to learn with: Flax Linen modules, a registry by name, and adapters to `Model`.

Importing this package imports no framework: Flax comes with the first use of one of its modules.
"""

import importlib

from metajax.models.adapters import from_equinox, from_flax, from_functions, from_nnx
from metajax.models.precision import in_precision
from metajax.models.registry import MODELS, build

__all__ = [
    "MLP",
    "MODELS",
    "Conv4",
    "ResNet12",
    "ResNet18",
    "ViT",
    "WideConv4",
    "build",
    "from_equinox",
    "from_flax",
    "from_functions",
    "from_nnx",
    "in_precision",
]

_MODULES = {
    "Conv4": "conv4",
    "MLP": "mlp",
    "ResNet12": "resnet12",
    "ResNet18": "resnet18",
    "ViT": "vit",
    "WideConv4": "conv4_wide",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
