"""Labeled images on disk: the counterpart of `LabelledImages` for data larger than memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from metajax.data import cache
from metajax.data.files import decoding
from metajax.data.images import LabelledImages, begin_fingerprint, histogram
from metajax.data.workers import Results, cores

_BLOCK_IMAGES, _BLOCK_BYTES = 2048, 2**24  # largest block of images that a worker returns at once
_BLOCKS_A_WORKER = 4  # fewest blocks for which starting a worker pays


class Encoded(Protocol):
    """Image files by number; small when pickled, and opened in the process that first reads them."""

    def encoded(self, rows: np.ndarray) -> tuple[Sequence[bytes | Path], Sequence]:
        """Finds image files.

        Args:
          rows: Numbers of the files, [n] int.

        Returns:
          Paths or contents of the n files, and their names in errors.
        """
        ...


class ImageStatistics(NamedTuple):
    """Facts that need a look at every pixel of a set of images.

    Attributes:
      fingerprint: SHA-256 of the images, as `LabelledImages.fingerprint` computes it.
      histogram: Number of pixels of each value in each channel, [C, 256] int64.
    """

    fingerprint: str
    histogram: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images on disk, sorted by class; pixels are decoded when they are read.

    `metajax.data.load(..., resident="never")` makes them, and `metajax.data.streaming` draws tasks of them.
    They have the attributes and methods of `LabelledImages`, except `images`.

    Attributes:
      source: Image files.
      order: Number of each image in the source, [M] int: first the images of class 0, then of class 1, ...
      counts: Number of images per class, [classes] int32; the sum is M.
      names: Unique name of each class.
      groups: Group that each class belongs to, such as a superclass; '' for none.
      shape: Height, width and channels of every decoded image.
      key: Text of everything that the pixels of `source` depend on, a key for `cache.kept`.
      form: Way in which files are decoded.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as root:
      ...     for name in ("ant", "bee", "cat"):
      ...         Path(root, name).mkdir()
      ...         Image.new("L", (8, 8), 255).save(Path(root, name, "0.png"))
      ...     images = metajax.data.load(f"folder:{root}", split="all", resident="never").test
      ...     print(type(images).__name__, images.names, images.read(np.array([2, 0])).shape)
      StreamedImages ('ant', 'bee', 'cat') (2, 8, 8, 1)
    """

    source: Encoded
    order: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]
    shape: tuple[int, int, int]
    key: str
    form: decoding.Form = decoding.PLAIN
    _found: list[ImageStatistics] = dataclasses.field(default_factory=list, init=False, repr=False)

    @property
    def num_images(self) -> int:
        """Number of images M of all classes."""
        return len(self.order)

    def __len__(self) -> int:
        """Counts the images of all classes."""
        return len(self.order)

    def select(self, classes: Sequence[int]) -> "StreamedImages":
        """Keeps some of the classes.

        Args:
          classes: Numbers of the classes to keep, in their new order.

        Returns:
          The images of these classes.
        """
        ends = np.cumsum(self.counts)
        kept = [self.order[ends[c] - self.counts[c] : ends[c]] for c in classes]
        return dataclasses.replace(
            self,
            order=np.concatenate([self.order[:0], *kept]),
            counts=self.counts[list(classes)],
            names=tuple(self.names[c] for c in classes),
            groups=tuple(self.groups[c] for c in classes),
        )

    def read(self, rows: np.ndarray, *, threads: int | None = None) -> np.ndarray:
        """Decodes images; the counterpart of indexing `LabelledImages.images`.

        Args:
          rows: Image numbers in [0, M), ints [...]; an image that is named several times is decoded once.
          threads: Number of threads; None is one per core, at most eight.

        Returns:
          Pixels [..., H, W, C] uint8.

        Raises:
          DataError: If a file is missing or broken.
        """
        numbers, places = np.unique(self.order[rows], return_inverse=True)
        images = np.empty((len(numbers), *self.shape), np.uint8)
        encoded = self.source.encoded(numbers)
        decoding.decode_into(images, *encoded, form=self.form, threads=threads)
        return images[places.reshape(np.shape(rows))]

    def fingerprint(self) -> str:
        """Hashes the images, the sizes and the names of the classes; decodes every image once.

        Returns:
          SHA-256 as hexadecimal digits; `LabelledImages.fingerprint` gives the same for the same images.
        """
        return self.statistics().fingerprint

    def histogram(self) -> np.ndarray:
        """Counts the pixels of each value in each channel; decodes every image once.

        Returns:
          Numbers of pixels, [C, 256] int64.
        """
        return self.statistics().histogram

    def statistics(
        self,
        *,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageStatistics:
        """Computes the statistics of all images, which decodes each once; the result is cached on disk.

        Args:
          workers: Number of processes that decode; None is one per core, if there are enough images.
          progress: Function (images done, images in all), called after each block of images; it is not called
            for a result from the cache.

        Returns:
          Fingerprint and histogram.

        Raises:
          DataError: If a file is missing or broken.
        """
        if not self._found:
            names = hashlib.sha256(repr(self.names).encode()).hexdigest()
            look = functools.partial(self._look_at_all, workers, progress)
            found = cache.kept(f"{self.key} statistics {names}", look, pack=_pack, unpack=_unpack)
            self._found.append(found)
        return self._found[0]

    survey = statistics  # the name in 0.1, until the next release

    def _look_at_all(
        self, workers: int | None, progress: Callable[[int, int], None] | None
    ) -> ImageStatistics:
        """Decodes all images block by block, and computes their statistics."""
        digest = begin_fingerprint((len(self), *self.shape), self.names, self.counts)
        total = np.zeros((self.shape[-1], 256), np.int64)
        size = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // int(np.prod(self.shape))))
        blocks = -(-len(self) // size)
        if workers is None:
            workers = min(cores(), blocks // _BLOCKS_A_WORKER)
        look = functools.partial(_look, self, size, 1 if workers else None)
        with Results(look, blocks, workers=workers) as results:
            for index, (images, part) in enumerate(results):
                digest.update(images.tobytes())
                total += part
                if progress:
                    progress(min((index + 1) * size, len(self)), len(self))
        return ImageStatistics(digest.hexdigest(), total)


Images = LabelledImages | StreamedImages
"""Labeled images, in memory or on disk."""


def _look(
    data: StreamedImages, size: int, threads: int | None, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes block number `index` of `size` images; returns the images and their histogram."""
    rows = np.arange(index * size, min((index + 1) * size, len(data)))
    images = data.read(rows, threads=threads)
    return images, histogram(images)


def _pack(found: ImageStatistics) -> cache.Entry:
    """Packs statistics for a file of the cache."""
    return cache.Entry({"histogram": found.histogram}, {"fingerprint": found.fingerprint})


def _unpack(entry: cache.Entry) -> ImageStatistics:
    """Makes statistics of a file's content."""
    return ImageStatistics(entry.text["fingerprint"], entry.arrays["histogram"])
