"""Images that a driver trains and tests on, as its options name them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from metajax.data import sources
from metajax.data.files import decoding
from metajax.data.streamed import Images, StreamedImages
from metajax.names import composed, listed

from ..flags.images import DataOptions, ImageSettings
from ..flags.plan import part
from ..flags.settings import UsageError
from ..flags.training import RunOptions
from ..runtime import data_record
from ..runtime.data_record import RecordedImages, class_digests
from ..runtime.devices import device_bytes

_TESTED_ON = "; tested on "


def check_source(data: DataOptions, known: data_record.Record | None) -> None:
    """Raises UsageError for options of the source of images that do not go together.

    Args:
      data: Options of the images.
      known: Record of the training data, where a test needs no more; see `recorded`.
    """
    if data.split == "file" and not data.split_file:
        raise UsageError("--split=file needs --split_file, a JSON of class names.")
    if data.split_file and data.split not in ("", "file"):
        raise UsageError(f"--split={data.split} takes no --split_file; leave out one of the two.")
    if data.split == "all":
        raise UsageError(
            "--split=all leaves no class to train on; it is for data to test on alone: --test_split."
        )
    if data.test_split == "file":
        raise UsageError(
            "--test_split=file is not supported; use --test_split=all, or a folder of the classes to test on."
        )
    if data.dataset == "folder" and not data.data_dir and known is None:
        raise UsageError("--dataset=folder needs --data_dir, the folder of the pictures.")
    if data.test_dataset == "folder" and not (data.test_data_dir or data.data_dir):
        raise UsageError("--test_dataset=folder needs --test_data_dir, the folder of the pictures.")


def read_images(settings: ImageSettings) -> sources.Splits:
    """Reads the images that a command names, for training or for what a test needs of them.

    Raises:
      DataError: If images are missing or broken.
      UsageError: If options do not go together, or test classes are among those that are trained on.
    """
    data = part(DataOptions, settings)
    known = recorded(data, part(RunOptions, settings), settings.estimator)
    check_source(data, known)
    return load_images(data, known, min_classes=settings.min_classes)


def load_images(
    data: DataOptions, known: data_record.Record | None, *, min_classes: int
) -> sources.Splits:
    """Loads and splits the images to train and to test on.

    Args:
      data: Options of the images.
      known: Record of the training data, where a test needs no more; see `recorded`.
      min_classes: Fewest classes of a split, where a random one may choose.

    Returns:
      Images of training, validation and test.

    Raises:
      DataError: If images are missing or broken.
      UsageError: If test classes are among those that are trained on.
    """
    if not data.test_dataset:
        return _load_own(data, min_classes)
    trained = known or _load_own(data, min_classes)
    side, _, channels = trained.train.shape
    others = sources.load(
        data.test_dataset,
        data_dir=folder(data.test_data_dir or data.data_dir),
        split=test_split(data),
        image_size=side,
        channels=channels,
        fit=data.fit,
        invert=data.test_invert or data.invert,
        bits=trained.form.bits,
        resident=data.resident,
        memory=memory(),
        min_images=data.min_images,
        min_classes=min_classes,
    )
    _check_unseen(data, trained.train, others.test)
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
    """Makes `Splits.sizes` for data to train on and others to test on; recorded data keep their sizes."""

    def sizes(min_images: int) -> dict[str, np.ndarray]:
        own = {"train": trained.train.counts, "valid": trained.valid.counts}
        if isinstance(trained, sources.Splits):
            own = trained.sizes(min_images)
        return {**own, "test": others.sizes(min_images)["test"]}

    return sizes


def record(run: RunOptions, images: sources.Splits) -> data_record.Record | None:
    """Makes the record of the data that a training keeps; None where nothing is trained."""
    if run.mode != "train" or run.plan:
        return None
    described = images.description.partition(_TESTED_ON)[0]
    return data_record.record(images._replace(description=described))


def test_split(data: DataOptions) -> str | None:
    """Names the policy that picks the test classes of `test_dataset`; None is the data set's default."""
    kind = data.test_dataset.partition(":")[0]
    return data.test_split or ("all" if kind == "folder" else None)


def tested_elsewhere(data: DataOptions) -> dict[str, str]:
    """Fields of result.json about other images to test on; none where there are none."""
    if not data.test_dataset:
        return {}
    return {
        "test_dataset": tested_images(data),
        **({"test_split": split} if (split := test_split(data)) else {}),
    }


def tested_images(data: DataOptions) -> str:
    """Names the test images: their data set, and for a folder its path too."""
    if data.test_dataset == "folder":
        return f"folder:{data.test_data_dir or data.data_dir}"
    return data.test_dataset or data.dataset


def recorded(data: DataOptions, run: RunOptions, estimator: str) -> data_record.Record | None:
    """Reads the evaluated run's record of its training data, if a test needs no more of them.

    Args:
      data: Options of the images.
      run: Options of the command.
      estimator: Name of the estimator of the meta-gradient.
    """
    # Of several processes not all have the work directory; PES begins with training tasks.
    alone = jax.process_count() == 1 and estimator != "pes"
    if not run.after_training or not data.test_dataset or not alone:
        return None
    return data_record.read(Path(run.workdir).expanduser())


def _check_unseen(data: DataOptions, train: Images | RecordedImages, test: Images) -> None:
    """Raises UsageError where test classes have the names of training classes."""
    trained = set(map(composed, train.names))
    shared = [name for name in test.names if composed(name) in trained]
    if shared:
        raise UsageError(
            f"--test_dataset={data.test_dataset} has test classes of the same names as training classes "
            f"of --dataset={data.dataset}, {listed(shared, few=1)}; test on other classes, or rename "
            "them."
        )


def _seen(train: Images | RecordedImages, test: Images) -> tuple[str, ...]:
    """Notes test classes that have exactly the images of a training class, under another name."""
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


def _load_own(data: DataOptions, min_classes: int) -> sources.Splits:
    return sources.load(
        data.dataset,
        data_dir=folder(data.data_dir),
        split=data.split or None,
        split_file=data.split_file or None,
        split_seed=data.split_seed,
        image_size=data.image_size or None,
        fit=data.fit,
        invert=data.invert,
        resident=data.resident,
        memory=memory(),
        min_images=data.min_images,
        min_classes=min_classes,
    )


def memory() -> float:
    """Returns the bytes that images may take a share of: the machine's, or a device's if it has less."""
    return min(filter(None, (device_bytes(), decoding.memory())))


def on_disk(splits: Mapping[str, Images]) -> dict[str, StreamedImages]:
    """Finds the splits whose images stay on disk, and reads each once for its statistics, with a bar."""
    found = {name: split for name, split in splits.items() if isinstance(split, StreamedImages)}
    for name, split in found.items():
        with tqdm(total=len(split), unit="image", desc=f"looking at {name}", delay=2) as bar:
            split.statistics(progress=lambda done, total, bar=bar: bar.update(done - bar.n))
    return found


def folder(path: str) -> str | None:
    """Expands `~` in a flag's folder; returns None where it is not given."""
    return str(Path(path).expanduser()) if path else None
