"""Options of prior-fitted tables, and the typed plan they are resolved into."""

import dataclasses
from typing import ClassVar, NamedTuple

from metajax.episodes.causal_tables import LEAST_SUPPORT
from metajax.zoo.options import Limits

from ..flags.columns import FieldOptions
from ..flags.plan import RunPlan, part, resolve
from ..flags.row_tests import (
    BaselineOptions,
    SplitOptions,
    baseline_names,
    known_names,
    sizes,
    with_baselines,
)
from ..flags.settings import UsageError, declarations, option, redeclare
from ..flags.training import MAX_EPISODES, TrainingSettings, check_together
from .data import NAMES
from .scores import BASELINES

LEARNER = "in_context_tables"
# A user's file is one of several tables of the test.
_OF_TABLE = {"scope": "test", "only": {}}


@dataclasses.dataclass(frozen=True)
class MadeOptions:
    """The made-up tables of training and validation."""

    rows: int = option(
        64,
        "Largest number of support rows of a made-up table.",
        section="Episodes",
        least=LEAST_SUPPORT,
        basic=True,
    )
    queries: int = option(32, "Query rows of a made-up table.", section="Episodes", least=1)
    columns: int = option(
        16,
        "Largest number of columns of a made-up table; real ones may have more.",
        section="Episodes",
        least=2,
        basic=True,
    )


@dataclasses.dataclass(frozen=True)
class RealOptions(SplitOptions, BaselineOptions, FieldOptions):
    """The real tables of the test."""

    test_dataset: str = option(
        "breast_cancer,wine,iris",
        f"Tables to test on, separated by commas: {', '.join(NAMES)}. The first three come with "
        "scikit-learn, the others lie in --data_dir; table is a file of your own (CSV, TSV, JSON lines, "
        "ARFF, Parquet).",
        section="Data",
        scope="test",
        basic=True,
    )
    data_dir: str = option(
        "",
        "Folder of the tables that are not scikit-learn's, or the file of --test_dataset=table.",
        section="Data",
        scope="host",
        basic=True,
    )
    target: str = option("", "table: Column to predict.", section="Data", scope="test", basic=True)
    features: str = redeclare(
        FieldOptions,
        "features",
        "",
        help="table: Columns of numbers and categories, separated by commas; by default all others.",
        **_OF_TABLE,
    )
    categories: str = redeclare(FieldOptions, "categories", "", **_OF_TABLE)
    encoding: str = redeclare(FieldOptions, "encoding", "utf-8", **_OF_TABLE)
    support: str = redeclare(
        SplitOptions,
        "support",
        "32,128",
        help="Support rows of a real table; the first size heads the result.",
        section="Test",
        scope="test",
    )
    repeats: int = redeclare(
        SplitOptions,
        "repeats",
        20,
        help="Splits of each real table, stratified by class.",
        limits=Limits(least=2, most=10_000),
    )
    baselines: str = redeclare(
        BaselineOptions,
        "baselines",
        "all",
        help=with_baselines(declarations(BaselineOptions)["baselines"].help, BASELINES),
    )


@dataclasses.dataclass(frozen=True)
class TablesSettings(RealOptions, MadeOptions, TrainingSettings):
    """Every option of prior-fitted tables."""

    predicts: ClassVar[str] = "classes"

    learner: str = redeclare(TrainingSettings, "learner", LEARNER)
    outer_lr: float = redeclare(TrainingSettings, "outer_lr", 1e-3)
    meta_batch: int = redeclare(TrainingSettings, "meta_batch", 8)
    steps: int = redeclare(TrainingSettings, "steps", 4000)
    tasks_at_once: str = redeclare(
        TrainingSettings,
        "tasks_at_once",
        "1000",
        help="Tasks vectorized together on a device, a number; fewer use less memory. auto is one on a CPU, "
        "all elsewhere.",
    )
    valid_episodes: int = redeclare(
        TrainingSettings, "valid_episodes", 128, help="Made-up tables of a validation."
    )
    eval_episodes: int = redeclare(
        TrainingSettings,
        "eval_episodes",
        0,
        help="Test episodes; found from the tables and --repeats.",
        limits=Limits(least=0, most=MAX_EPISODES),
    )


class TablesPlan(NamedTuple):
    """A run on tables as resolved from its options.

    Attributes:
      common: Plan that all drivers share.
      made: Options of the made-up tables.
      real: Options of the real tables.
      names: Names of the real tables.
      supports: Support sizes of the test.
      baselines: Names of the baselines.
    """

    common: RunPlan
    made: MadeOptions
    real: RealOptions
    names: tuple[str, ...]
    supports: tuple[int, ...]
    baselines: tuple[str, ...]


def resolve_tables(settings: TablesSettings) -> TablesPlan:
    """Checks options and resolves them.

    Raises:
      UsageError: If options do not go together.
    """
    check_together(settings)
    if settings.learner != LEARNER:
        raise UsageError(
            f"--learner={settings.learner} does not read tables of any columns; use --learner={LEARNER}."
        )
    names = known_names("test_dataset", settings.test_dataset, NAMES)
    if ("table" in names) != bool(settings.target):
        raise UsageError(
            f"--test_dataset={settings.test_dataset} and --target={settings.target} do not go together; the "
            "target is the column to predict of --test_dataset=table, and only of it."
        )
    for name in ("features", "categories"):
        if getattr(settings, name) and "table" not in names:
            raise UsageError(
                f"--{name} is for --test_dataset=table, and the columns of others are known; leave it out."
            )
    return TablesPlan(
        common=resolve(settings),
        made=part(MadeOptions, settings),
        real=part(RealOptions, settings),
        names=names,
        supports=sizes(settings.support, least=2),
        baselines=baseline_names(settings.baselines, tuple(BASELINES)),
    )
