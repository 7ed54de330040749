"""One way into every data set: images of the training, validation and test classes.

Decoding is cached on disk (see `cache`), splitting is done anew each time.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
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
    tfds_source,
)
from metajax.episodes.images import DataError, LabelledImages

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

    train: LabelledImages
    valid: LabelledImages
    test: LabelledImages
    description: str


class _Source(NamedTuple):
    """How to read a data set, and the ways to split it; the first is the default."""

    title: str
    read: Callable[[], LabelledImages]
    policies: Mapping[str, splits.Policy]


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

    Returns:
      The three splits.

    Raises:
      DataError: unknown data set or policy, missing or broken files, a split that does not fit.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size} and must be 1 or more")
    source = _source(dataset, data_dir, image_size)
    name, policy = _policy(source, split, split_file)
    images = source.read()
    classes = splits.split_classes(images, policy, seed=split_seed)
    parts = {part: images.select(indices) for part, indices in classes.items()}
    seed = f" (seed {split_seed})" if name in _DRAWN else ""
    sizes = ", ".join(f"{len(part.names)} {key}" for key, part in parts.items())
    shape = "x".join(map(str, images.images.shape[1:]))
    description = f"{source.title}, {shape}, split {name}{seed}: {sizes} classes"
    return Splits(**parts, description=description)


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
        read=lambda: cache.cached(key, lambda: glyphs.build(image_size=size)),
        policies={"script": splits.by_group(glyphs.SPLIT_SCRIPTS), "random": splits.random()},
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
        policies = {"given": splits.by_name({"valid": (), **given}), **policies}
    key = f"{root.name} {image_size} {_code(decoding, folder)} {folder.fingerprint(root)}"
    return _Source(
        title=f"folder {root}",
        read=lambda: cache.cached(key, lambda: folder.load(root, image_size=image_size)),
        policies=policies,
    )


def _tfds(
    name: str,
    data_dir: str | None,
    image_size: int | None,
    policies: Mapping[str, splits.Policy],
    *,
    grayscale: bool | None = None,
    finish: Callable[[LabelledImages], LabelledImages] = lambda images: images,
) -> _Source:
    """A TFDS data set; `finish` changes the images once they are decoded."""
    where = tfds_source.find(name, data_dir=data_dir, known=available())
    fingerprint = tfds_source.fingerprint(where)
    key = f"{name} {where.name} {image_size} {_code(decoding, tfds_source)} {fingerprint}"

    def decode() -> LabelledImages:
        return finish(
            tfds_source.load(
                name,
                data_dir=data_dir,
                image_size=image_size,
                grayscale=grayscale,
                group=_GROUPS.get(name.partition(":")[0]),
            )
        )

    title = f"{name.partition(':')[0]} {where.name}"
    return _Source(title, lambda: cache.cached(key, decode), policies)


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


def _bright_ink(images: LabelledImages) -> LabelledImages:
    """Turns black ink on white paper into 255 on 0, in place: an empty image is then all zeros."""
    np.subtract(255, images.images, out=images.images)
    return images


_CIFAR_POLICIES = {
    "cifar_fs": splits.by_name(cifar100_splits.CIFAR_FS),
    "fc100": splits.by_name(cifar100_splits.FC100),
}
_RECIPES = {"glyphs": _glyphs, "omniglot": _omniglot, "cifar_fs": _cifar_fs, "fc100": _fc100}
