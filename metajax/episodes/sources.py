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
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from metajax.episodes import (
    cache,
    cifar100_splits,
    decoding,
    folder,
    glyphs,
    splits,
    streamed,
    tfds_folders,
    tfds_source,
)
from metajax.episodes.images import Arrangement, DataError, LabelledImages
from metajax.episodes.streamed import Images, StreamedImages

RESIDENT = ("auto", "always", "never")
"""Where `load` may be told to keep the images."""

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
    """

    train: Images
    valid: Images
    test: Images
    description: str


class _Source(NamedTuple):
    """How to read a data set, and the ways to split it.

    Attributes:
      title: what to call it.
      policies: by name; the first is the default.
      read: decodes the images.
      stream: leaves them on disk; None where there are no files.
      size: how many bytes they take once decoded, found without decoding any.
      count: how many there are at most, known at once.
    """

    title: str
    policies: Mapping[str, splits.Policy]
    read: Callable[[], LabelledImages]
    stream: Callable[[], StreamedImages] | None = None
    size: Callable[[], int] | None = None
    count: int = 0


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
    resident: str = "auto",
    memory: float | None = None,
) -> Splits:
    """Reads a data set and splits its classes.

    Args:
      dataset: `glyphs` (made on the spot, needs no files), `omniglot`, `cifar_fs`, `fc100`,
        `folder:PATH` (or `folder`, and data_dir says which), or any image classification data set
        of TFDS by its name there.
      data_dir: where TFDS keeps its data sets; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      split: the policy. `random` for all but cifar_fs and fc100; `script` for glyphs; `lake` for
        omniglot; `cifar_fs` and `fc100` for CIFAR-100; `given` for a folder with train, valid and
        test in it; `file`, with split_file, for all. None takes the data set's usual one.
      split_file: JSON {"train": [class names], "valid": [...], "test": [...]}.
      split_seed: of the policies that draw, `random` and `lake`.
      image_size: height and width; None is 28 for glyphs and omniglot, 32 for cifar, and otherwise
        the size of the images if that is one for all and at most 84, else 84.
      resident: whether the images are decoded into memory, which gives `LabelledImages`, or stay on
        disk, which gives `StreamedImages`; the same images either way. `auto` leaves them on disk if
        decoded they would take more than a third of the memory.
      memory: bytes, of the device's where that has less; None is what this machine has.

    Returns:
      The three splits.

    Raises:
      DataError: unknown data set or policy, missing or broken files, a split that does not fit.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size} and must be 1 or more")
    if resident not in RESIDENT:
        raise DataError(f"resident is {resident!r}; use one of: {', '.join(RESIDENT)}")
    source = _source(dataset, data_dir, image_size)
    name, policy = _policy(source, split, split_file)
    most = _LARGEST_SHARE * (decoding.memory() if memory is None else memory)
    images = source.stream() if _streams(source, resident, image_size, most) else source.read()
    classes = splits.split_classes(images, policy, seed=split_seed)
    parts = {part: images.select(indices) for part, indices in classes.items()}
    seed = f" (seed {split_seed})" if name in _DRAWN else ""
    sizes = ", ".join(f"{len(part.names)} {key}" for key, part in parts.items())
    shape = "x".join(map(str, images.shape))
    description = f"{source.title}, {shape}, split {name}{seed}: {sizes} classes"
    return Splits(**parts, description=description)


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
) -> tuple[str, splits.Policy]:
    """Chooses the policy and its name."""
    if split_file is not None:
        if split not in (None, "file"):
            raise DataError(f"split {split} takes no split_file; leave out one of the two")
        return "file", splits.from_file(split_file)
    name = next(iter(source.policies)) if split is None else split
    if name == "file":
        raise DataError("split file needs a split_file")
    if name not in source.policies:
        fit = ", ".join([*source.policies, "file"])
        raise DataError(f"split {name} does not fit {source.title}; choose one of: {fit}")
    return name, source.policies[name]


def _source(dataset: str, data_dir: str | None, image_size: int | None) -> _Source:
    kind, _, rest = dataset.partition(":")  # of TFDS names the rest is a version
    if kind in _RECIPES:
        return _RECIPES[kind](rest, data_dir, image_size)
    if kind == "folder":
        return _folder(rest or data_dir, image_size)
    policies = {"random": splits.random()}
    if kind == "cifar100":
        policies |= _CIFAR_POLICIES
    return _tfds(dataset, data_dir, image_size, policies)


def _glyphs(version: str, data_dir: str | None, image_size: int | None) -> _Source:
    del data_dir  # Drawn, not read.
    if version:
        raise DataError(f"glyphs has no versions; write glyphs, not glyphs:{version}")
    size = image_size or 28
    key = f"glyphs {size} {_versions('matplotlib', 'pillow')} {_code(glyphs)}"
    return _Source(
        title="glyphs",
        policies={"script": splits.by_group(glyphs.SPLIT_SCRIPTS), "random": splits.random()},
        read=lambda: cache.cached(key, lambda: glyphs.build(image_size=size)),
    )


def _omniglot(version: str, data_dir: str | None, image_size: int | None) -> _Source:
    policies = {"random": splits.random(counts=splits.OMNIGLOT_COUNTS), "lake": splits.lake()}
    name = _versioned("omniglot", version)
    return _tfds(name, data_dir, image_size or 28, policies, grayscale=True, finish=_bright_ink)


def _cifar_fs(version: str, data_dir: str | None, image_size: int | None) -> _Source:
    policies = {"cifar_fs": _CIFAR_POLICIES["cifar_fs"]}
    return _tfds(_versioned("cifar100", version), data_dir, image_size or 32, policies)


def _fc100(version: str, data_dir: str | None, image_size: int | None) -> _Source:
    policies = {"fc100": _CIFAR_POLICIES["fc100"]}
    return _tfds(_versioned("cifar100", version), data_dir, image_size or 32, policies)


def _versioned(name: str, version: str) -> str:
    return f"{name}:{version}" if version else name


def _folder(path: str | None, image_size: int | None) -> _Source:
    if not path:
        raise DataError("which folder? Write folder:PATH, or folder with data_dir set to its path")
    root = Path(path).expanduser().resolve()
    given = folder.given_split(root)
    policies = {"random": splits.random()}
    if given is not None:
        policies = {"given": splits.given(given), **policies}
    key = f"{root.name} {image_size} {_code(decoding, folder)} {folder.fingerprint(root)}"
    found = folder.listing(root)

    @functools.cache
    def shape() -> tuple[int, int, int]:
        measure = functools.partial(folder.shape, found.files, image_size=image_size)
        return cache.kept(f"{key} shape", measure, pack=_pack_shape, unpack=_unpack_shape)

    def stream() -> StreamedImages:
        return StreamedImages(
            source=folder.Files.of(root, found.files),
            order=np.arange(len(found.files), dtype=np.int32),
            counts=found.counts,
            names=found.names,
            groups=("",) * len(found.names),
            shape=shape(),
            key=f"{key} {_code(streamed)}",
        )

    return _Source(
        title=f"folder {root}",
        policies=policies,
        read=lambda: cache.cached(key, lambda: folder.load(root, image_size=image_size)),
        stream=stream,
        size=lambda: len(found.files) * math.prod(shape()),
        count=len(found.files),
    )


def _tfds(
    name: str,
    data_dir: str | None,
    image_size: int | None,
    policies: Mapping[str, splits.Policy],
    *,
    grayscale: bool | None = None,
    finish: Callable[[np.ndarray], None] | None = None,
) -> _Source:
    """A TFDS data set; `finish` changes images in place once they are decoded."""
    where = tfds_folders.find(name, data_dir=data_dir, known=available())
    fingerprint = tfds_folders.fingerprint(where)
    key = f"{name} {where.name} {image_size} {_code(decoding, tfds_source)} {fingerprint}"
    options = {
        "data_dir": data_dir,
        "image_size": image_size,
        "grayscale": grayscale,
        "group": _GROUPS.get(name.partition(":")[0]),
    }

    def decode() -> LabelledImages:
        images = tfds_source.load(name, **options)
        if finish:
            finish(images.images)
        return images

    def stream() -> StreamedImages:
        prepared = tfds_source.prepared(name, **options)
        read = functools.partial(tfds_source.arrangement, prepared)
        found = cache.kept(f"{key} order", read, pack=_pack_order, unpack=_unpack_order)
        return StreamedImages(
            prepared.records,
            *found,
            shape=prepared.shape,
            key=f"{key} {_code(streamed)}",
            finish=finish,
        )

    return _Source(
        title=f"{name.partition(':')[0]} {where.name}",
        policies=policies,
        read=lambda: cache.cached(key, decode),
        stream=stream,
        size=lambda: tfds_source.prepared(name, **options).size,
        count=tfds_folders.count_images(where),
    )


def _pack_shape(shape: tuple[int, int, int]) -> cache.Entry:
    return cache.Entry({}, {"shape": shape})


def _unpack_shape(entry: cache.Entry) -> tuple[int, int, int]:
    height, width, channels = map(int, entry.text["shape"])
    return height, width, channels


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


def _bright_ink(images: np.ndarray) -> None:
    """Turns black ink on white paper into 255 on 0, in place: an empty image is then all zeros."""
    np.subtract(255, images, out=images)


_CIFAR_POLICIES = {
    "cifar_fs": splits.by_name(cifar100_splits.CIFAR_FS),
    "fc100": splits.by_name(cifar100_splits.FC100),
}
_RECIPES = {"glyphs": _glyphs, "omniglot": _omniglot, "cifar_fs": _cifar_fs, "fc100": _fc100}
