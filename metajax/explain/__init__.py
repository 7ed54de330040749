"""Reasons for an answer: the examples, and the parts of a picture, that it comes from."""

from metajax.explain.attribution import (
    insertion_deletion,
    integrated_gradients,
    occlusion,
)
from metajax.explain.influence import leave_one_out, left_out_outputs, weight_influence

__all__ = [
    "insertion_deletion",
    "integrated_gradients",
    "leave_one_out",
    "left_out_outputs",
    "occlusion",
    "weight_influence",
]
