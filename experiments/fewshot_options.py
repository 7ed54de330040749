"""The options of few-shot classification, and which of them go together."""

import dataclasses

from experiments.options import TrainingSettings
from experiments.settings import UsageError, option
from metajax import nn
from metajax.episodes import augment, sources
from metajax.models import registry as models

TEST_STEPS = 3


@dataclasses.dataclass(frozen=True)
class FewshotSettings(TrainingSettings):
    """Every option of few-shot classification."""

    test_inner_steps: int | None = option(
        None,
        f"Inner steps in validation and test; if not given, as in training, but at least {TEST_STEPS}.",
        section="Inner loop",
        least=0,
    )
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
    rotations: str = option(
        "none",
        "Where a class turned by 90, 180 and 270 degrees is three more classes: nowhere, in training, or "
        "in validation and test too.",
        section="Data",
        choices=("none", "train", "all"),
    )
    augment: str = option(
        "",
        f"Augmentation of training images, separated by commas: {', '.join(augment.AUGMENTATIONS)}.",
        section="Data",
    )
    ways: int = option(5, "Classes in an episode.", section="Episodes", least=2)
    shots: int = option(1, "Support images a class.", section="Episodes", least=1)
    train_shots: int | None = option(
        None,
        "Support images a class of a training episode; --shots if not given.",
        section="Episodes",
        least=1,
    )
    queries: int = option(
        5, "Query images a class in a training episode.", section="Episodes", least=1
    )
    test_queries: int = option(
        15, "Query images a class in validation and test.", section="Episodes", least=1
    )
    beside_support: bool = option(
        False,
        "Answers each query of validation and test by itself, in a batch with the support images, so that "
        "batch norm is not transductive.",
        section="Test",
    )
    min_ways: int | None = option(
        None, "Fewest ways of a training episode, drawn up to --ways.", section="Episodes", least=1
    )
    min_shots: int | None = option(
        None,
        "Fewest shots of a training episode, drawn up to --train_shots.",
        section="Episodes",
        least=1,
    )
    model: str = option(
        "conv4_stride",
        "The network: conv4_stride halves the image by strides (as MAML on Omniglot), conv4 by max-pooling.",
        section="Learner",
        choices=tuple(models.MODELS),
    )
    filters: int | None = option(
        None,
        "Filters a layer of conv4, the first width of resnet12; 64 if not given.",
        section="Learner",
        least=1,
    )
    norm: str | None = option(
        None,
        "Normalisation; batch if not given, which uses the statistics of the batch at hand, hence is "
        "transductive on queries.",
        section="Learner",
        choices=("batch", "group", "layer", "none"),
    )
    kernels: str | None = option(
        None,
        "How convolutions and their gradients are computed; if not given, the quickest way known for the "
        "device and the shape.",
        section="Learner",
        choices=nn.kernels.NAMES,
    )

    @property
    def steps_at_test(self) -> int:
        """Inner steps in validation and test."""
        if self.test_inner_steps is None:
            return max(self.inner_steps, TEST_STEPS)
        return self.test_inner_steps


def check_data(settings: FewshotSettings) -> None:
    """Raises UsageError for data options that do not go together."""
    if settings.split == "file" and not settings.split_file:
        raise UsageError("--split=file needs --split_file, a JSON of class names.")
    if settings.split_file and settings.split not in ("", "file"):
        raise UsageError(
            f"--split={settings.split} takes no --split_file; leave out one of the two."
        )
    if settings.dataset == "folder" and not settings.data_dir:
        raise UsageError("--dataset=folder needs --data_dir, the folder of the pictures.")
    if settings.dataset == "glyphs" and settings.rotations != "none":
        raise UsageError(
            f"--rotations={settings.rotations} does not go with --dataset=glyphs: many of its letters are "
            "each other's rotations, and would be two classes of the same images."
        )


def check_queries(settings: FewshotSettings) -> None:
    """Raises UsageError where queries cannot be answered a few at a time."""
    if settings.queries_at_once and norm_policy(settings) == "batch":
        raise UsageError(
            f"--queries_at_once={settings.queries_at_once} does not go with --norm=batch, under which an "
            "answer depends on the other queries; use --norm=group, layer or none, or --queries_at_once=0."
        )


def norm_policy(settings: FewshotSettings) -> str:
    """The norm policy in force: batch by default, where the model has one."""
    return settings.norm or ("batch" if "norm" in models.MODELS[settings.model][1] else "none")
