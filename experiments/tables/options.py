"""Options of prior-fitted tables, and the typed plan they are resolved into."""

import dataclasses
from typing import ClassVar, NamedTuple

from metajax.episodes.causal_tables import LEAST_SUPPORT
from metajax.zoo.options import Limits

from ..flags.plan import RunPlan, part, resolve
from ..flags.settings import UsageError, option, redeclare
from ..flags.training import MAX_EPISODES, TrainingSettings, check_together
from .data import NAMES
from .scores import BASELINES

LEARNER = "in_context_tables"


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
class RealOptions:
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
    support: str = option(
        "32,128",
        "Support rows of a real table; the first size heads the result.",
        section="Test",
        scope="test",
        basic=True,
    )
    repeats: int = option(
        20,
        "Splits of each real table, stratified by class.",
        section="Test",
        least=2,
        most=10_000,
        scope="test",
        basic=True,
    )
    test_queries: int = option(
        0,
        "Largest number of query rows of a real table; 0 takes all that are not in the support set.",
        section="Test",
        least=0,
        scope="test",
    )
    baselines: str = option(
        "all",
        "Baselines to measure on the same splits, separated by commas: "
        + "; ".join(f"{name}, {words}" for name, words in BASELINES.items())
        + ". none has none.",
        section="Test",
        scope="test",
        basic=True,
    )
    trees: int = option(100, "forest: Number of trees.", section="Test", least=1, scope="test")


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
    names = _words("test_dataset", settings.test_dataset, NAMES)
    if ("table" in names) != bool(settings.target):
        raise UsageError(
            f"--test_dataset={settings.test_dataset} and --target={settings.target} do not go together; the "
            "target is the column to predict of --test_dataset=table, and only of it."
        )
    baselines = {"none": "", "all": ",".join(BASELINES)}.get(settings.baselines, settings.baselines)
    return TablesPlan(
        common=resolve(settings),
        made=part(MadeOptions, settings),
        real=part(RealOptions, settings),
        names=names,
        supports=_sizes(settings.support),
        baselines=_words("baselines", baselines, tuple(BASELINES)) if baselines else (),
    )


def _words(flag: str, asked: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Reads a list of different names; raises UsageError if one is unknown."""
    words = tuple(dict.fromkeys(word.strip() for word in asked.split(",") if word.strip()))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise UsageError(
            f"--{flag}={asked} is not a list of known names; use some of {', '.join(known)}."
        )
    return words


def _sizes(asked: str) -> tuple[int, ...]:
    """Reads `--support`; raises UsageError if it is not a list of different positive numbers."""
    parts = [part.strip() for part in asked.split(",")]
    found = tuple(int(part) for part in parts if part.isdecimal())
    if len(found) != len(parts) or min(found) < 2 or len(set(found)) < len(found):
        raise UsageError(
            f"--support={asked} is not a list of different numbers of rows, 2 or more; use such as 32,128."
        )
    return found
