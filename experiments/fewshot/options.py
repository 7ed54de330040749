"""The options of few-shot classification."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.flags.settings import option
from experiments.runtime.workdir import trained_with
from experiments.setup.images import DataSettings
from metajax.episodes import augment
from metajax.learners.wrappers.dropout import dropout_penalty
from metajax.nn import conv_implementations
from metajax.zoo import models
from metajax.zoo.learners import LEARNERS

TEST_STEPS = 3
IMAGES = 16
ATTACK_STEPS = 10


@dataclasses.dataclass(frozen=True)
class FewshotSettings(DataSettings):
    """Every option of few-shot classification."""

    test_inner_steps: int | None = option(
        None,
        f"Inner steps in validation and test; if not given, as in training, but at least {TEST_STEPS}.",
        section="Inner loop",
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
    mix_classes: bool = option(
        False,
        "Makes each class of a training task a new one, a blend with another of its classes.",
        section="Data",
    )
    project: bool = option(
        False,
        "Multiplies the images of a training task by a random matrix of its own (GPICL), so that only how to "
        "learn can be learned; for --model=mlp.",
        section="Data",
    )
    label_noise: float = option(
        0.0,
        "Probability that a support label of a training task is another of its labels.",
        section="Data",
        least=0,
        most=1,
    )
    attack: str = option(
        "none",
        "Adversarial images: fgsm, one step of --attack_epsilon along the sign of the gradient; pgd, "
        f"{ATTACK_STEPS} steps within it. Test then tells robust accuracy beside accuracy.",
        section="Adversary",
        choices=("none", "fgsm", "pgd"),
    )
    attack_epsilon: float = option(
        8 / 255,
        "How far a pixel may change, of 1.",
        section="Adversary",
        above=0,
        most=1,
    )
    attack_on: str = option(
        "query",
        "What is attacked in training: the query set, which the outer loss sees; the support set, which the "
        "inner loss sees; both; or none, for a test alone. In test it is the query set.",
        section="Adversary",
        choices=("query", "support", "both", "none"),
    )
    protocol: str = option(
        "episodes",
        "How examples come. episodes: a support set, and then queries. sequence: one after another, each "
        "--shots times its class, answered before its label is read; accuracy is told of the first to the "
        "last presentation of a class, and counts at the second.",
        section="Episodes",
        choices=("episodes", "sequence"),
    )
    ways: int = option(5, "Classes in an episode.", section="Episodes", least=2)
    shots: int = option(1, "Support images a class.", section="Episodes", least=1)
    train_ways: int | None = option(
        None,
        "Classes in a training episode; --ways if not given. For learners that know no classes: "
        f"{', '.join(n for n, entry in LEARNERS.items() if entry.ways_agnostic and not entry.objective)}.",
        section="Episodes",
        least=2,
    )
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
        None,
        "Fewest ways of a training episode, drawn up to --train_ways.",
        section="Episodes",
        least=1,
    )
    min_shots: int | None = option(
        None,
        "Fewest shots of a training episode, drawn up to --train_shots.",
        section="Episodes",
        least=1,
    )
    images: int | None = option(
        None,
        f"{', '.join(name for name, entry in LEARNERS.items() if entry.objective)}: images in a batch of "
        f"their training, --meta_batch batches a step; {IMAGES} if not given.",
        section="Episodes",
        least=1,
    )
    model: str = option(
        "conv4_stride",
        "The network: conv4_stride halves the image by strides (as MAML on Omniglot), conv4 by max-pooling; "
        "conv4_wide has 96 to 512 filters (R2D2); resnet12, resnet18; vit is a small transformer.",
        section="Learner",
        choices=tuple(models.MODELS),
    )
    filters: int | None = option(
        None,
        "Filters of the first layer: 64 if not given, 96 of conv4_wide; vit: numbers in a token, 128.",
        section="Learner",
        least=1,
    )
    norm: str | None = option(
        None,
        "Normalisation; batch if not given (vit: layer), which uses the statistics of the batch at hand, "
        "hence is transductive on queries. running goes by averages over the batches of supervised training.",
        section="Learner",
        choices=("batch", "group", "layer", "running", "none"),
    )
    patch: int | None = option(
        None,
        "vit: side of a patch in pixels, which divides that of the image; 4 if not given.",
        section="Learner",
        least=1,
    )
    drop_rate: float | None = option(
        None,
        "conv4_wide, resnet12: share of their feature maps that DropBlock drops in training; 0 if not given.",
        section="Learner",
        least=0,
        most=0.9,
    )
    kernels: str | None = option(
        None,
        "How convolutions and their gradients are computed; if not given, the quickest way known for the "
        "device and the shape.",
        section="Learner",
        choices=conv_implementations.NAMES,
    )

    @property
    def min_classes(self) -> int:
        """Fewest classes that an episode of the training can be drawn from.

        A test of other rotations divides the classes as the training did.
        """
        return 1 if trained_with(self, "rotations") == "all" else 2

    @property
    def penalty(self) -> Callable[[Any, Any], Any] | None:
        """What training adds to the outer loss; of learners with noise, as of those without."""
        penalty = super().penalty
        return dropout_penalty(penalty) if penalty and self.drop_rate else penalty

    @property
    def steps_at_test(self) -> int:
        """Inner steps in validation and test."""
        if self.test_inner_steps is None:
            return max(self.inner_steps, TEST_STEPS)
        return self.test_inner_steps


def norm_policy(settings: FewshotSettings) -> str:
    """The norm policy in force: if none is named, the model's own."""
    return settings.norm or models.MODELS[settings.model].norm
