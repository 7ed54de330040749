"""Episodes: pure functions that draw tasks on the device."""

from metajax.episodes.batches import BatchSampler
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.listed import Listed, ListedSampler
from metajax.episodes.pixels import PixelSampler
from metajax.episodes.rows import Rows
from metajax.episodes.sinusoids import SinusoidSampler
from metajax.episodes.split_sampler import SplitSampler
from metajax.episodes.store import EpisodeSampler, class_store, pixel_statistics
from metajax.episodes.views import ImageView

__all__ = [
    "BatchSampler",
    "EpisodeSampler",
    "GroupSampler",
    "ImageView",
    "Listed",
    "ListedSampler",
    "PixelSampler",
    "Rows",
    "SinusoidSampler",
    "SplitSampler",
    "class_store",
    "pixel_statistics",
]
