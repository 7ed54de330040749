"""How each data set is read, and the ways to split its classes."""

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

from metajax.data import (
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
from metajax.data.images import Arrangement, DataError, LabelledImages
from metajax.data.streamed import StreamedImages
from metajax.names import shown

_GROUPS = {"omniglot": "alphabet", "cifar100": "coarse_label"}  # TFDS features that group classes


class Asked(NamedTuple):
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


class Source(NamedTuple):
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


def find(dataset: str, asked: Asked) -> Source:
    """Finds out how to read a data set, whose name is as of `sources.load`; DataError if there is none."""
    kind, _, rest = dataset.partition(":")  # of TFDS names the rest is a version
    if kind in _RECIPES:
        return _RECIPES[kind](rest, asked)
    if kind == "folder":
        return _folder(rest or asked.data_dir, asked)
    policies = {"random": splits.random(least=asked.min_classes)}
    if kind == "cifar100":
        policies |= _CIFAR_POLICIES
    return _tfds(dataset, asked, policies)


def _glyphs(version: str, asked: Asked) -> Source:
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
    policies = {"random": splits.random(counts=splits.OMNIGLOT_COUNTS), "lake": splits.lake()}
    asked = asked._replace(image_size=asked.image_size or 28)
    # Black ink on white paper becomes 255 on 0: an empty image is then all zeros.
    form = asked.form(inverted=True)
    return _tfds(_versioned("omniglot", version), asked, policies, form=form, channels=1)


def _cifar_fs(version: str, asked: Asked) -> Source:
    policies = {"cifar_fs": _CIFAR_POLICIES["cifar_fs"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _fc100(version: str, asked: Asked) -> Source:
    policies = {"fc100": _CIFAR_POLICIES["fc100"]}
    asked = asked._replace(image_size=asked.image_size or 32)
    return _tfds(_versioned("cifar100", version), asked, policies)


def _versioned(name: str, version: str) -> str:
    return f"{name}:{version}" if version else name


def _folder(path: str | None, asked: Asked) -> Source:
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
    return Source(
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
    asked: Asked,
    policies: Mapping[str, splits.Policy],
    *,
    form: decoding.Form | None = None,
    channels: int | None = None,
) -> Source:
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

    return Source(
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
    shape: tuple[int, int, int] | None, asked: Asked, usual: int | None
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
