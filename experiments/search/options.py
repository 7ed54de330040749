"""Options of a search; its command takes the options of a driver too."""

import dataclasses
import importlib
from typing import Any

from metajax.names import shown
from metajax.zoo.options import nearest

from ..flags.settings import PACKAGE, UsageError, check_fields, option
from ..flags.training import MAX_SEED

# Settings of each driver whose runs validate, in its module `driver`.
DRIVERS = {
    "fewshot": "FewshotSettings",
    "regression": "RegressionSettings",
    "completion": "CompletionSettings",
    "pertask": "PertaskSettings",
    "tables": "TablesSettings",
    "rl": "RlSettings",
    "imitation": "ImitationSettings",
}
PRUNERS = ("median", "hyperband", "none")


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Every option of a search; all other flags of the command are options of the driver."""

    search: str = option(
        "",
        "Options to search and their values, separated by semicolons: a range LOW..HIGH, log:LOW..HIGH of "
        "logarithms, or a list A,B,C (A|B|C where values have commas). Options that a learner does not have "
        "are left out of its trials.",
        section="Search",
        scope="display",
        basic=True,
    )
    trials: int = option(
        40,
        "Number of trials of the work directory, by all commands that search there.",
        section="Search",
        least=1,
        most=100_000,
        scope="display",
        basic=True,
    )
    trial_steps: int | None = option(
        None,
        "Meta-steps of a trial; by default --steps. The best trials run again with --steps.",
        section="Search",
        least=1,
        scope="display",
        basic=True,
    )
    minutes: float = option(
        0.0,
        "Minutes after which this command starts no trial and stops those that it runs; 0 is no limit. The "
        "runs of the best come after them.",
        section="Search",
        least=0,
        scope="display",
        basic=True,
    )
    workers: int = option(
        1,
        "Trials that this command runs at once, each on its share of the CPU's cores.",
        section="Search",
        least=1,
        most=1024,
        scope="display",
        basic=True,
    )
    prune: str = option(
        "median",
        "Trials to stop early, by their validations: median, those below the median of other trials at the "
        "same step; hyperband, by brackets of successive halving; none.",
        section="Search",
        choices=PRUNERS,
        scope="display",
        basic=True,
    )
    finalists: int = option(
        3,
        "Number of best trials that run again at full length, and are tested; 0 tests none.",
        section="Search",
        least=0,
        most=100,
        scope="display",
        basic=True,
    )
    final_seeds: int = option(
        3,
        "Runs of each of the best, with seeds from --seed on.",
        section="Search",
        least=1,
        most=100,
        scope="display",
    )
    search_seed: int = option(
        0,
        "Seed of the values that trials try; independent of --seed.",
        section="Search",
        least=0,
        most=MAX_SEED,
        scope="display",
    )


def driver_settings(driver: str) -> type:
    """Finds the settings class of a driver.

    Args:
      driver: Name of the driver.

    Returns:
      The class.

    Raises:
      UsageError: If there is no such driver.
    """
    if driver not in DRIVERS:
        raise UsageError(f"{shown(driver)} is no driver; {nearest(driver, [*DRIVERS])}")
    return getattr(importlib.import_module(f"{PACKAGE}.{driver}.driver"), DRIVERS[driver])


def search_settings(driver: str) -> type:
    """Makes the settings class of a search: the options of the driver and of the search.

    Args:
      driver: Name of the driver.

    Returns:
      A frozen dataclass.

    Raises:
      UsageError: If there is no such driver.
    """
    bases = (SearchSettings, driver_settings(driver))
    return dataclasses.make_dataclass("DriverSearchSettings", [], bases=bases, frozen=True)


def check_search(settings: Any) -> None:
    """Raises UsageError for options of a command that a search cannot have."""
    check_fields(settings)
    if not settings.workdir:
        raise UsageError(
            "A search needs --workdir, a folder for its trials; the same command goes on there."
        )
    for name, instead in (
        ("plan", f"plan a single run with python -m {PACKAGE}.DRIVER --plan"),
        ("distributed", "start the same command once per process, with one --workdir"),
        ("skip_test", "--finalists=0 tests nothing"),
    ):
        if getattr(settings, name):
            raise UsageError(f"--{name} does not go with a search; {instead}.")
    if settings.mode != "train":
        raise UsageError(f"--mode={settings.mode} does not go with a search, which trains.")
    if settings.trial_steps is not None and settings.trial_steps > settings.steps:
        raise UsageError(
            f"--trial_steps={settings.trial_steps} is more than --steps={settings.steps}, the length of the "
            "last runs; use fewer, or more --steps."
        )
