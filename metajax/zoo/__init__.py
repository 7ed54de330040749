"""Learners and models by name, with their options."""

from metajax.zoo.ingredients import Ingredients
from metajax.zoo.learners import LEARNERS, find_learner, make_learner
from metajax.zoo.models import MODELS, build_model

__all__ = ["LEARNERS", "MODELS", "Ingredients", "build_model", "find_learner", "make_learner"]
