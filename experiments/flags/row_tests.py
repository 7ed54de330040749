"""Options of tests on a fixed list of splits of rows, where baselines are measured on the same splits."""

import dataclasses
from collections.abc import Mapping, Sequence

from metajax.names import shown
from metajax.zoo.options import nearest

from .settings import UsageError, option


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """The splits of a test into support rows and queries."""

    support: str = option(
        "16",
        "Support rows of a task. Several sizes, such as 16,32,64, are tested with one learner; the first "
        "chooses the checkpoint.",
        section="Episodes",
        basic=True,
    )
    test_queries: int = option(
        0,
        "Largest number of query rows of a test task; 0 takes all that are not in its support set.",
        section="Test",
        least=0,
        scope="test",
    )
    repeats: int = option(
        5,
        "Splits of each test task; they are averaged before tasks are.",
        section="Test",
        least=1,
        most=10_000,
        scope="test",
        basic=True,
    )


@dataclasses.dataclass(frozen=True)
class BaselineOptions:
    """The baselines of a test."""

    baselines: str = option(
        "all",
        "Baselines to measure on the same splits, separated by commas. all has those that fit the targets, "
        "forest only where scikit-learn is installed; none has none.",
        section="Test",
        scope="test",
        basic=True,
    )
    trees: int = option(100, "forest: Number of trees.", section="Test", least=1, scope="test")


def with_baselines(help: str, known: Mapping[str, str]) -> str:
    """Adds the baselines that there are to the help text of `--baselines`.

    Args:
      help: Help text.
      known: Phrases by name.

    Returns:
      The longer help text.
    """
    return f"{help} They are: {'; '.join(f'{name}, {words}' for name, words in known.items())}."


def sizes(asked: str, *, least: int = 1) -> tuple[int, ...]:
    """Reads `--support`.

    Args:
      asked: Numbers separated by commas.
      least: Smallest number.

    Returns:
      The numbers.

    Raises:
      UsageError: If it is not a list of different numbers from `least` on.
    """
    parts = [part.strip() for part in str(asked).split(",")]
    found = tuple(int(part) for part in parts if part.isdecimal())
    if len(found) != len(parts) or min(found) < least or len(set(found)) < len(found):
        raise UsageError(
            f"--support={shown(asked)} is not a list of different numbers of rows, {least} or more, such as "
            "16 or 16,32,64."
        )
    return found


def known_names(flag: str, asked: str, known: Sequence[str]) -> tuple[str, ...]:
    """Reads a list of names.

    Args:
      flag: Name of the option.
      asked: Names separated by commas.
      known: Allowed names.

    Returns:
      The names, each once.

    Raises:
      UsageError: If a name is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names or ("",):
        if name not in known:
            raise UsageError(f"--{flag}={shown(name)} is unknown; {nearest(name, list(known))}")
    return names


def baseline_names(asked: str, known: Sequence[str]) -> tuple[str, ...]:
    """Reads `--baselines`.

    Args:
      asked: Names separated by commas, "all" or "none".
      known: Names of the baselines that there are.

    Returns:
      Names of baselines.

    Raises:
      UsageError: If a name is unknown.
    """
    if asked in ("all", "none"):
        return tuple(known) if asked == "all" else ()
    return known_names("baselines", asked, known)
