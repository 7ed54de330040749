"""Labelled images on the host: what every image source makes and the class store is built from."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Data that is missing, broken or unfit for what was asked; its message is for the user."""


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
        """Sorts images [M, H, W, C] by labels [M] in [0, len(names)); classes without images are dropped."""
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(names))
        present = np.flatnonzero(counts)
        groups = [""] * len(names) if groups is None else groups
        return cls(
            images=np.ascontiguousarray(images[order]),
            counts=counts[present].astype(np.int32),
            names=tuple(names[i] for i in present),
            groups=tuple(groups[i] for i in present),
        )

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
        digest = hashlib.sha256(repr((self.images.shape, self.names)).encode())
        digest.update(np.asarray(self.counts, "<i4").tobytes())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()
