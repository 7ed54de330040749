"""Learners and models by name, with their options."""

from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, find_learner, make_learner
from metajax.zoo.models import MODELS, build_model
from metajax.zoo.row_models import ROW_MODELS, build_row_model, row_options

__all__ = [
    "LEARNERS",
    "MODELS",
    "ROW_MODELS",
    "Ingredients",
    "build_model",
    "build_row_model",
    "find_learner",
    "make_learner",
    "row_options",
]
