"""Layers as pure functions of arrays, with derivatives that stay fast at second order."""

from metajax.deprecation import renamed_attributes
from metajax.nn.attention import attend
from metajax.nn.conv import conv2d
from metajax.nn.conv_implementations import Implementations
from metajax.nn.norm import (
    batch_moments,
    batch_norm,
    fixed_norm,
    group_norm,
    layer_norm,
    norm_relu_pool,
)
from metajax.nn.pool import avg_pool, global_avg_pool, max_pool

__all__ = [
    "Implementations",
    "attend",
    "avg_pool",
    "batch_moments",
    "batch_norm",
    "conv2d",
    "fixed_norm",
    "global_avg_pool",
    "group_norm",
    "layer_norm",
    "max_pool",
    "norm_relu_pool",
]

__getattr__ = renamed_attributes(__name__, {"Kernels": "metajax.nn.Implementations"})
