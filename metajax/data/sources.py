"""One way into every data set: images of the training, validation and test classes.

What fits in memory is decoded at once, and cached on disk (see `cache`); of what does not, only the order of
the images is. Splitting is done anew each time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metajax.data import decoding, recipes, splits
from metajax.data.images import DataError
from metajax.data.recipes import available
from metajax.data.streamed import Images
from metajax.names import shown

__all__ = ["INVERT", "RESIDENT", "Splits", "available", "load"]

RESIDENT = ("auto", "always", "never")
"""Where `load` may be told to keep the images."""
INVERT = ("auto", "yes", "no")
"""Whether pixels are inverted: as suits the data set, always, never."""

# Of the memory: sorting and splitting hold all images twice, and then each device has a copy.
_LARGEST_SHARE = 1 / 3
_DRAWN = ("random", "lake")  # policies that depend on the seed


class Splits(NamedTuple):
    """A data set whose classes are split.

    Attributes:
      train: images of the classes to meta-train on.
      valid: of the classes to choose hyper-parameters and checkpoints by.
      test: of the classes to report.
      description: one line for people: data set, split, class counts.
      notes: Lines for people on what reading did to files and pixels, and which it left out.
      form: How pixels were read; `form.invert` is their polarity.
      test_form: How those of the test images were, where they are of another data set.
      sizes: min_images -> images of each class [classes] of each split, had `load` been given that
        `min_images`; DataError where it would raise one. None if unknown.
    """

    train: Images
    valid: Images
    test: Images
    description: str
    notes: tuple[str, ...] = ()
    form: decoding.Form = decoding.PLAIN
    test_form: decoding.Form | None = None
    sizes: Callable[[int], dict[str, np.ndarray]] | None = None


def load(
    dataset: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    split_file: str | None = None,
    split_seed: int = 0,
    image_size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    invert: str = "auto",
    bits: int | None = None,
    resident: str = "auto",
    memory: float | None = None,
    min_images: int = 1,
    min_classes: int = 1,
) -> Splits:
    """Reads a data set and splits its classes.

    Args:
      dataset: `glyphs` (made on the spot, needs no files), `omniglot`, `cifar_fs`, `fc100`,
        `folder:PATH` (or `folder`, and data_dir says which), or any image classification data set
        of TFDS by its name there.
      data_dir: where TFDS keeps its data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      split: the policy. `random` for all but cifar_fs and fc100; `script` for glyphs; `lake` for
        omniglot; `cifar_fs` and `fc100` for CIFAR-100; `given` for a folder with train, valid and
        test in it; `file`, with split_file, for all; `all` makes every class a test class, of which one will
        do, and leaves none to train on. None takes the data set's usual one.
      split_file: JSON {"train": [class names], "valid": [...], "test": [...]}.
      split_seed: of the policies that draw, `random` and `lake`.
      image_size: height and width; None is 28 for glyphs and omniglot, 32 for cifar, and otherwise
        the size of the images if that is one for all and at most 84, else 84.
      channels: 1 or 3, to which files of another kind are converted; None is 1 if all files are grey, and
        for glyphs and omniglot, and 3 otherwise.
      fit: One of `decoding.FITS`: how images that are not square become so.
      invert: One of INVERT; `auto` inverts omniglot, whose ink is black in the files, and nothing else.
      bits: Fewest bits that files of a folder with more than 8 per channel are taken to have, at most 32,
        such as those of images they are compared with; None is what the largest value needs.
      resident: whether the images are decoded into memory, which gives `LabelledImages`, or stay on
        disk, which gives `StreamedImages`; the same images either way. `auto` leaves them on disk if
        decoded they would take more than a third of the memory.
      memory: bytes, of the device's where that has less; None is what this machine has.
      min_images: Fewest images of a class; classes with fewer are left out before the others are divided.
      min_classes: Fewest classes that the split `random` gives to each of the three.

    Returns:
      The three splits.

    Raises:
      DataError: unknown data set or policy, missing or broken files, a split that does not fit.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size} and must be 1 or more")
    if resident not in RESIDENT:
        raise DataError(f"resident is '{shown(resident)}'; use one of: {', '.join(RESIDENT)}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels}; use 1 or 3")
    for option, value, known in (("fit", fit, decoding.FITS), ("invert", invert, INVERT)):
        if value not in known:
            raise DataError(f"{option} is '{shown(value)}'; use one of: {', '.join(known)}")
    source = recipes.find(
        dataset, recipes.Asked(data_dir, image_size, channels, fit, invert, bits, min_classes)
    )
    name, policy = _policy(source, split, split_file)
    most = _LARGEST_SHARE * (decoding.memory() if memory is None else memory)
    images = source.stream() if _streams(source, resident, image_size, most) else source.read()
    every = splits.Classes(images.names, images.groups, images.counts)
    divide = functools.partial(_divide, every, policy, split_seed)
    classes = divide(min_images)
    parts = {part: images.select(indices) for part, indices in classes.items()}
    seed = f" (seed {split_seed})" if name in _DRAWN else ""
    class_counts = ", ".join(f"{len(part.names)} {key}" for key, part in parts.items())
    shape = "x".join(map(str, images.shape))
    description = f"{source.title}, {shape}, split {name}{seed}: {class_counts} classes"
    notes = (*source.notes, *_too_small(every.counts, min_images))

    def sizes(least: int) -> dict[str, np.ndarray]:
        return {part: every.counts[list(indices)] for part, indices in divide(least).items()}

    return Splits(**parts, description=description, notes=notes, form=source.form, sizes=sizes)


def _divide(
    classes: splits.Classes, policy: splits.Policy | None, seed: int, min_images: int
) -> dict[str, Sequence[int]]:
    """Indices of the classes of each split, sorted by name; those of all for test without a policy."""
    if policy is not None:
        return splits.split_classes(classes, policy, seed=seed, min_images=min_images)
    every = sorted(splits.large_classes(classes, min_images), key=classes.names.__getitem__)
    return {"train": (), "valid": (), "test": every}


def _too_small(counts: np.ndarray, min_images: int) -> tuple[str, ...]:
    """A note on classes that are left out for their size, if there are any."""
    few = np.count_nonzero(counts < min_images)
    if not few:
        return ()
    have, are = ("has", "is") if few == 1 else ("have", "are")
    found = f"{few:,} of {len(counts):,} classes {have} fewer than {min_images} images"
    return (f"{found}, and {are} left out",)


def _streams(source: recipes.Source, resident: str, image_size: int | None, most: float) -> bool:
    """Whether images stay on disk, which `auto` says of those that take more than `most` bytes."""
    if resident == "never" and source.stream is None:
        raise DataError(
            f"{source.title} has no files to stream from; use resident='auto' or 'always'"
        )
    if resident != "auto" or source.stream is None:
        return resident == "never"
    # Metadata take a while to open, which most data sets are too small to need.
    side = image_size or decoding.LARGEST_NATIVE
    if source.count * side * side * 3 <= most:
        return False
    return source.size() > most


def _policy(
    source: recipes.Source, split: str | None, split_file: str | None
) -> tuple[str, splits.Policy | None]:
    """Chooses the policy and its name; no policy where all classes are for test."""
    if split_file is not None:
        if split not in (None, "file"):
            raise DataError(f"split {shown(split)} takes no split_file; leave out one of the two")
        return "file", splits.from_file(split_file)
    name = next(iter(source.policies)) if split is None else split
    if name == "file":
        raise DataError("split file needs a split_file")
    if name == "all":
        return name, None
    if name not in source.policies:
        fit = ", ".join([*source.policies, "file", "all"])
        raise DataError(f"split {shown(name)} does not fit {source.title}; choose one of: {fit}")
    return name, source.policies[name]
