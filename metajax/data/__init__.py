"""Data on the host: files, images, splits, caches, workers."""

from metajax.data.images import DataError
from metajax.data.sources import Splits, load

__all__ = ["DataError", "Splits", "load"]
