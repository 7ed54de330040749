"""Labelled images on the host: what every image source makes and the class store is built from."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Data that is missing, broken or unfit for what was asked; its message is for the user."""


class Arrangement(NamedTuple):
    """How images are sorted by class.

    Attributes:
      order: [M] int64, numbers of the images; those of class 0 first, then those of class 1, and so on.
      counts: [classes] int32, how many images each class has; they sum to M.
      names: one unique name a class.
      groups: one name a class for what it belongs to, or ''.
    """

    order: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]


class LabelledImages(NamedTuple):
    """Images sorted by class.

    Attributes:
      images: [M, H, W, C] uint8; those of class 0 first, then those of class 1, and so on.
      counts: [classes] int32, how many images each class has; they sum to M.
      names: one unique name a class.
      groups: one name a class for what it belongs to (a script, an alphabet, a superclass), or ''.
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
        """Sorts images [M, H, W, C] by their labels [M], as `arrange` has it."""
        order, *classes = arrange(labels, names, groups)
        return cls(np.ascontiguousarray(images[order]), *classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W and C."""
        return self.images.shape[1:]

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.images)

    def select(self, classes: Sequence[int]) -> "LabelledImages":
        """Keeps the classes at these indices, in the order given."""
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
        """SHA-256 of the images, the class sizes and the names: equal only if the data are."""
        digest = begin_fingerprint(self.images.shape, self.names, self.counts)
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()

    def histogram(self) -> np.ndarray:
        """How often each channel has each value, [C, 256] int64."""
        # Some images at a time, lest there be a wider copy of all the pixels.
        starts = range(0, len(self.images), 1000)
        parts = [histogram(self.images[start : start + 1000]) for start in starts]
        return np.sum([np.zeros((self.shape[-1], 256), np.int64), *parts], axis=0)


def arrange(
    labels: np.ndarray, names: Sequence[str], groups: Sequence[str] | None = None
) -> Arrangement:
    """Sorts images by labels [M] in [0, len(names)), those of a class as they come.

    Images without a label, which is negative then, are left out; so are classes without images.
    """
    labelled = np.flatnonzero(labels >= 0)
    order = labelled[np.argsort(labels[labelled], kind="stable")]
    counts = np.bincount(labels[labelled], minlength=len(names))
    present = np.flatnonzero(counts)
    groups = [""] * len(names) if groups is None else groups
    return Arrangement(
        order=order,
        counts=counts[present].astype(np.int32),
        names=tuple(names[i] for i in present),
        groups=tuple(groups[i] for i in present),
    )


def begin_fingerprint(shape: tuple[int, ...], names: tuple[str, ...], counts: np.ndarray):
    """A SHA-256 of all but the pixels of images of this shape [M, H, W, C], which are to follow in order."""
    digest = hashlib.sha256(repr((shape, names)).encode())
    digest.update(np.asarray(counts, "<i4").tobytes())
    return digest


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each channel of images [..., C] uint8 has each value, [C, 256] int64."""
    channels = np.moveaxis(images, -1, 0)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
