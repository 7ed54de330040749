"""Samplers: pure functions `(store, key) -> task` that draw tasks on the device.

A store is a `Rows`: rows in groups, made of arrays by `Rows.from_groups`, or of labeled images by
`class_store`. Pass it to jitted functions as an argument.

| sampler | task |
|---|---|
| `GroupSampler` | N groups of a store, as classes |
| `EpisodeSampler` | N classes of images, augmented and normalized |
| `SplitSampler` | one parent or group, its rows split into a support and a query set |
| `ListedSampler` | a task of a fixed list, such as a test set |
| `PixelSampler` | one image, each of whose pixels is an example |
| `BatchSampler` | a batch of images of all classes, for supervised training |
| `SinusoidSampler` | a sinusoid of random amplitude and phase |
| `CausalTableSampler` | a made-up table, rows of a random structural causal model |

`metajax.data` reads files; this package imports nothing of it.
"""

from metajax.episodes.batches import BatchSampler
from metajax.episodes.causal_tables import CausalTableSampler
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
    "CausalTableSampler",
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
