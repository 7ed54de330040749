"""Baselines: predictions for one task without meta-learning, to print next to every learner.

A baseline is a pure function `(support, queries) -> outputs` of the support set of one task and of its query
inputs. Inputs are rows of numbers [B, D]; outputs have the form of a learner's: logits [Q, N] of classes, or
values [Q, 1]. Padding of weight zero changes nothing, and `jax.vmap` maps over tasks. `random_forest` runs on
the host, one task at a time. `item_means` reads training rows alone, so that no test target leaks into it.
"""

from metajax.baselines.forest import random_forest
from metajax.baselines.items import ItemMeans, item_means, item_offset
from metajax.baselines.linear import logistic_regression, ridge_regression
from metajax.baselines.simple import SIMILARITIES, Baseline, constant, nearest_neighbors

__all__ = [
    "SIMILARITIES",
    "Baseline",
    "ItemMeans",
    "constant",
    "item_means",
    "item_offset",
    "logistic_regression",
    "nearest_neighbors",
    "random_forest",
    "ridge_regression",
]
