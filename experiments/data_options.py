"""The options of which images a driver reads, and of how their classes are divided."""

import dataclasses
import os
from collections.abc import Mapping

from tqdm import tqdm

from experiments.devices import device_bytes
from experiments.options import TrainingSettings
from experiments.settings import UsageError, option
from metajax import streaming
from metajax.episodes import decoding, sources
from metajax.episodes.streamed import Images, StreamedImages


@dataclasses.dataclass(frozen=True)
class DataSettings(TrainingSettings):
    """The options that every driver on images has."""

    dataset: str = option(
        "glyphs",
        f"The images: {', '.join(sources.available())}, or any TFDS image-classification data set by name. "
        "folder reads --data_dir/class/*.png (or .jpg and the like).",
        section="Data",
    )
    data_dir: str = option(
        "",
        "Where TFDS data sets lie, or the root of an image folder; TFDS's own default if not given.",
        section="Data",
    )
    split: str = option(
        "",
        "How classes are divided: script (glyphs), lake (omniglot), given (folders), random or file; "
        "each data set has its default.",
        section="Data",
    )
    split_file: str = option(
        "", 'JSON of class names, {"train": [...], "valid": [...], "test": [...]}.', section="Data"
    )
    split_seed: int = option(0, "Seed of a random split.", section="Data", least=0)
    image_size: int = option(
        0,
        "Side in pixels that images are resized to; 0 is the data set's default.",
        section="Data",
        least=0,
    )

    resident: str = option(
        "auto",
        "Whether decoded images are kept in memory: always, never, or auto, which leaves them on disk where "
        "they would fill more than a third of it. Those on disk are read as they are needed; the episodes "
        "are the same.",
        section="Data",
        choices=sources.RESIDENT,
    )
    read_workers: int = option(
        streaming.WORKERS,
        "Processes that read images ahead where they stay on disk; 0 reads in between.",
        section="Data",
        least=0,
    )


def check_source(settings: DataSettings) -> None:
    """Raises UsageError for options of the source of images that do not go together."""
    if settings.split == "file" and not settings.split_file:
        raise UsageError("--split=file needs --split_file, a JSON of class names.")
    if settings.split_file and settings.split not in ("", "file"):
        raise UsageError(
            f"--split={settings.split} takes no --split_file; leave out one of the two."
        )
    if settings.dataset == "folder" and not settings.data_dir:
        raise UsageError("--dataset=folder needs --data_dir, the folder of the pictures.")


def load_images(settings: DataSettings) -> sources.Splits:
    """Loads and splits the images; DataError where they are missing or broken."""
    return sources.load(
        settings.dataset,
        data_dir=folder(settings.data_dir),
        split=settings.split or None,
        split_file=settings.split_file or None,
        split_seed=settings.split_seed,
        image_size=settings.image_size or None,
        resident=settings.resident,
        memory=memory(),
    )


def memory() -> float:
    """Bytes that images may be a share of: the machine's, or a device's where that has less."""
    return min(filter(None, (device_bytes(), decoding.memory())))


def on_disk(splits: Mapping[str, Images]) -> dict[str, StreamedImages]:
    """The splits whose images stay on disk; each is looked at once, which says how far it is."""
    found = {name: split for name, split in splits.items() if isinstance(split, StreamedImages)}
    for name, split in found.items():
        with tqdm(total=len(split), unit="image", desc=f"looking at {name}", delay=2) as bar:
            split.survey(progress=lambda done, total, bar=bar: bar.update(done - bar.n))
    return found


def folder(path: str) -> str | None:
    """A flag's folder, `~` expanded; None where it is not given."""
    return os.path.expanduser(path) if path else None
