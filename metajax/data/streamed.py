"""Labelled images that stay on disk: the counterpart of `LabelledImages` for data larger than memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from metajax.data import cache, decoding
from metajax.data.images import LabelledImages, begin_fingerprint, histogram
from metajax.data.workers import Results, cores

_BLOCK_IMAGES, _BLOCK_BYTES = 2048, 2**24  # at most, of the images that a worker hands over at once
_BLOCKS_A_WORKER = 4  # at least, or starting it takes longer than it saves


class Encoded(Protocol):
    """Image files by number; pickled small, and opened where they are first read."""

    def encoded(self, rows: np.ndarray) -> tuple[Sequence[bytes | Path], Sequence]:
        """Image files of numbers [n], or what is in them, and things to call them by in errors."""


class ImageStatistics(NamedTuple):
    """What is known of images once each was looked at.

    Attributes:
      fingerprint: as of `LabelledImages`.
      histogram: likewise.
    """

    fingerprint: str
    histogram: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images sorted by class, on disk: what `LabelledImages` has, but pixels are read when asked for.

    Attributes:
      source: the image files.
      order: [M] int, the number that each image has there; those of class 0 first, and so on.
      counts: [classes] int32, how many images each class has; they sum to M.
      names: one unique name a class.
      groups: one name a class for what it belongs to, or ''.
      shape: H, W and C.
      key: everything that the pixels of `source` depend on, as of `cache.kept`.
      form: How files are decoded.
    """

    source: Encoded
    order: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]
    shape: tuple[int, int, int]
    key: str
    form: decoding.Form = decoding.PLAIN
    _surveyed: list[ImageStatistics] = dataclasses.field(
        default_factory=list, init=False, repr=False
    )

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def select(self, classes: Sequence[int]) -> "StreamedImages":
        """Keeps the classes at these indices, in the order given."""
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
        """Decodes images; what indexing those in memory would give.

        Args:
          rows: [...] int, in [0, M); an image that is named several times is decoded once.
          threads: as of `decoding.decode_into`.

        Returns:
          [..., H, W, C] uint8.

        Raises:
          DataError: a file is missing or broken.
        """
        numbers, places = np.unique(self.order[rows], return_inverse=True)
        images = np.empty((len(numbers), *self.shape), np.uint8)
        encoded = self.source.encoded(numbers)
        decoding.decode_into(images, *encoded, form=self.form, threads=threads)
        return images[places.reshape(np.shape(rows))]

    def fingerprint(self) -> str:
        """As of `LabelledImages`, and the same for the same images; takes a survey."""
        return self.survey().fingerprint

    def histogram(self) -> np.ndarray:
        """How often each channel has each value, [C, 256] int64; takes a survey."""
        return self.survey().histogram

    def survey(
        self,
        *,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageStatistics:
        """Looks at every image once, and keeps on disk what was found.

        Args:
          workers: how many processes decode; None is one a core, if there is that much to do.
          progress: told after each block of images how many were read, and of how many.

        Raises:
          DataError: a file is missing or broken.
        """
        if not self._surveyed:
            names = hashlib.sha256(repr(self.names).encode()).hexdigest()
            look = functools.partial(self._survey, workers, progress)
            found = cache.kept(f"{self.key} survey {names}", look, pack=_pack, unpack=_unpack)
            self._surveyed.append(found)
        return self._surveyed[0]

    def _survey(
        self, workers: int | None, progress: Callable[[int, int], None] | None
    ) -> ImageStatistics:
        digest = begin_fingerprint((len(self), *self.shape), self.names, self.counts)
        total = np.zeros((self.shape[-1], 256), np.int64)
        size = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // int(np.prod(self.shape))))
        blocks = -(-len(self) // size)
        if workers is None:
            workers = min(cores(), blocks // _BLOCKS_A_WORKER)
        look = functools.partial(_look, self, size, 1 if workers else None)
        with Results(look, blocks, workers=workers) as results:
            for index, (images, part) in enumerate(results):
                digest.update(images)
                total += part
                if progress:
                    progress(min((index + 1) * size, len(self)), len(self))
        return ImageStatistics(digest.hexdigest(), total)


Images = LabelledImages | StreamedImages


def _look(
    data: StreamedImages, size: int, threads: int | None, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a block, and their histogram."""
    rows = np.arange(index * size, min((index + 1) * size, len(data)))
    images = data.read(rows, threads=threads)
    return images, histogram(images)


def _pack(survey: ImageStatistics) -> cache.Entry:
    return cache.Entry({"histogram": survey.histogram}, {"fingerprint": survey.fingerprint})


def _unpack(entry: cache.Entry) -> ImageStatistics:
    return ImageStatistics(entry.text["fingerprint"], entry.arrays["histogram"])
