"""Recipes of data sets: the way to read each, and the policies that split its classes."""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from metajax.data import cache, cifar100_splits, glyphs, splits, streamed
from metajax.data.files import decoding, depth, folder, left_out, traits
from metajax.data.images import Arrangement, LabelledImages
from metajax.data.streamed import StreamedImages
from metajax.data.tfds import folders as tfds_folders
from metajax.data.tfds import source as tfds_source
from metajax.errors import DataError
from metajax.names import shown

# TFDS features that group classes, by data set.
_GROUPS = {"omniglot": "alphabet", "cifar100": "coarse_label"}


class Asked(NamedTuple):
    """Options of `load` for reading images; see there.

    Attributes:
      data_dir: Folder of TFDS data sets, or path of a folder of images.
      image_size: Height and width in pixels; None for the default of the data set.
      channels: Number of channels, 1 or 3; None for the default of the data set.
      fit: Way to make images square.
      invert: Inversion of pixels, `auto`, `yes` or `no`.
      bits: Fewest bits per channel of files with more than 8.
      min_classes: Fewest classes of each split of the policy `random`.
    """

    data_dir: str | None = None
    image_size: int | None = None
    channels: int | None = None
    fit: str = "crop"
    invert: str = "auto"
    bits: int | None = None
    min_classes: int = 1

    def form(self, *, inverted: bool = False) -> decoding.Form:
        """Makes the way to decode files.

        Args:
          inverted: Whether `invert="auto"` inverts this data set.

        Returns:
          The way to decode files.
        """
        invert = inverted if self.invert == "auto" else self.invert == "yes"
        return decoding.Form(fit=self.fit, invert=invert)


class Source(NamedTuple):
    """A data set: functions that read it, and the policies that split it.

    Attributes:
      title: Name for people.
      policies: Policies by name; the first is the default.
      read: Function () -> images in memory.
      stream: Function () -> images on disk; None if there are no files.
      size: Function () -> bytes of all decoded images, found without decoding; None if there are no files.
      most: Upper limit of the number of images, known at once.
      form: Way in which pixels are read.
      notes: Lines for people about changes of pixels, and files that are left out.
    """

    title: str
    policies: Mapping[str, splits.Policy]
    read: Callable[[], LabelledImages]
    stream: Callable[[], StreamedImages] | None = None
    size: Callable[[], int] | None = None
    most: int = 0
    form: decoding.Form = decoding.PLAIN
    notes: tuple[str, ...] = ()


def available() -> tuple[str, ...]:
    """Lists the data sets with their own recipe; `load` also reads the data sets of TFDS.

    Returns:
      Names for `load`.

    Example:
      >>> metajax.data.sources.available()
      ('glyphs', 'omniglot', 'symbols', 'cifar_fs', 'fc100', 'folder')
    """
    return (*_RECIPES, "folder")


def find(dataset: str, asked: Asked) -> Source:
    """Finds the way to read a data set.

    Args:
      dataset: Name, as in `sources.load`.
      asked: Options.

    Returns:
      The data set; its images are not read yet.

    Raises:
      DataError: If there is no such data set.
    """
    kind, _, rest = dataset.partition(":")  # the rest of a TFDS name is its version
    if kind in _RECIPES:
        return _RECIPES[kind](rest, asked)
    if kind == "folder":
        return _folder(rest or asked.data_dir, asked)
    policies = {"random": splits.random(least=asked.min_classes)}
    if kind == "cifar100":
        policies |= _CIFAR_POLICIES
    return _tfds(dataset, asked, policies)


def _glyphs(version: str, asked: Asked) -> Source:
    """Describes the characters that are drawn from fonts."""
    if version:
        raise DataError(f"glyphs has no versions; write glyphs, not glyphs:{shown(version)}")
    size, form = asked.image_size or 28, asked.form()
    key = f"glyphs {size} {_versions('matplotlib', 'pillow')} {_code(glyphs)}"

    def read() -> LabelledImages:
        found = cache.cached(key, lambda: glyphs.build(image_size=size))
        pixels = 255 - found.images if form.invert else found.images
        return found._replace(images=pixels.repeat(3, -1) if asked.channels == 3 else pixels)

    return Source(
        title="glyphs",
        policies={
            "script": splits.by_group(glyphs.SPLIT_SCRIPTS),
            "random": splits.random(least=asked.min_classes),
        },
        read=read,
        form=form,
        notes=_converted(1, asked.channels),
    )


def _omniglot(version: str, asked: Asked) -> Source:
    """Describes Omniglot, from TFDS."""
    policies = {"random": splits.random(counts=splits.OMNIGLOT_COUNTS), "lake": splits.lake()}
    asked = asked._replace(image_size=asked.image_size or 28)
    # Black ink on white paper becomes 255 on 0, so that an empty image is all zeros.
    form = asked.form(inverted=True)
    return _tfds(_versioned("omniglot", version), asked, policies, form=form, channels=1)


def _symbols(version: str, asked: Asked) -> Source:
    """Describes the training scripts of glyphs joined with Omniglot, which has the polarity of its files."""
    drawn, written = _glyphs("", asked), _omniglot(version, asked)
    scripts = glyphs.SPLIT_SCRIPTS["train"]

    def read() -> LabelledImages:
        letters, characters = drawn.read(), written.read()
        letters = letters.select([i for i, group in enumerate(letters.groups) if group in scripts])
        # Where Omniglot stays black on white, so do the letters.
        if written.form.invert == drawn.form.invert:
            letters = letters._replace(images=255 - letters.images)
        both = letters, characters
        return LabelledImages(
            np.concatenate([part.images for part in both]),
            np.concatenate([part.counts for part in both]),
            letters.names + characters.names,
            letters.groups + characters.groups,
        )

    return Source(
        title=f"symbols, of glyphs and {written.title}",
        policies={"lake": splits.lake(also=scripts)},
        read=read,
        form=written.form,
        notes=written.notes,
    )


def _cifar_fs(version: str, asked: Asked) -> Source:
    """Describes CIFAR-FS, from TFDS."""
    policies = {"cifar_fs": _CIFAR_POLICIES["cifar_fs"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _fc100(version: str, asked: Asked) -> Source:
    """Describes FC100, from TFDS."""
    policies = {"fc100": _CIFAR_POLICIES["fc100"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _versioned(name: str, version: str) -> str:
    """Joins a name and a version in TFDS's way."""
    return f"{name}:{version}" if version else name


def _folder(path: str | None, asked: Asked) -> Source:
    """Describes a folder of images, and looks at the headers of its files."""
    if not path:
        raise DataError(
            "the data set folder has no path; write folder:PATH, or set data_dir to the path"
        )
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
    return Source(
        title=f"folder {shown(root)}",
        policies=policies,
        read=lambda: cache.cached(key, lambda: folder.read(found, shape, form=form)),
        stream=stream,
        size=lambda: len(found.files) * math.prod(shape),
        most=len(found.files),
        form=form,
        notes=(*notes, *left_out.notes(root)),
    )


def _converted(found: int, asked: int | None) -> tuple[str, ...]:
    """Describes the conversion from a number of channels to another, if there is one."""
    if asked in (None, found):
        return ()
    return ("colour becomes grey" if asked == 1 else "grey becomes three equal channels",)


def _tfds(
    name: str,
    asked: Asked,
    policies: Mapping[str, splits.Policy],
    *,
    form: decoding.Form | None = None,
    channels: int | None = None,
) -> Source:
    """Describes a TFDS data set.

    Args:
      name: Name, as in `load`.
      asked: Options.
      policies: Policies that split its classes, by name.
      form: Way to decode files; None for the usual one.
      channels: Default number of channels; None for the number that the data set declares.
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

    return Source(
        title=f"{name.partition(':')[0]} {where.name}",
        policies=policies,
        read=lambda: cache.cached(key, lambda: tfds_source.load(name, form=form, **options)),
        stream=stream,
        size=lambda: tfds_source.prepared(name, **options).size,
        most=tfds_folders.count_images(where),
        form=form,
        notes=_declared_notes(tfds_folders.image_shape(where), asked, channels),
    )


def _declared_notes(
    shape: tuple[int, int, int] | None, asked: Asked, usual: int | None
) -> tuple[str, ...]:
    """Describes the conversion of images that declare this shape; 0 stands for a free size."""
    if shape is None:
        return ()
    height, width, channels = shape
    notes = _converted(usual or channels or 3, asked.channels)
    if not height == width > 0:
        notes += (f"images that are not square: {traits.FITTED[asked.fit]}",)
    return notes


def _pack_traits(found: traits.Traits) -> cache.Entry:
    """Packs traits for a file of the cache."""
    return cache.Entry({}, found._asdict())


def _unpack_traits(entry: cache.Entry) -> traits.Traits:
    """Makes traits of a file's content."""
    return traits.Traits(**{name: int(entry.text[name]) for name in traits.Traits._fields})


def _pack_order(found: Arrangement) -> cache.Entry:
    """Packs an order for a file of the cache."""
    arrays = {"order": found.order, "counts": found.counts}
    return cache.Entry(arrays, {"names": found.names, "groups": found.groups})


def _unpack_order(entry: cache.Entry) -> Arrangement:
    """Makes an order of a file's content; raises ValueError if its parts do not fit."""
    names, groups = (tuple(entry.text[name]) for name in ("names", "groups"))
    found = Arrangement(**entry.arrays, names=names, groups=groups)
    if found.counts.sum() != len(found.order) or not len(names) == len(groups) == len(found.counts):
        raise ValueError("images, classes and their names do not fit together")
    return found


def _code(*modules: ModuleType) -> str:
    """Hashes the source of this and other modules, so that a cache of other code is not read."""
    sources = [inspect.getsource(module) for module in (sys.modules[__name__], *modules)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:16]


def _versions(*distributions: str) -> str:
    """Lists the versions of installed libraries, and of the Unicode tables."""
    versions = [unicodedata.unidata_version]
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(distribution))
    return " ".join(versions)


_CIFAR_POLICIES = {
    "cifar_fs": splits.by_name(cifar100_splits.CIFAR_FS),
    "fc100": splits.by_name(cifar100_splits.FC100),
}
_RECIPES = {
    "glyphs": _glyphs,
    "omniglot": _omniglot,
    "symbols": _symbols,
    "cifar_fs": _cifar_fs,
    "fc100": _fc100,
}
