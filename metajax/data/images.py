"""Labeled images in memory: the form in which data sets are read, and from which class stores are made."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.errors import DataError


class Arrangement(NamedTuple):
    """The order that sorts images by class.

    Attributes:
      order: Numbers of the M images, [M] int64: first the images of class 0, then the images of class 1, ...
      counts: Number of images per class, [classes] int32; the sum is M.
      names: Unique name of each class.
      groups: Group that each class belongs to, such as a superclass; '' for none.
    """

    order: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]


class LabelledImages(NamedTuple):
    """Images in memory, sorted by class.

    `metajax.data.load` reads data sets and folders; `LabelledImages.from_labels` sorts arrays from elsewhere.
    `metajax.episodes.class_store` puts them on the device.

    Attributes:
      images: Pixels [M, H, W, C] uint8: first the images of class 0, then the images of class 1, ...
      counts: Number of images per class, [classes] int32; the sum is M.
      names: Unique name of each class.
      groups: Group that each class belongs to, such as a script, an alphabet or a superclass; '' for none.

    Example:
      >>> pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
      >>> images = LabelledImages.from_labels(pixels, np.array([1, 0, 1, 0]), ["cat", "dog"])
      >>> print(images.images.ravel(), images.counts, images.names)
      [1 3 0 2] [2 2] ('cat', 'dog')
      >>> images.select([1]).names
      ('dog',)
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def from_labels(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        groups: Sequence[str] | None = None,
    ) -> "LabelledImages":
        """Sorts images by their labels.

        Args:
          images: Pixels [M, H, W, C] uint8.
          labels: Labels [M], ints in [0, classes). Images with a negative label are left out; so are classes
            without images.
          names: Unique name of each class.
          groups: Group that each class belongs to; None for none.

        Returns:
          The images, in their given order within each class.

        Raises:
          DataError: If the numbers of images and labels differ, or a label has no name.
        """
        if len(images) != len(labels):
            raise DataError(
                f"There are {len(images)} images and {len(labels)} labels; give one label per image."
            )
        found = arrange(labels, names, groups)
        pixels = np.ascontiguousarray(images[found.order])
        return cls(pixels, found.counts, found.names, found.groups)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def num_images(self) -> int:
        """Number of images M of all classes."""
        return len(self.images)

    def select(self, classes: Sequence[int]) -> "LabelledImages":
        """Keeps some of the classes.

        Args:
          classes: Numbers of the classes to keep, in their new order.

        Returns:
          The images of these classes.
        """
        ends = np.cumsum(self.counts)
        kept = [self.images[ends[c] - self.counts[c] : ends[c]] for c in classes]
        empty = self.images[:0]
        return LabelledImages(
            images=np.concatenate([empty, *kept]),
            counts=self.counts[list(classes)],
            names=tuple(self.names[c] for c in classes),
            groups=tuple(self.groups[c] for c in classes),
        )

    def fingerprint(self) -> str:
        """Hashes the images, the sizes and the names of the classes.

        Returns:
          SHA-256 as hexadecimal digits; `StreamedImages.fingerprint` gives the same for the same images.
        """
        digest = begin_fingerprint(self.images.shape, self.names, self.counts)
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()

    def histogram(self) -> np.ndarray:
        """Counts the pixels of each value in each channel.

        Returns:
          Numbers of pixels, [C, 256] int64.
        """
        # Blocks of images, because `histogram` makes a copy of wider integers.
        starts = range(0, len(self.images), 1000)
        parts = [histogram(self.images[start : start + 1000]) for start in starts]
        return np.sum([np.zeros((self.shape[-1], 256), np.int64), *parts], axis=0)


def arrange(
    labels: np.ndarray, names: Sequence[str], groups: Sequence[str] | None = None
) -> Arrangement:
    """Finds the order that sorts images by label, and keeps the given order within each class.

    Args:
      labels: Labels [M], ints in [0, classes). Images with a negative label are left out; so are classes
        without images.
      names: Unique name of each class.
      groups: Group that each class belongs to; None for none.

    Returns:
      The order, and the sizes, names and groups of the classes.

    Raises:
      DataError: If a label has no name.

    Example:
      >>> found = arrange(np.array([1, -1, 0, 1]), ["cat", "dog", "emu"])
      >>> print(found.order, found.counts, found.names)
      [2 0 3] [1 2] ('cat', 'dog')
    """
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) and (highest := labels.max()) >= len(names):
        raise DataError(
            f"A label is {highest}, but there are {len(names)} names of classes; name every class."
        )
    order = labelled[np.argsort(labels[labelled], kind="stable")]
    counts = np.bincount(labels[labelled], minlength=len(names))
    present = np.flatnonzero(counts).tolist()
    groups = [""] * len(names) if groups is None else groups
    return Arrangement(
        order=order,
        counts=counts[present].astype(np.int32),
        names=tuple(names[i] for i in present),
        groups=tuple(groups[i] for i in present),
    )


def begin_fingerprint(shape: tuple[int, ...], names: tuple[str, ...], counts: np.ndarray):
    """Starts the SHA-256 of labeled images; the caller adds their pixels in order.

    Args:
      shape: Shape [M, H, W, C] of the images.
      names: Name of each class.
      counts: Number of images per class, [classes].

    Returns:
      The `hashlib` object.
    """
    digest = hashlib.sha256(repr((shape, names)).encode())
    digest.update(np.asarray(counts, "<i4").tobytes())
    return digest


def histogram(images: np.ndarray) -> np.ndarray:
    """Counts the pixels of each value in each channel.

    Args:
      images: Pixels [..., C] uint8.

    Returns:
      Numbers of pixels, [C, 256] int64.

    Example:
      >>> counts = histogram(np.array([[0], [255], [255]], np.uint8))
      >>> print(counts.shape, counts[0, 0], counts[0, 255])
      (1, 256) 1 2
    """
    channels = np.moveaxis(images, -1, 0)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
