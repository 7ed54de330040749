"""What a plan and a result say of how images were read, and what about them looks wrong."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from metajax.data import images as labelled
from metajax.data.decoding import Form
from metajax.data.sources import Splits
from metajax.data.streamed import Images

SAMPLE = 1000  # images of a split in memory whose brightness stands for all
FAR = 1.0  # standard deviations of the training pixels

_LEVELS = np.arange(256) / 255
_POLARITY = {True: "inverted", False: "as in the files"}


class Description(NamedTuple):
    """Rows of the plan, and fields of result.json."""

    rows: list[tuple[str, str]]
    facts: dict[str, Any]


def describe(images: Splits) -> Description:
    """Tells polarity, fit and range of images, and warns of those that look wrong."""
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
    return {"inverted": form.invert, "fit": form.fit, "bits": form.bits}


def _constant(images: Splits) -> Iterator[str]:
    """Warns of splits whose pixels are all equal."""
    for name, split in _named(images):
        # A sample tells most that are not, and quickly.
        if _is_constant(_levels(split)) and _is_constant(split.histogram()):
            yield f"all pixels of the {name} images are equal; look at the files"


def _far(images: Splits) -> Iterator[str]:
    """Warns of splits whose mean brightness is FAR or more from that of the training pixels.

    Photographs of different data sets differ by a tenth of a standard deviation, and ink and paper that are
    changed over by three.
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
    splits = [(name, getattr(images, name)) for name in ("train", "valid", "test")]
    return [(name, split) for name, split in splits if split.num_images]


def _levels(split: Images) -> np.ndarray:
    """How often each channel has each value [C, 256], by a sample of the images where they are in memory."""
    if not isinstance(split, labelled.LabelledImages):
        return split.histogram()
    return labelled.histogram(split.images[:: -(-split.num_images // SAMPLE)])


def _is_constant(levels: np.ndarray) -> bool:
    return bool(((levels > 0).sum(axis=1) <= 1).all())


def _moments(levels: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of pixels in [0, 1], over all channels."""
    shares = levels.sum(axis=0) / levels.sum()
    mean = float(shares @ _LEVELS)
    return mean, float(np.sqrt(max(shares @ _LEVELS**2 - mean**2, 0)))
