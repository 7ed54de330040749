"""Data sets by name, as images of training, validation and test classes.

Images that fit into memory are decoded at once and cached on disk (see `cache`); of larger data sets, the
order of the images alone is cached. Splitting is not cached.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metajax.data import recipes, splits
from metajax.data.files import decoding
from metajax.data.recipes import available
from metajax.data.streamed import Images
from metajax.errors import DataError
from metajax.names import shown

__all__ = ["INVERT", "RESIDENT", "Splits", "available", "load"]

RESIDENT = ("auto", "always", "never")
"""Values of the option `resident` of `load`."""
INVERT = ("auto", "yes", "no")
"""Values of the option `invert` of `load`: as suits the data set, always, never."""

# Largest share of the memory for images: sorting and splitting hold them twice, and each device has a copy.
_LARGEST_SHARE = 1 / 3
_DRAWN = ("random", "lake")  # policies that depend on the seed


class Splits(NamedTuple):
    """A data set whose classes are split; `load` makes it.

    Attributes:
      train: Images of the classes for meta-training.
      valid: Images of the classes for the choice of hyper-parameters and checkpoints.
      test: Images of the classes for reported scores.
      description: Line for people: data set, split, numbers of classes.
      notes: Lines for people about changes of pixels, and files that were left out.
      form: Way in which pixels were read; `form.invert` is their polarity.
      test_form: The same for test images of another data set; None if they are of this one.
      sizes: Function min_images -> number of images per class [classes] by split, if `load` were called with
        that `min_images`; it raises DataError if `load` would. None if unknown.

    Example:
      >>> pixels = np.zeros((4, 8, 8, 1), np.uint8)
      >>> images = metajax.data.LabelledImages.from_labels(pixels, np.arange(4), ["a", "b", "c", "d"])
      >>> parts = [images.select([0, 1]), images.select([2]), images.select([3])]
      >>> Splits(*parts, description="four pictures").train.names
      ('a', 'b')
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
      dataset: Name: `glyphs` (characters drawn from fonts, without any files), `omniglot`, `symbols` (both,
        with the training scripts of `glyphs`), `cifar_fs`, `fc100`, `folder:PATH` (or `folder`, with
        `data_dir` as its path), or the name of any TFDS data set for image classification. A folder has a
        folder of images per class, see `files.folder`.
      data_dir: Folder of TFDS data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      split: Policy that splits the classes. `random` for all data sets but `cifar_fs` and `fc100`, which
        have their own; `script` for `glyphs`; `lake` for `omniglot` and `symbols`; `cifar_fs` and `fc100` for
        CIFAR-100; `given` for a folder with folders train, valid and test; `file`, with `split_file`, for all
        data sets; `all` makes every class a test class, so there may be as few as one. None is the usual
        policy of the data set.
      split_file: JSON file {"train": [class names], "valid": [...], "test": [...]}.
      split_seed: Seed of the policies that draw, `random` and `lake`.
      image_size: Height and width in pixels; None is 28 for `glyphs`, `omniglot` and `symbols`, 32 for
        CIFAR-100, and otherwise the size of the images if they share one of at most 84, else 84.
      channels: Number of channels, 1 or 3, to which files are converted; None is 1 for `glyphs`, `omniglot`,
        `symbols` and files that are all gray, and 3 otherwise.
      fit: Way to make images square: `crop` keeps the middle square, `pad` adds a border of the mean color,
        `stretch` changes the ratio of the sides.
      invert: Inversion of pixels, `auto`, `yes` or `no`; `auto` inverts `omniglot` and `symbols` alone,
        whose ink is black in the files.
      bits: Fewest bits per channel, at most 32, that are assumed of folder files with more than 8, such as
        the bits of images they are compared with; None is as many as the largest value needs.
      resident: Place of the images: `always` decodes them into memory and returns `LabelledImages`, `never`
        leaves them on disk and returns `StreamedImages` with the same pixels; `auto` leaves them on disk if
        they would take more than a third of the memory.
      memory: Bytes of memory, or of device memory if that is less; None is the memory of this machine.
      min_images: Fewest images of a class; smaller classes are left out before the others are split.
      min_classes: Fewest classes of each split of the policy `random`.

    Returns:
      The three splits.

    Raises:
      DataError: If the data set or the policy is unknown, an option is out of range, files are missing or
        broken, or the split does not fit the data.

    Example:
      Three classes of two pictures, in a folder per class.

      >>> import tempfile
      >>> from pathlib import Path
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as root:
      ...     for name in ("ant", "bee", "cat"):
      ...         Path(root, name).mkdir()
      ...         for number in range(2):
      ...             Image.new("L", (8, 8), 100 * number).save(Path(root, name, f"{number}.png"))
      ...     images = load(f"folder:{root}")
      >>> images.train.shape, len(images.train.names), images.train.num_images
      ((8, 8, 1), 1, 2)
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}; use 1 or more")
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
    stream = source.stream if _streams(source, resident, image_size, most) else None
    images = source.read() if stream is None else stream()
    every = splits.Classes(images.names, images.groups, images.counts)
    divide = functools.partial(_divide, every, policy, split_seed)
    classes = divide(min_images)
    parts = {part: images.select(classes[part]) for part in splits.SPLITS}
    seed = f" (seed {split_seed})" if name in _DRAWN else ""
    class_counts = ", ".join(f"{len(part.names)} {key}" for key, part in parts.items())
    shape = "x".join(map(str, images.shape))
    description = f"{source.title}, {shape}, split {name}{seed}: {class_counts} classes"
    notes = (*source.notes, *_too_small(every.counts, min_images))

    def sizes(least: int) -> dict[str, np.ndarray]:
        return {part: every.counts[list(indices)] for part, indices in divide(least).items()}

    return Splits(
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        description=description,
        notes=notes,
        form=source.form,
        sizes=sizes,
    )


def _divide(
    classes: splits.Classes, policy: splits.Policy | None, seed: int, min_images: int
) -> Mapping[str, Sequence[int]]:
    """Finds the classes of each split, sorted by name; without a policy all are for test."""
    if policy is not None:
        return splits.split_classes(classes, policy, seed=seed, min_images=min_images)
    every = sorted(splits.large_classes(classes, min_images), key=classes.names.__getitem__)
    return {"train": (), "valid": (), "test": every}


def _too_small(counts: np.ndarray, min_images: int) -> tuple[str, ...]:
    """Describes the classes that are left out because of their size, if there are any."""
    few = np.count_nonzero(counts < min_images)
    if not few:
        return ()
    have, are = ("has", "is") if few == 1 else ("have", "are")
    found = f"{few:,} of {len(counts):,} classes {have} fewer than {min_images} images"
    return (f"{found}, and {are} left out",)


def _streams(source: recipes.Source, resident: str, image_size: int | None, most: float) -> bool:
    """Returns whether images stay on disk; with `auto`, if they take more than `most` bytes."""
    if resident == "never" and source.stream is None:
        raise DataError(
            f"{source.title} has no files to stream from; use resident='auto' or 'always'"
        )
    if resident != "auto" or source.stream is None:
        return resident == "never"
    # An upper limit is known at once, and enough for most data sets: the exact size takes a while to find.
    side = image_size or decoding.LARGEST_NATIVE
    if source.most * side * side * 3 <= most or source.size is None:
        return False
    return source.size() > most


def _policy(
    source: recipes.Source, split: str | None, split_file: str | None
) -> tuple[str, splits.Policy | None]:
    """Chooses the policy and its name; None for the policy if all classes are for test."""
    if split_file is not None:
        if split not in (None, "file"):
            raise DataError(f"split {shown(split)} takes no split_file; leave out one of the two")
        return "file", splits.from_file(split_file)
    name = next(iter(source.policies)) if split is None else split
    if name == "file":
        raise DataError("split file needs a split_file; give its path")
    if name == "all":
        return name, None
    if name not in source.policies:
        fit = ", ".join([*source.policies, "file", "all"])
        raise DataError(f"split {shown(name)} does not fit {source.title}; choose one of: {fit}")
    return name, source.policies[name]
