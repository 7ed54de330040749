"""Options of the images that a driver reads, and of how their classes are divided."""

import dataclasses

from metajax.data import sources, streaming
from metajax.data.files import decoding, folder

from .columns import TABLES
from .settings import option
from .training import TrainingSettings

_NOT_TABLES = {"dataset": TABLES}  # what a table has not
MAX_SIDE = 10_000  # pixels of an image's side; whether many of that size fit into memory is found by reading


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The images, and how their classes are divided."""

    dataset: str = option(
        "glyphs",
        f"The images: {', '.join(sources.available())}, or any TFDS image-classification data set by name. "
        f"folder reads --data_dir/class/*.png (or {', '.join(folder.SUFFIXES[1:])}).",
        section="Data",
        basic=True,
    )
    data_dir: str = option(
        "",
        "Where TFDS data sets lie, or the root of an image folder; TFDS's own default if not given.",
        section="Data",
        scope="host",
        basic=True,
    )
    split: str = option(
        "",
        "How classes are divided: script (glyphs), lake (omniglot), given (folders), random or file; "
        "each data set has its default.",
        section="Data",
    )
    split_file: str = option(
        "",
        'JSON of class names, {"train": [...], "valid": [...], "test": [...]}.',
        section="Data",
        shared=False,
    )
    split_seed: int = option(0, "Seed of a random split.", section="Data", least=0, protocol=False)
    min_images: int = option(
        1,
        "Fewest images of a class; classes with fewer are left out before the others are divided.",
        section="Data",
        least=1,
        scope="test",
        never=_NOT_TABLES,
    )
    image_size: int = option(
        0,
        "Side in pixels that images are resized to; 0 is the data set's default.",
        section="Data",
        least=0,
        most=MAX_SIDE,
        never=_NOT_TABLES,
    )
    fit: str = option(
        "crop",
        "How images that are not square become so: crop keeps the middle, pad keeps all on a square of the "
        "image's mean colour, stretch changes the ratio of the sides.",
        section="Data",
        choices=decoding.FITS,
        never=_NOT_TABLES,
    )
    invert: str = option(
        "auto",
        "Whether dark and light are changed over on reading; auto does so for omniglot, whose files are "
        "black ink on white paper.",
        section="Data",
        choices=sources.INVERT,
        never=_NOT_TABLES,
    )
    test_dataset: str = option(
        "",
        "Other images to test on, of the same names as --dataset: training and validation stay there. They "
        "are read at the size of the training images, with as many channels and at least as many bits. "
        "--dataset if not given.",
        section="Data",
        scope="test",
        never=_NOT_TABLES,
    )
    test_data_dir: str = option(
        "",
        "Where --test_dataset lies; --data_dir if not given.",
        section="Data",
        scope="host",
        needs="test_dataset",
    )
    test_split: str = option(
        "",
        "Which classes of --test_dataset are tested on: all, or the test classes of a --split of that data "
        "set. If not given, all of a folder, and of others the test classes of their default split.",
        section="Data",
        scope="test",
        needs="test_dataset",
    )
    test_invert: str | None = option(
        None,
        "As --invert, of --test_dataset; the value of --invert if not given.",
        section="Data",
        choices=sources.INVERT,
        scope="test",
        needs="test_dataset",
    )
    resident: str = option(
        "auto",
        "Whether decoded images are kept in memory: always, never, or auto, which leaves them on disk where "
        "they would fill more than a third of it. Those on disk are read as they are needed; the episodes "
        "are the same.",
        section="Data",
        choices=sources.RESIDENT,
        scope="host",
        never=_NOT_TABLES,
    )
    read_workers: int = option(
        streaming.WORKERS,
        "Processes that read images ahead where they stay on disk; 0 reads in between.",
        section="Data",
        least=0,
        scope="host",
        never=_NOT_TABLES,
    )


@dataclasses.dataclass(frozen=True)
class ImageSettings(DataOptions, TrainingSettings):
    """Options of every driver on images."""

    @property
    def min_classes(self) -> int:
        """Fewest classes of a split, where a random one may choose."""
        return 1
