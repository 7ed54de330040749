"""Networks: Flax Linen modules, encoders of rows of tables, and adapters of any framework's modules.

Importing this package imports no framework: Flax comes with the first use of one of its modules.
"""

import importlib
from typing import Any

from metajax.deprecation import renamed_attributes
from metajax.models.adapters import from_equinox, from_flax, from_functions, from_nnx
from metajax.models.precision import in_precision

__all__ = [
    "MLP",
    "Conv4",
    "ResNet12",
    "ResNet18",
    "ViT",
    "WideConv4",
    "cells_encoder",
    "fields_encoder",
    "fingerprint_encoder",
    "from_equinox",
    "from_flax",
    "from_functions",
    "from_nnx",
    "in_precision",
    "molecule_network",
    "ngram_encoder",
    "vector_encoder",
    "word_attention",
    "word_cnn",
]

_MODULES = {
    "Conv4": "conv4",
    "MLP": "mlp",
    "ResNet12": "resnet12",
    "ResNet18": "resnet18",
    "ViT": "vit",
    "WideConv4": "conv4_wide",
    "cells_encoder": "cells",
    "fields_encoder": "fields",
    "fingerprint_encoder": "molecules",
    "molecule_network": "molecules",
    "ngram_encoder": "text",
    "vector_encoder": "text",
    "word_attention": "text",
    "word_cnn": "text",
}

_find_renamed = renamed_attributes(
    __name__,
    {"MODELS": "metajax.zoo.MODELS", "build": "metajax.zoo.build_model"},
    stacklevel=4,
)


def __getattr__(name: str) -> Any:
    """Imports a network's module at its first use, or finds a renamed attribute."""
    if name not in _MODULES:
        return _find_renamed(name)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
