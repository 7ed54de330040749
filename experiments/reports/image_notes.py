"""A description of how images were read, for plans and results, with warnings about suspicious images."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from metajax.data import images as labelled
from metajax.data.files.decoding import Form
from metajax.data.sources import Splits
from metajax.data.streamed import Images

SAMPLE = 1000  # number of images of a split in memory that its brightness is estimated from
FAR = 1.0  # distance of mean brightness to warn of, in standard deviations of the training pixels

_LEVELS = np.arange(256) / 255
_POLARITY = {True: "inverted", False: "as in the files"}


class Description(NamedTuple):
    """Polarity and form of the images, for people and for files.

    Attributes:
      rows: Pairs of name and text for the plan.
      facts: Fields of result.json.
    """

    rows: list[tuple[str, str]]
    facts: dict[str, Any]


def describe(images: Splits) -> Description:
    """Describes polarity, fit and bits of the images, and warns of splits that look wrong.

    Args:
      images: Splits of the data.

    Returns:
      Rows of the plan and fields of result.json.
    """
    form, test_form = images.form, images.test_form
    warnings = list(_constant(images))
    if images.train.num_images:
        warnings += _far(images)
    polarity = _POLARITY[form.invert]
    facts = _facts(form)
    if test_form:
        polarity += f"; test images {_POLARITY[test_form.invert]}"
        facts |= {f"test_{name}": value for name, value in _facts(test_form).items()}
    rows = [("polarity", polarity)]
    rows += [("note", note) for note in images.notes]
    rows += [("warning", warning) for warning in warnings]
    return Description(rows, {**facts, "notes": "; ".join((*images.notes, *warnings))})


def _facts(form: Form) -> dict[str, Any]:
    """Lists the fields of a form."""
    return {"inverted": form.invert, "fit": form.fit, "bits": form.bits}


def _constant(images: Splits) -> Iterator[str]:
    """Warns of splits whose pixels are all equal."""
    for name, split in _named(images):
        # A sample quickly shows that a split is not constant; only if it looks constant, all pixels are read.
        if _is_constant(_levels(split)) and _is_constant(split.histogram()):
            yield f"all pixels of the {name} images are equal; look at the files"


def _far(images: Splits) -> Iterator[str]:
    """Warns of splits whose mean brightness is FAR or more from that of the training pixels.

    The brightness of photographs of different data sets differs by a tenth of a standard deviation; that of
    inverted ink on paper differs by three.
    """
    usual, deviation = _moments(_levels(images.train))
    for name, split in _named(images):
        mean, _ = _moments(_levels(split))
        if abs(mean - usual) <= FAR * deviation or not deviation:
            continue
        remedy = ""
        if name == "test" and images.test_form and abs(1 - mean - usual) < abs(mean - usual):
            other = "no" if images.test_form.invert else "yes"
            remedy = f"; if their dark and light are changed over, use --test_invert={other}"
        yield (
            f"the {name} images have a mean brightness of {mean:.2f}, and the training images of "
            f"{usual:.2f} +- {deviation:.2f}{remedy}"
        )


def _named(images: Splits) -> list[tuple[str, Images]]:
    """Lists the splits that have images, with their names."""
    splits = [(name, getattr(images, name)) for name in ("train", "valid", "test")]
    return [(name, split) for name, split in splits if split.num_images]


def _levels(split: Images) -> np.ndarray:
    """Counts each value of each channel [C, 256], on a sample if the images are in memory."""
    if not isinstance(split, labelled.LabelledImages):
        return split.histogram()
    return labelled.histogram(split.images[:: -(-split.num_images // SAMPLE)])


def _is_constant(levels: np.ndarray) -> bool:
    """Returns whether every channel has at most one value."""
    return bool(((levels > 0).sum(axis=1) <= 1).all())


def _moments(levels: np.ndarray) -> tuple[float, float]:
    """Computes mean and standard deviation of pixels in [0, 1], over all channels."""
    shares = levels.sum(axis=0) / levels.sum()
    mean = float(shares @ _LEVELS)
    return mean, float(np.sqrt(max(shares @ _LEVELS**2 - mean**2, 0)))
