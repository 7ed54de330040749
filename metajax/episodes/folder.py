"""Image files: decoding them, fitting them to a square, and reading folders of them.

Two layouts are read, root/<class>/<image> and root/{train,valid,test}/<class>/<image>, where valid
may also be called val or validation. Images lie directly in the folder of their class.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from metajax.episodes.images import DataError, LabelledImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
LARGEST_NATIVE = 84

_SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
_GREY_MODES = ("1", "L", "LA")

Classes = dict[str, list[Path]]


def load(
    root: str | Path, *, image_size: int | None = None, grayscale: bool | None = None
) -> LabelledImages:
    """Decodes a folder of images.

    An image is scaled until its shorter side is `image_size`, then its middle is kept. Transparent
    parts become white; of an animation the first picture counts. Where a class has images in more
    than one of train, valid and test, they are put together.

    Args:
      root: the folder.
      image_size: height and width; None keeps the size if all images are squares of one size of at
        most 84, and makes them 84 otherwise.
      grayscale: one channel or three; None gives one if all files are grey.

    Returns:
      The images, classes and files sorted by name.

    Raises:
      DataError: no images, a class without images, or a file that is not a readable image.
    """
    classes: Classes = {}
    for part in _parts(Path(root)).values():
        for name, files in part.items():
            classes.setdefault(name, []).extend(files)
    names = sorted(classes)
    if empty := [name for name in names if not classes[name]]:
        raise DataError(
            f"{len(empty)} class folders of {root} hold no image ({', '.join(SUFFIXES)}) directly"
            f" in them, {empty[:5]} for example; remove them, or move their images up"
        )
    files = [file for name in names for file in classes[name]]
    if image_size is None or grayscale is None:
        headers = [_header(file) for file in files]
        image_size = image_size or native_size(size for size, _ in headers)
        grayscale = (
            all(mode in _GREY_MODES for _, mode in headers) if grayscale is None else grayscale
        )
    images = allocate(len(files), image_size=image_size, channels=1 if grayscale else 3)
    decode_into(images, files, files)
    counts = np.array([len(classes[name]) for name in names], np.int32)
    return LabelledImages(images, counts, tuple(names), ("",) * len(names))


def given_split(root: str | Path) -> dict[str, tuple[str, ...]] | None:
    """Class names by split where root holds folders for train and test, None where it does not."""
    parts = _parts(Path(root))
    return None if "" in parts else {split: tuple(sorted(parts[split])) for split in parts}


def fingerprint(root: str | Path) -> str:
    """Digest of every image's path under root, size and time of change, without opening any."""
    root = Path(root)
    digest = hashlib.sha256()
    for _, classes in sorted(_parts(root).items()):
        for _, files in sorted(classes.items()):
            for file in files:
                status = file.stat()
                line = f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def native_size(sizes: Iterable[tuple[int, int]]) -> int:
    """The size all images share if they are squares of at most 84, else 84."""
    distinct = set(sizes)
    width, height = distinct.pop()
    keep = not distinct and 0 < width == height <= LARGEST_NATIVE
    return width if keep else LARGEST_NATIVE


def allocate(count: int, *, image_size: int, channels: int) -> np.ndarray:
    """Makes room for images [count, image_size, image_size, channels] uint8, if there is enough."""
    shape = (count, image_size, image_size, channels)
    # Sorting by class, or cutting the splits out, takes the same amount once more.
    needed = 2 * np.prod(shape, dtype=np.int64)
    present = _memory()
    if needed > present:
        raise DataError(
            f"{count} images of {image_size}x{image_size}x{channels} take {needed / 2**30:.1f} GiB"
            f" to sort, and this machine has {present / 2**30:.1f} GiB; choose a smaller image size"
            " or fewer images"
        )
    return np.empty(shape, np.uint8)


def decode_into(images: np.ndarray, encoded: Sequence[bytes | Path], names: Sequence) -> None:
    """Decodes in several threads, which pays for large photographs.

    Args:
      images: [M, S, S, C] uint8, C either 1 or 3; written to.
      encoded: M image files, or what is in them.
      names: M things to call them by in errors.
    """

    def one(index: int) -> None:
        try:
            images[index] = _decode(encoded[index], images.shape[1], images.shape[3])
        except Exception as error:  # Decoders of broken files raise all kinds of errors.
            raise DataError(f"{names[index]} is not a readable image: {error}") from error

    _pillow()  # Says what to install before any thread starts.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for start in range(0, len(images), 1024):
            for _ in pool.map(one, range(start, min(start + 1024, len(images)))):
                pass
    finally:
        pool.shutdown(cancel_futures=True)


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # A system that does not tell.
        return float("inf")


def _pillow():
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'metajax[data]'") from error
    return PIL


def _decode(encoded: bytes | Path, image_size: int, channels: int) -> np.ndarray:
    pil = _pillow()
    with pil.Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
        image = _eight_bits(pil.ImageOps.exif_transpose(image))
        image = image.convert("L" if channels == 1 else "RGB")
        # One resampling of the middle square; Lanczos weighs in all pixels that shrink into one.
        size = (image_size, image_size)
        image = pil.ImageOps.fit(image, size, method=pil.Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(image_size, image_size, channels)


def _eight_bits(image):
    pil = _pillow()
    if image.mode.startswith("I"):
        # 16-bit grey: convert() would clip it where the high byte is wanted.
        return pil.Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary, often black.
        image = image.convert("RGBA")
        return pil.Image.alpha_composite(pil.Image.new("RGBA", image.size, "white"), image)
    return image


def _header(file: Path) -> tuple[tuple[int, int], str]:
    pil = _pillow()
    try:
        with pil.Image.open(file) as image:
            return image.size, image.mode
    except Exception as error:
        raise DataError(f"{file} is not a readable image: {error}") from error


def _parts(root: Path) -> dict[str, Classes]:
    """Lists the files: {split: {class: files}}, the split being '' where root holds the classes."""
    if not root.is_dir():
        raise DataError(f"the image folder {root} does not exist or is not a folder")
    folders = _folders(root)
    # Classes may be called train or test too, hence the demand for both and nothing else.
    if {"train", "test"} <= set(folders) <= set(_SPLIT_NAMES):
        if len(folders) > 3:
            raise DataError(f"{root} holds {sorted(folders)}; keep one folder for validation")
        parts = {_SPLIT_NAMES[name]: _folders(path) for name, path in folders.items()}
    else:
        parts = {"": folders}
    if empty := [split or "root" for split, classes in parts.items() if not classes]:
        raise DataError(
            f"{root} holds no class folders{' in ' + ', '.join(empty) if '' not in parts else ''};"
            " expected <root>/<class>/<image>, or <root>/{train,valid,test}/<class>/<image>"
        )
    return {
        split: {name: _files(path) for name, path in classes.items()}
        for split, classes in parts.items()
    }


def _folders(root: Path) -> dict[str, Path]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return {name: root / name for name in sorted(names) if not name.startswith((".", "__"))}


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
    return [folder / name for name in sorted(names) if not name.startswith(".")]
