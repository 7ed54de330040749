"""Labeled images made of arrays."""

import numpy as np
import pytest

from metajax.data import LabelledImages
from metajax.errors import DataError

PIXELS = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)


def test_images_are_sorted_by_label_and_unlabeled_ones_left_out():
    found = LabelledImages.from_labels(PIXELS, np.array([2, 0, -1, 0]), ["a", "b", "c"])
    assert found.images.ravel().tolist() == [1, 3, 0]
    assert found.counts.tolist() == [2, 1] and found.names == ("a", "c")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0], "There are 4 images and 3 labels; give one label per image"),
        ([0, 1, 2, 0], "A label is 2, but there are 2 names of classes; name every class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        LabelledImages.from_labels(PIXELS, np.array(labels), ["a", "b"])
