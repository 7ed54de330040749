"""Data on the host: files, images, splits, caches, workers.

`load` reads a data set by name, or a folder of pictures, and splits its classes; `LabelledImages.from_labels`
sorts images from elsewhere. `metajax.episodes.class_store` puts either on the device.

| module | content |
|---|---|
| `sources` | `load` and its options |
| `recipes` | the way to read each data set |
| `splits`, `cifar100_splits` | policies that divide classes into training, validation and test |
| `images`, `streamed` | labeled images in memory, and on disk |
| `streaming`, `workers` | tasks of images on disk, read ahead by worker processes |
| `tables` | tables of text, molecules, ratings and fields, and the stores that recipes make of them |
| `cache` | decoded images, kept on disk |
| `glyphs` | characters drawn from fonts |
| `files` | image files: decoding, bit depth, folders |
| `tfds` | data sets that TensorFlow Datasets has prepared |
| `features` | features of texts and molecules |
"""

from metajax.data.images import LabelledImages
from metajax.data.sources import Splits, load
from metajax.data.streamed import StreamedImages
from metajax.errors import DataError

__all__ = ["DataError", "LabelledImages", "Splits", "StreamedImages", "load"]
