"""One way into every data set: images of the training, validation and test classes.

What fits in memory is decoded at once, and cached on disk (see `cache`); of what does not, only the order of
the images is. Splitting is done anew each time.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from metajax.episodes import (
    cache,
    cifar100_splits,
    decoding,
    depth,
    folder,
    glyphs,
    left_out,
    splits,
    streamed,
    tfds_folders,
    tfds_source,
    traits,
)
from metajax.episodes.images import Arrangement, DataError, LabelledImages
from metajax.episodes.streamed import Images, StreamedImages
from metajax.names import shown

RESIDENT = ("auto", "always", "never")
"""Where `load` may be told to keep the images."""
INVERT = ("auto", "yes", "no")
"""Whether pixels are inverted: as suits the data set, always, never."""

# Of the memory: sorting and splitting hold all images twice, and then each device has a copy.
_LARGEST_SHARE = 1 / 3
_DRAWN = ("random", "lake")  # policies that depend on the seed
_GROUPS = {"omniglot": "alphabet", "cifar100": "coarse_label"}  # TFDS features that group classes


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


class _Asked(NamedTuple):
    """What `load` was asked for, of how images are read; as there."""

    data_dir: str | None = None
    image_size: int | None = None
    channels: int | None = None
    fit: str = "crop"
    invert: str = "auto"
    bits: int | None = None
    min_classes: int = 1

    def form(self, *, inverted: bool = False) -> decoding.Form:
        """The way to decode files of a data set that is, or is not, inverted by itself."""
        invert = inverted if self.invert == "auto" else self.invert == "yes"
        return decoding.Form(fit=self.fit, invert=invert)


class _Source(NamedTuple):
    """How to read a data set, and the ways to split it.

    Attributes:
      title: what to call it.
      policies: by name; the first is the default.
      read: decodes the images.
      stream: leaves them on disk; None where there are no files.
      size: how many bytes they take once decoded, found without decoding any.
      count: how many there are at most, known at once.
      form: How pixels are read.
      notes: Lines for people on what reading does to files and pixels, and which it leaves out.
    """

    title: str
    policies: Mapping[str, splits.Policy]
    read: Callable[[], LabelledImages]
    stream: Callable[[], StreamedImages] | None = None
    size: Callable[[], int] | None = None
    count: int = 0
    form: decoding.Form = decoding.PLAIN
    notes: tuple[str, ...] = ()


def available() -> tuple[str, ...]:
    """Names of the data sets with a recipe of their own; `load` takes those of TFDS besides."""
    return (*_RECIPES, "folder")


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
    source = _source(
        dataset, _Asked(data_dir, image_size, channels, fit, invert, bits, min_classes)
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


def _streams(source: _Source, resident: str, image_size: int | None, most: float) -> bool:
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
    source: _Source, split: str | None, split_file: str | None
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


def _source(dataset: str, asked: _Asked) -> _Source:
    kind, _, rest = dataset.partition(":")  # of TFDS names the rest is a version
    if kind in _RECIPES:
        return _RECIPES[kind](rest, asked)
    if kind == "folder":
        return _folder(rest or asked.data_dir, asked)
    policies = {"random": splits.random(least=asked.min_classes)}
    if kind == "cifar100":
        policies |= _CIFAR_POLICIES
    return _tfds(dataset, asked, policies)


def _glyphs(version: str, asked: _Asked) -> _Source:
    if version:
        raise DataError(f"glyphs has no versions; write glyphs, not glyphs:{shown(version)}")
    size, form = asked.image_size or 28, asked.form()
    key = f"glyphs {size} {_versions('matplotlib', 'pillow')} {_code(glyphs)}"

    def read() -> LabelledImages:
        found = cache.cached(key, lambda: glyphs.build(image_size=size))
        pixels = 255 - found.images if form.invert else found.images
        return found._replace(images=pixels.repeat(3, -1) if asked.channels == 3 else pixels)

    return _Source(
        title="glyphs",
        policies={
            "script": splits.by_group(glyphs.SPLIT_SCRIPTS),
            "random": splits.random(least=asked.min_classes),
        },
        read=read,
        form=form,
        notes=_converted(1, asked.channels),
    )


def _omniglot(version: str, asked: _Asked) -> _Source:
    policies = {"random": splits.random(counts=splits.OMNIGLOT_COUNTS), "lake": splits.lake()}
    asked = asked._replace(image_size=asked.image_size or 28)
    # Black ink on white paper becomes 255 on 0: an empty image is then all zeros.
    form = asked.form(inverted=True)
    return _tfds(_versioned("omniglot", version), asked, policies, form=form, channels=1)


def _cifar_fs(version: str, asked: _Asked) -> _Source:
    policies = {"cifar_fs": _CIFAR_POLICIES["cifar_fs"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _fc100(version: str, asked: _Asked) -> _Source:
    policies = {"fc100": _CIFAR_POLICIES["fc100"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _versioned(name: str, version: str) -> str:
    return f"{name}:{version}" if version else name


def _folder(path: str | None, asked: _Asked) -> _Source:
    if not path:
        raise DataError("which folder? Write folder:PATH, or folder with data_dir set to its path")
    root = Path(os.path.realpath(os.path.expanduser(path)))
    given = folder.given_split(root)
    policies = {"random": splits.random(least=asked.min_classes)}
    if given is not None:
        policies = {"given": splits.given(given), **policies}
    found = folder.listing(root)
    base = f"{root.name} {_code(decoding, depth, folder, traits)} {folder.fingerprint(root)}"
    least = asked.bits or depth.BITS[0]
    look = functools.partial(traits.inspect, found.files, least_bits=least)
    files = cache.kept(f"{base} traits {least}", look, pack=_pack_traits, unpack=_unpack_traits)
    form = asked.form()._replace(bits=files.bits)
    side = asked.image_size or files.side
    shape = (side, side, asked.channels or files.channels)
    key = f"{base} {shape} {tuple(form)}"

    def stream() -> StreamedImages:
        return StreamedImages(
            source=folder.Files.of(root, found.files),
            order=np.arange(len(found.files), dtype=np.int32),
            counts=found.counts,
            names=found.names,
            groups=("",) * len(found.names),
            shape=shape,
            key=f"{key} {_code(streamed)}",
            form=form,
        )

    notes = traits.notes(files, channels=shape[-1], fit=asked.fit)
    return _Source(
        title=f"folder {shown(root)}",
        policies=policies,
        read=lambda: cache.cached(key, lambda: folder.read(found, shape, form=form)),
        stream=stream,
        size=lambda: len(found.files) * math.prod(shape),
        count=len(found.files),
        form=form,
        notes=(*notes, *left_out.notes(root)),
    )


def _converted(found: int, asked: int | None) -> tuple[str, ...]:
    """A note on images of so many channels that become so many."""
    if asked in (None, found):
        return ()
    return ("colour becomes grey" if asked == 1 else "grey becomes three equal channels",)


def _tfds(
    name: str,
    asked: _Asked,
    policies: Mapping[str, splits.Policy],
    *,
    form: decoding.Form | None = None,
    channels: int | None = None,
) -> _Source:
    """A TFDS data set.

    Args:
      name: As `load`.
      asked: How to read it.
      policies: The ways to split it, by name.
      form: How to decode it, where that is not as for all.
      channels: How many it gets if not asked for, where that is not as declared.
    """
    form = form or asked.form()
    where = tfds_folders.find(name, data_dir=asked.data_dir, known=available())
    fingerprint = tfds_folders.fingerprint(where)
    chosen = asked.channels or channels
    words = f"{asked.image_size} {chosen} {tuple(form)}"
    key = f"{name} {where.name} {words} {_code(decoding, depth, tfds_source)} {fingerprint}"
    options = {
        "data_dir": asked.data_dir,
        "image_size": asked.image_size,
        "grayscale": None if chosen is None else chosen == 1,
        "group": _GROUPS.get(name.partition(":")[0]),
    }

    def stream() -> StreamedImages:
        prepared = tfds_source.prepared(name, **options)
        read = functools.partial(tfds_source.arrangement, prepared)
        found = cache.kept(f"{key} order", read, pack=_pack_order, unpack=_unpack_order)
        return StreamedImages(
            prepared.records,
            *found,
            shape=prepared.shape,
            key=f"{key} {_code(streamed)}",
            form=form,
        )

    return _Source(
        title=f"{name.partition(':')[0]} {where.name}",
        policies=policies,
        read=lambda: cache.cached(key, lambda: tfds_source.load(name, form=form, **options)),
        stream=stream,
        size=lambda: tfds_source.prepared(name, **options).size,
        count=tfds_folders.count_images(where),
        form=form,
        notes=_declared_notes(tfds_folders.image_shape(where), asked, channels),
    )


def _declared_notes(
    shape: tuple[int, int, int] | None, asked: _Asked, usual: int | None
) -> tuple[str, ...]:
    """Notes on images that declare this shape, a free size or number of channels being 0."""
    if shape is None:
        return ()
    height, width, channels = shape
    notes = _converted(usual or channels or 3, asked.channels)
    if not height == width > 0:
        notes += (f"images that are not square: {traits.FITTED[asked.fit]}",)
    return notes


def _pack_traits(found: traits.Traits) -> cache.Entry:
    return cache.Entry({}, found._asdict())


def _unpack_traits(entry: cache.Entry) -> traits.Traits:
    return traits.Traits(**{name: int(entry.text[name]) for name in traits.Traits._fields})


def _pack_order(found: Arrangement) -> cache.Entry:
    arrays = {"order": found.order, "counts": found.counts}
    return cache.Entry(arrays, {"names": found.names, "groups": found.groups})


def _unpack_order(entry: cache.Entry) -> Arrangement:
    names, groups = (tuple(entry.text[name]) for name in ("names", "groups"))
    found = Arrangement(**entry.arrays, names=names, groups=groups)
    if found.counts.sum() != len(found.order) or not len(names) == len(groups) == len(found.counts):
        raise ValueError("images, classes and their names do not fit together")
    return found


def _code(*modules: ModuleType) -> str:
    """Digest of this and other modules' source: what an older program decoded is not reused."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], *modules)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:16]


def _versions(*distributions: str) -> str:
    """Versions of the libraries that draw, as far as they are installed."""
    versions = [unicodedata.unidata_version]
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(distribution))
    return " ".join(versions)


_CIFAR_POLICIES = {
    "cifar_fs": splits.by_name(cifar100_splits.CIFAR_FS),
    "fc100": splits.by_name(cifar100_splits.FC100),
}
_RECIPES = {"glyphs": _glyphs, "omniglot": _omniglot, "cifar_fs": _cifar_fs, "fc100": _fc100}
