"""The options of which images a driver reads, and of how their classes are divided."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.flags.settings import UsageError, option
from experiments.flags.training import TrainingSettings
from experiments.runtime import data_record
from experiments.runtime.data_record import RecordedImages, class_digests
from experiments.runtime.devices import device_bytes
from metajax.data import decoding, sources, streaming
from metajax.data import folder as image_folder
from metajax.data.streamed import Images, StreamedImages
from metajax.names import composed, listed

_TESTED_ON = "; tested on "

MAX_SIDE = 10_000  # pixels of an image's side; whether many of that size fit into memory is found by reading


@dataclasses.dataclass(frozen=True)
class DataSettings(TrainingSettings):
    """The options that every driver on images has."""

    dataset: str = option(
        "glyphs",
        f"The images: {', '.join(sources.available())}, or any TFDS image-classification data set by name. "
        f"folder reads --data_dir/class/*.png (or {', '.join(image_folder.SUFFIXES[1:])}).",
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
    min_images: int = option(
        1,
        "Fewest images of a class; classes with fewer are left out before the others are divided.",
        section="Data",
        least=1,
    )
    image_size: int = option(
        0,
        "Side in pixels that images are resized to; 0 is the data set's default.",
        section="Data",
        least=0,
        most=MAX_SIDE,
    )
    fit: str = option(
        "crop",
        "How images that are not square become so: crop keeps the middle, pad keeps all on a square of the "
        "image's mean colour, stretch changes the ratio of the sides.",
        section="Data",
        choices=decoding.FITS,
    )
    invert: str = option(
        "auto",
        "Whether dark and light are changed over on reading; auto does so for omniglot, whose files are "
        "black ink on white paper.",
        section="Data",
        choices=sources.INVERT,
    )
    test_dataset: str = option(
        "",
        "Other images to test on, of the same names as --dataset: training and validation stay there. They "
        "are read at the size of the training images, with as many channels and at least as many bits. "
        "--dataset if not given.",
        section="Data",
    )
    test_data_dir: str = option(
        "", "Where --test_dataset lies; --data_dir if not given.", section="Data"
    )
    test_split: str = option(
        "",
        "Which classes of --test_dataset are tested on: all, or the test classes of a --split of that data "
        "set. If not given, all of a folder, and of others the test classes of their default split.",
        section="Data",
    )
    test_invert: str | None = option(
        None,
        "As --invert, of --test_dataset; the value of --invert if not given.",
        section="Data",
        choices=sources.INVERT,
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

    @property
    def min_classes(self) -> int:
        """Fewest classes of a split, where a random one may choose."""
        return 1


def check_source(settings: DataSettings) -> None:
    """Raises UsageError for options of the source of images that do not go together."""
    if settings.split == "file" and not settings.split_file:
        raise UsageError("--split=file needs --split_file, a JSON of class names.")
    if settings.split_file and settings.split not in ("", "file"):
        raise UsageError(
            f"--split={settings.split} takes no --split_file; leave out one of the two."
        )
    if settings.split == "all":
        raise UsageError(
            "--split=all leaves no class to train on; it is for data to test on alone: --test_split."
        )
    if settings.test_split == "file":
        raise UsageError(
            "--test_split=file is not supported; use --test_split=all, or a folder of the classes to test on."
        )
    if settings.dataset == "folder" and not settings.data_dir and recorded(settings) is None:
        raise UsageError("--dataset=folder needs --data_dir, the folder of the pictures.")
    for name in ("test_data_dir", "test_split", "test_invert"):
        if getattr(settings, name) and not settings.test_dataset:
            raise UsageError(
                f"--{name}={getattr(settings, name)} needs --test_dataset; name the data set."
            )
    if settings.test_dataset == "folder" and not (settings.test_data_dir or settings.data_dir):
        raise UsageError("--test_dataset=folder needs --test_data_dir, the folder of the pictures.")


def load_images(settings: DataSettings) -> sources.Splits:
    """Loads and splits the images to train and to test on.

    Raises:
      DataError: If images are missing or broken.
      UsageError: If test classes are among those that are trained on.
    """
    if not settings.test_dataset:
        return _load_own(settings)
    trained = recorded(settings) or _load_own(settings)
    side, _, channels = trained.train.shape
    others = sources.load(
        settings.test_dataset,
        data_dir=folder(settings.test_data_dir or settings.data_dir),
        split=test_split(settings),
        image_size=side,
        channels=channels,
        fit=settings.fit,
        invert=settings.test_invert or settings.invert,
        bits=trained.form.bits,
        resident=settings.resident,
        memory=memory(),
        min_images=settings.min_images,
        min_classes=settings.min_classes,
    )
    _check_unseen(settings, trained.train, others.test)
    notes = (*others.notes, *_seen(trained.train, others.test))
    told = f" ({'; '.join(notes)})" if notes else ""
    return sources.Splits(
        train=trained.train,
        valid=trained.valid,
        test=others.test,
        description=f"{trained.description}{_TESTED_ON}{others.description}{told}",
        notes=trained.notes,
        form=trained.form,
        test_form=others.form,
        sizes=_sizes(trained, others),
    )


def _sizes(
    trained: sources.Splits | data_record.Record, others: sources.Splits
) -> Callable[[int], dict[str, np.ndarray]]:
    """`Splits.sizes` of data to train on and others to test on; recorded data keep the size they had."""

    def sizes(min_images: int) -> dict[str, np.ndarray]:
        own = {"train": trained.train.counts, "valid": trained.valid.counts}
        if isinstance(trained, sources.Splits):
            own = trained.sizes(min_images)
        return {**own, "test": others.sizes(min_images)["test"]}

    return sizes


def record(settings: DataSettings, images: sources.Splits) -> data_record.Record | None:
    """What a training keeps of its data; None where nothing is trained."""
    if settings.mode != "train" or settings.plan:
        return None
    described = images.description.partition(_TESTED_ON)[0]
    return data_record.record(images._replace(description=described))


def test_split(settings: DataSettings) -> str | None:
    """The policy that says which classes of `test_dataset` are tested on; None is the data set's own."""
    kind = settings.test_dataset.partition(":")[0]
    return settings.test_split or ("all" if kind == "folder" else None)


def tested_elsewhere(settings: DataSettings) -> dict[str, str]:
    """Fields of result.json about other images to test on; none where there are none."""
    if not settings.test_dataset:
        return {}
    return {
        "test_dataset": tested_images(settings),
        **({"test_split": split} if (split := test_split(settings)) else {}),
    }


def tested_images(settings: DataSettings) -> str:
    """What the test images are called: their data set, and of a folder its path too."""
    if settings.test_dataset == "folder":
        return f"folder:{settings.test_data_dir or settings.data_dir}"
    return settings.test_dataset or settings.dataset


def recorded(settings: DataSettings) -> data_record.Record | None:
    """What the evaluated run recorded of its training data, where that is all a test needs of them."""
    # Of several processes not all have the work directory; PES begins with training tasks.
    alone = jax.process_count() == 1 and settings.estimator != "pes"
    if settings.mode != "evaluate" or not settings.test_dataset or not alone:
        return None
    return data_record.read(Path(settings.workdir).expanduser())


def _check_unseen(settings: DataSettings, train: Images | RecordedImages, test: Images) -> None:
    """Raises UsageError where test classes have the names of training classes."""
    trained = set(map(composed, train.names))
    shared = [name for name in test.names if composed(name) in trained]
    if shared:
        raise UsageError(
            f"--test_dataset={settings.test_dataset} has test classes of the same names as training classes "
            f"of --dataset={settings.dataset}, {listed(shared, few=1)}; test on other classes, or rename "
            "them."
        )


def _seen(train: Images | RecordedImages, test: Images) -> tuple[str, ...]:
    """A note on test classes that have all the images of a training class, and no other, by another name."""
    known = train.class_sha256 if isinstance(train, RecordedImages) else class_digests(train)
    trained = set(known)
    names = [
        name
        for name, digest in zip(test.names, class_digests(test), strict=False)
        if digest in trained
    ]
    if not names:
        return ()
    return (
        "NOT UNSEEN: these classes have the very images of training classes: "
        f"{listed(names, few=3)}",
    )


def _load_own(settings: DataSettings) -> sources.Splits:
    return sources.load(
        settings.dataset,
        data_dir=folder(settings.data_dir),
        split=settings.split or None,
        split_file=settings.split_file or None,
        split_seed=settings.split_seed,
        image_size=settings.image_size or None,
        fit=settings.fit,
        invert=settings.invert,
        resident=settings.resident,
        memory=memory(),
        min_images=settings.min_images,
        min_classes=settings.min_classes,
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
    return str(Path(path).expanduser()) if path else None
