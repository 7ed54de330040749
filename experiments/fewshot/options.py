"""Options of few-shot classification."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from metajax.episodes import augment
from metajax.learners.wrappers.dropout import dropout_penalty
from metajax.zoo.learners import LEARNERS
from metajax.zoo.models import MODELS
from metajax.zoo.options import complete
from metajax.zoo.row_models import ROW_MODELS, RowOptions

from ..flags.columns import (
    TABLE,
    TABLES,
    RowModelOptions,
    model_options,
    names_in,
    readers,
    usual_model,
)
from ..flags.images import DataOptions, ImageSettings
from ..flags.learner import PENALIZED, SUPERVISED
from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import choice_options, declarations, option, redeclare
from ..flags.training import MAX_EPISODES
from ..runtime.workdir import trained_with
from .picture_options import EncoderOptions
from .table_options import ClassTableOptions

TEST_STEPS = 3
IMAGES = 16
ATTACK_STEPS = 10

WAYS_AGNOSTIC = tuple(n for n, e in LEARNERS.items() if e.ways_agnostic and not e.objective)
EPISODIC = tuple(name for name in LEARNERS if name not in SUPERVISED)
_SEQUENCE = {"protocol": ("sequence",)}
_ON_EPISODES = {"learner": EPISODIC}
_NOT_TABLES = {"dataset": TABLES}  # what images alone have
# Options of networks of rows where none are given: a network of n-grams without any would learn nothing.
FROZEN_PICTURES = "frozen_pictures"
ROW_MODEL_OPTIONS = {"ngrams": "scaled=true"}


@dataclasses.dataclass(frozen=True)
class EpisodeOptions:
    """The episodes, and how training changes them."""

    protocol: str = option(
        "episodes",
        "Order of examples. episodes: a support set, then queries. sequence: one example after another, each "
        "--shots times its class, answered before its label is read; accuracy is reported from the first to "
        "the last presentation of a class, and counts at the second.",
        section="Episodes",
        choices=("episodes", "sequence"),
        never={"learner": PENALIZED, "outer": ("reptile", "pes")},
    )
    ways: int = option(5, "Classes of an episode.", section="Episodes", least=2, basic=True)
    shots: int = option(1, "Support images per class.", section="Episodes", least=1, basic=True)
    train_ways: int | None = option(
        None,
        "Classes of a training episode, for learners of any number of classes: "
        f"{', '.join(WAYS_AGNOSTIC)}. By default --ways, or the learner's own number if there are as many "
        "training classes.",
        section="Episodes",
        least=2,
        only=_ON_EPISODES,
    )
    train_shots: int | None = option(
        None,
        "Support images per class of a training episode. By default --shots, or the learner's own number if "
        "all training classes have as many images.",
        section="Episodes",
        least=1,
        only=_ON_EPISODES,
        never=_SEQUENCE,
    )
    queries: int = option(
        5,
        "Query images per class of a training episode.",
        section="Episodes",
        least=1,
        only=_ON_EPISODES,
        never=_SEQUENCE,
    )
    test_queries: int = option(
        15,
        "Query images per class in validation and test.",
        section="Episodes",
        least=1,
        scope="test",
        never=_SEQUENCE,
    )
    min_ways: int | None = option(
        None,
        "Smallest number of classes of a training episode, drawn up to --train_ways.",
        section="Episodes",
        least=1,
        only=_ON_EPISODES,
        never=_SEQUENCE,
    )
    min_shots: int | None = option(
        None,
        "Smallest number of shots of a training episode, drawn up to --train_shots.",
        section="Episodes",
        least=1,
        only=_ON_EPISODES,
        never=_SEQUENCE,
    )
    images: int | None = option(
        None,
        f"{', '.join(SUPERVISED)}: Images of a batch in training, --meta_batch batches per step [{IMAGES}].",
        section="Episodes",
        least=1,
        only={"learner": SUPERVISED},
    )
    rotations: str = option(
        "none",
        "Where a class turned by 90, 180 and 270 degrees is three more classes: nowhere, in training, or "
        "in validation and test too.",
        section="Data",
        choices=("none", "train", "all"),
        never=_NOT_TABLES,
    )
    augment: str = option(
        "",
        f"Augmentation of training images, separated by commas: {', '.join(augment.AUGMENTATIONS)}.",
        section="Data",
        never=_NOT_TABLES,
    )
    mix_classes: bool = option(
        False,
        "Makes each class of a training task a new one, a blend with another of its classes.",
        section="Data",
        only=_ON_EPISODES,
        never=_NOT_TABLES,
    )
    project: bool = option(
        False,
        "Multiplies the images of a training task by its own random matrix (GPICL), so that only how to "
        "learn can be learned; for --model=mlp.",
        section="Data",
        only=_ON_EPISODES,
        never=_NOT_TABLES,
    )
    label_noise: float = option(
        0.0,
        "Probability that a support label of a training task is another of its labels.",
        section="Data",
        least=0,
        most=1,
        only=_ON_EPISODES,
        never=_SEQUENCE,
    )
    one_query_at_a_time: bool = option(
        False,
        "Answers each query of validation and test by itself, in a batch with the support images, so that "
        "batch norm is not transductive.",
        section="Test",
        scope="test",
        was=("beside_support",),
        never={**_SEQUENCE, "attack": ("fgsm", "pgd")},
    )
    calibration_episodes: int = option(
        200,
        "Validation episodes that the bundle's temperature is fitted on, and as many test episodes that show "
        "what it does; 0 leaves probabilities as they are.",
        section="Test",
        least=0,
        most=MAX_EPISODES,
        scope="test",
        protocol=False,
        never=_SEQUENCE,
    )
    unknown_ways: int = option(
        0,
        "Classes of these episodes that have queries and no support: how well they are told from the others, "
        'and the probability below which the bundle answers "unknown".',
        section="Test",
        least=0,
        scope="test",
        never={**_SEQUENCE, "calibration_episodes": (0,)},
    )


_NetworkOptions = choice_options("_NetworkOptions", MODELS, flag="model", section="Learner")


@dataclasses.dataclass(frozen=True)
class NetworkOptions(_NetworkOptions):
    """The network and its own options."""

    model: str = option(
        "conv4_stride",
        "Network: conv4_stride halves the image by strides (as MAML on Omniglot), conv4 by max-pooling; "
        "conv4_wide has 96 to 512 filters (R2D2); resnet12, resnet18; vit is a small transformer. Of tables: "
        + "; ".join(f"{kind}: {', '.join(readers(kind))}" for kind in ("text", "fields", "smiles"))
        + "; mlp reads all columns as one row of numbers; if none of these is named, ngrams, fields or "
        "fingerprints, and mlp for several kinds.",
        section="Learner",
        choices=(*MODELS, *ROW_MODELS),
        basic=True,
    )

    @property
    def network_options(self) -> dict[str, Any]:
        """The network's own options: as given, else as its entry declares."""
        entry = MODELS[self.model]
        given = {name: getattr(self, name) for name in entry.options}
        return complete(self.model, given, entry.options)

    @property
    def norm_policy(self) -> str:
        """The norm policy in force."""
        return self.norm or (MODELS[self.model].norm if self.model in MODELS else "none")


@dataclasses.dataclass(frozen=True)
class AdversaryOptions:
    """Adversarial images."""

    attack: str = option(
        "none",
        "Adversarial images: fgsm, one step of --attack_epsilon along the sign of the gradient; pgd, "
        f"{ATTACK_STEPS} steps within it. The test then reports robust accuracy next to accuracy.",
        section="Adversary",
        choices=("none", "fgsm", "pgd"),
        scope="test",
        never={**_SEQUENCE, **_NOT_TABLES},
    )
    attack_epsilon: float = option(
        8 / 255,
        "Largest change of a pixel, of 1.",
        section="Adversary",
        above=0,
        most=1,
        scope="test",
        needs="attack",
    )
    attack_on: str = option(
        "query",
        "Images attacked in training: the query set, which the outer loss sees; the support set, which the "
        "inner loss sees; both; or none, for a test alone. In test it is the query set.",
        section="Adversary",
        choices=("query", "support", "both", "none"),
        scope="test",
        needs="attack",
    )


@dataclasses.dataclass(frozen=True)
class FewshotSettings(
    RowModelOptions,
    AdversaryOptions,
    EncoderOptions,
    NetworkOptions,
    EpisodeOptions,
    ClassTableOptions,
    ImageSettings,
):
    """Every option of few-shot classification."""

    dataset: str = redeclare(
        ImageSettings,
        "dataset",
        "glyphs",
        help=declarations(ImageSettings)["dataset"].help
        + " Of text: banking77, hwu64, liu, clinc150, clinc150_oos, fewrel, xsid, which lie on your disk. "
        "table is a file of your own (CSV, TSV, JSON lines, ARFF, Parquet), whose columns --label and "
        "--text, --features or --smiles name.",
    )
    data_dir: str = redeclare(
        ImageSettings,
        "data_dir",
        "",
        help=declarations(ImageSettings)["data_dir"].help
        + " Of text its folder, of table the file.",
    )
    split: str = redeclare(
        ImageSettings,
        "split",
        "",
        help=declarations(ImageSettings)["split"].help
        + " Of tables: random, file, or column:NAME of a column with train, valid and test; 1 to 5 of "
        "intents; pubmed, nyt, semeval (from Wikipedia to that domain) or wiki of fewrel; domains of "
        "clinc150_oos; languages of xsid.",
    )
    test_inner_steps: int | None = redeclare(
        ImageSettings,
        "test_inner_steps",
        None,
        help="Inner steps in validation and test; by default as in training, but at least "
        f"{TEST_STEPS}.",
    )

    @property
    def min_classes(self) -> int:
        """Fewest classes that an episode of the training can be drawn from.

        A test of other rotations divides the classes as the training did.
        """
        if self.encodes:
            return self.ways
        return 1 if trained_with(self, "rotations") == "all" else 2

    @property
    def steps_at_test(self) -> int:
        """Inner steps in validation and test."""
        if self.test_inner_steps is None:
            return max(self.inner_steps, TEST_STEPS)
        return self.test_inner_steps

    @property
    def of_rows(self) -> bool:
        """Whether tasks are made of rows of a table, or of vectors of images, and not of images."""
        return self.dataset in TABLES or self.encodes

    @property
    def row_model(self) -> str:
        """Name of the network of rows: as given, or the usual one for the columns."""
        if self.model != NetworkOptions.model:
            return self.model
        if self.encodes:
            return FROZEN_PICTURES
        if self.dataset != TABLE:
            return usual_model(text=True, smiles=False, fields=False)
        text, smiles = names_in(self.text), names_in(self.smiles)
        fields = bool(names_in(self.features) or names_in(self.categories)) or not (text or smiles)
        return usual_model(text=bool(text), smiles=bool(smiles), fields=fields)

    def in_force(self, name: str) -> Any:
        """Returns the value of an option, where none is given that of the learner or the network."""
        if name == "model" and self.of_rows:
            return self.row_model
        if name == "norm":
            return "none" if self.of_rows else self.norm_policy
        return super().in_force(name)


class FewshotPlan(NamedTuple):
    """A run of few-shot classification as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      data: Options of the images.
      episodes: Options of the episodes.
      network: Options of the network.
      adversary: Options of adversarial images.
      table: Options of the table, where tasks are of rows.
      row_options: Options of the network of rows and of its features.
      encoder: Options of the frozen encoder of images.
    """

    common: RunPlan
    data: DataOptions
    episodes: EpisodeOptions
    network: NetworkOptions
    adversary: AdversaryOptions
    table: ClassTableOptions
    row_options: RowOptions
    encoder: EncoderOptions

    @property
    def supervised(self) -> bool:
        """Whether training is to tell all training classes apart, instead of on episodes."""
        return self.common.inner.entry.objective is not None

    @property
    def drop_rate(self) -> float:
        """Share of feature maps dropped in training."""
        return self.network.drop_rate or 0.0

    @property
    def penalty(self) -> Callable[[Any, Any], Any] | None:
        """Term that training adds to the outer loss, (meta, fast) -> scalar; None for most learners."""
        penalty = self.common.inner.entry.penalty
        return dropout_penalty(penalty) if penalty and self.drop_rate else penalty


def resolve_fewshot(settings: FewshotSettings) -> FewshotPlan:
    """Resolves options into a plan.

    Raises:
      UsageError: If `--model_options` does not fit the network.
    """
    unset = ROW_MODEL_OPTIONS.get(settings.model, "")
    return FewshotPlan(
        common=resolve(settings),
        data=part(DataOptions, settings),
        episodes=part(EpisodeOptions, settings),
        network=part(NetworkOptions, settings),
        adversary=part(AdversaryOptions, settings),
        table=part(ClassTableOptions, settings),
        row_options=model_options(settings.model, settings.model_options, unset=unset),
        encoder=part(EncoderOptions, settings),
    )
