"""Options of tasks from tables, and the typed plan they are resolved into."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from metajax.baselines import SIMILARITIES
from metajax.zoo.options import Limits
from metajax.zoo.row_models import ROW_MODELS, RowOptions

from ..flags.columns import ColumnOptions, RowModelOptions, model_options, readers
from ..flags.learner import PENALIZED, SUPERVISED
from ..flags.plan import RunPlan, part, resolve
from ..flags.row_tests import (
    BaselineOptions,
    SplitOptions,
    baseline_names,
    sizes,
    with_baselines,
)
from ..flags.settings import (
    UsageError,
    declarations,
    defaults,
    given,
    learner_defaults,
    option,
    redeclare,
)
from ..flags.training import (
    AFTER_TRAINING,
    MAX_EPISODES,
    TrainingSettings,
    check_together,
    hidden_widths,
)
from ..setup.row_tests import ORDERS
from .baselines import BASELINES
from .scores import CLASS_METRICS, DEFAULTS, VALUE_METRICS
from .splits import Protocol
from .windows import windows_of

KINDS = ("binary", "classes", "values")
# Learners that join inputs and codes into rows of numbers.
FLAT = ("cnp", "anp")
# The learner that reads a row cell by cell.
CELLS = "in_context_tables"


@dataclasses.dataclass(frozen=True)
class TaskOptions(SplitOptions):
    """The tasks: how many rows a task has, how they are split, and what is measured."""

    train_support: int = option(
        0,
        "Support rows of a training task; 0 is the first of --support.",
        section="Episodes",
        least=0,
    )
    queries: int = option(
        32,
        "Query rows of a training task; smaller tasks have fewer.",
        section="Episodes",
        least=1,
        basic=True,
    )
    valid_queries: int = option(
        64, "Query rows of a validation task.", section="Episodes", least=1, scope="test"
    )
    order: str = option(
        "auto",
        "Choice of support rows: stratified keeps the share of each class, balanced takes equally many of "
        "each, random draws them, first takes the first rows of the table, such as time. auto is the data "
        "set's own; of a table stratified for classes and random for values.",
        section="Episodes",
        choices=("auto", *ORDERS),
        basic=True,
    )
    test_tasks: int = option(
        0,
        "Largest number of test tasks, spread evenly over all; 0 tests all.",
        section="Test",
        least=0,
        scope="test",
    )
    min_queries: int = option(
        1,
        "Fewest queries of a test task; smaller tasks are left out and counted.",
        section="Test",
        least=1,
        scope="test",
    )
    metric: str = option(
        "",
        f"Metric that chooses the checkpoint and heads the table: {', '.join(CLASS_METRICS[:-1])}; of values "
        f"{', '.join(VALUE_METRICS)}. By default that of the data set, or "
        + ", ".join(f"{metric} for {kind}" for kind, metric in DEFAULTS.items())
        + ".",
        section="Test",
    )
    windows: str = option(
        "",
        "Ranges of the rows of a task in which classes are measured apart, such as 3-10,11-15; for "
        "--order=first.",
        section="Test",
        scope="test",
    )


@dataclasses.dataclass(frozen=True)
class ComparisonOptions(BaselineOptions):
    """The baselines that are measured on the test tasks."""

    baselines: str = redeclare(
        BaselineOptions,
        "baselines",
        "all",
        help=with_baselines(declarations(BaselineOptions)["baselines"].help, BASELINES),
    )
    baselines_only: bool = option(
        False,
        "Measures the baselines alone, without training a learner.",
        section="Test",
        scope="test",
        never={"mode": AFTER_TRAINING, "plan": (True,)},
        basic=True,
    )
    neighbors: int = option(
        4, "knn: Number of nearest rows.", section="Test", least=1, scope="test"
    )
    similarity: str = option(
        "euclidean",
        "knn: Order of the neighbors; tanimoto is for counts.",
        section="Test",
        choices=tuple(SIMILARITIES),
        scope="test",
    )


@dataclasses.dataclass(frozen=True)
class TableOptions(ColumnOptions):
    """The table, and what its columns are."""

    dataset: str = option(
        "table",
        "table is a file of your own (CSV, TSV, JSON lines, ARFF, Parquet); else the name of a data set on "
        "your disk, such as fsmol, tox21, muv, toxcast, restaurant, movielens, assist, creditg, taiwan, "
        "bank, blood or diabetes.",
        section="Data",
        basic=True,
    )
    data_dir: str = option(
        "",
        "Folder of the data set, or the file of --dataset=table.",
        section="Data",
        scope="host",
        basic=True,
    )
    group: str = option(
        "", "Column whose values are the tasks, such as user.", section="Data", basic=True
    )
    target: str = option("", "Column to predict.", section="Data", basic=True)
    item: str = option(
        "",
        "Column of what is rated or answered, such as a film, for the baseline item_bias; it is no feature.",
        section="Data",
        basic=True,
    )
    time: str = option(
        "",
        "Column of numbers or times that sorts the rows of a task, for --order=first; else they keep the "
        "order of the table.",
        section="Data",
    )
    split: str = option(
        "",
        "Division of the tasks: official, random, file, whole, which makes a table of segments one task, or "
        "all, which leaves all for the test. By default the first that the data set has; of a table random, "
        "64, 16 and 20 percent.",
        section="Data",
    )
    split_file: str = option(
        "",
        'JSON of values of --group, {"train": [...], "valid": [...], "test": [...]}.',
        section="Data",
        shared=False,
    )
    split_column: str = option(
        "",
        "Column whose values train, valid and test divide the rows; all rows of a task are in one split.",
        section="Data",
    )
    split_seed: int = option(0, "Seed of a random split.", section="Data", least=0, protocol=False)
    kind: str = option(
        "auto",
        "Kind of the target: binary, classes or values. auto: two values are binary, numbers of more values "
        "are values, words are classes.",
        section="Data",
        choices=("auto", *KINDS),
    )


@dataclasses.dataclass(frozen=True)
class PertaskSettings(
    RowModelOptions, TableOptions, ComparisonOptions, TaskOptions, TrainingSettings
):
    """Every option of tasks from tables."""

    model: str = option(
        "auto",
        "Network: mlp reads all features as one row of numbers; the others read one kind of column: "
        + "; ".join(f"{kind}: {', '.join(readers(kind))}" for kind in ("fields", "text", "smiles"))
        + ". auto is fields, ngrams or fingerprints, and mlp for several kinds; of in_context_tables cells.",
        section="Learner",
        choices=("auto", "mlp", *ROW_MODELS),
        basic=True,
    )
    hidden: str = option(
        "128,128",
        "mlp: Widths of the hidden layers.",
        section="Learner",
        basic=True,
        only={"model": ("auto", "mlp")},
    )
    outer_lr: float = redeclare(TrainingSettings, "outer_lr", 1e-3)
    inner_lr: float = redeclare(TrainingSettings, "inner_lr", 0.1)
    tasks_at_once: str = redeclare(
        TrainingSettings,
        "tasks_at_once",
        "1000",
        help="Tasks vectorized together on a device, a number; fewer use less memory. auto is one on a CPU, "
        "all elsewhere.",
    )
    steps: int = redeclare(TrainingSettings, "steps", 2000)
    ensemble: int = redeclare(TrainingSettings, "ensemble", 1, never={"learner": PENALIZED})
    valid_episodes: int = redeclare(
        TrainingSettings, "valid_episodes", 200, help="Tasks of a validation."
    )
    eval_episodes: int = redeclare(
        TrainingSettings,
        "eval_episodes",
        0,
        help="Test episodes; found from the test tasks, --support and --repeats. To test fewer, use "
        "--test_tasks.",
        limits=Limits(least=0, most=MAX_EPISODES),
    )

    @property
    def predicts(self) -> str:
        """Kind of targets that the learner has to predict: classes as long as the table is not read."""
        return "values" if self.kind == "values" else "classes"


class PertaskPlan(NamedTuple):
    """A run on tasks from tables as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      table: Options of the table.
      tasks: Options of the tasks.
      baselines: Options of the baselines.
      hidden: Widths of the hidden layers of "mlp".
      supports: Support sizes of the test.
      windows: Ranges of row numbers that are measured apart.
      metric: Metric that chooses the checkpoint.
      model: Name of the network.
      model_options: Options of the network and of its features.
    """

    common: RunPlan
    table: TableOptions
    tasks: TaskOptions
    baselines: ComparisonOptions
    hidden: tuple[int, ...]
    supports: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    metric: str
    model: str
    model_options: RowOptions

    @property
    def train_support(self) -> int:
        """Support rows of a training task."""
        return self.tasks.train_support or self.supports[0]

    @property
    def protocol(self) -> Protocol:
        """Rules by which test tasks are made."""
        return Protocol(
            order=self.tasks.order,
            repeats=self.tasks.repeats,
            seed=self.common.test.eval_seed,
            queries=self.tasks.test_queries,
            min_queries=self.tasks.min_queries,
            units=self.tasks.test_tasks,
        )


def resolve_pertask(settings: PertaskSettings) -> PertaskPlan:
    """Checks options and resolves them.

    Raises:
      UsageError: If options do not go together.
    """
    check_alone(settings)
    if settings.kind != "auto" and not settings.baselines_only:
        check_together(settings)
    return PertaskPlan(
        common=resolve(settings),
        table=part(TableOptions, settings),
        tasks=part(TaskOptions, settings),
        baselines=part(ComparisonOptions, settings),
        hidden=hidden_widths(settings.hidden),
        supports=sizes(settings.support),
        windows=windows_of(settings.windows),
        metric=settings.metric or DEFAULTS.get(settings.kind, ""),
        model=settings.model,
        model_options=model_options(settings.model, settings.model_options),
    )


def settled(settings: PertaskSettings, found: Mapping[str, Any]) -> PertaskSettings:
    """Fills in what a table decides, and takes back defaults of the learner for targets of another kind.

    Args:
      settings: Settings, as a command gives them; what it gives stays.
      found: Values by option, such as the kind of the targets.

    Returns:
      The settings.
    """
    taken = {}
    if settings.kind == "auto" and found["kind"] == "values":
        usual = defaults(PertaskSettings)
        own = learner_defaults(PertaskSettings, "classes").get(settings.learner, {})
        taken = {name: usual[name] for name in own if name not in given(settings)}
    return dataclasses.replace(settings, **taken, **found)


def check_alone(settings: PertaskSettings) -> None:
    """Raises UsageError for options that no table can make sense of.

    Args:
      settings: Settings.

    Raises:
      UsageError: If an option makes no sense.
    """
    sizes(settings.support)
    baseline_names(settings.baselines, tuple(BASELINES))
    if windows_of(settings.windows) and settings.order not in ("auto", "first"):
        raise UsageError(
            f"--windows={settings.windows} needs rows in their order, and --order={settings.order} draws "
            "them; use --order=first."
        )
    largest = max(sizes(settings.support))
    if early := [first for first, _ in windows_of(settings.windows) if first <= largest]:
        raise UsageError(
            f"--windows={settings.windows} begins at row {min(early)}, and --support={settings.support} "
            f"learns from the first {largest} rows; use windows from row {largest + 1}, or less support."
        )
    if settings.learner in (*SUPERVISED, "relation"):
        raise UsageError(
            f"--learner={settings.learner} is for images of many classes; use a learner of episodes, such as "
            "protonet or maml."
        )
