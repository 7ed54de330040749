"""Data sets of customers and patients, whose tasks are segments or the whole table."""

from pathlib import Path

from metajax.data.tables import splitting
from metajax.data.tables.reading import read_table
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.source import Source, find_file
from metajax.data.tables.table import Table

# Names of the columns of the file of OpenML, which numbers them; UCI 222.
_BANK = (
    "age job marital education default balance housing loan contact day month duration campaign pdays "
    "previous poutcome"
).split()
# Without the duration of the call, which nobody knows before it: a call of no seconds sells nothing.
_BANK_NUMBERS = ("age", "balance", "day", "campaign", "pdays", "previous")
_BLOOD = ("recency", "frequency", "amount", "time")
_CREDIT_NUMBERS = (
    "duration credit_amount installment_commitment residence_since age existing_credits num_dependents"
).split()
_TAIWAN_CATEGORIES = ("SEX", "EDUCATION", "MARRIAGE")
_AGES = (30, 40, 50)  # upper ends of age bands, in years


def creditg(data_dir: str | Path | None) -> Source:
    """Reads German credit: 1,000 borrowers, of whom 30% are bad risks; segments are purposes of the loan.

    Args:
      data_dir: Folder with `dataset_31_credit-g.arff`, or one above it.

    Returns:
      The data set; the split "random" divides the segments, "whole" makes the table one test task.

    Raises:
      DataError: If the file is missing or broken.
    """
    file = "dataset_31_credit-g.arff"
    path = find_file(data_dir, "creditg", file, f"creditg/{file}", f"tables/creditg/{file}")
    table = read_table(path)
    numbers = tuple(_CREDIT_NUMBERS)
    rest = tuple(name for name in table.columns if name not in (*numbers, "class", "purpose"))
    recipe = Recipe(
        numbers=numbers, categories=(*rest, "purpose"), target="class", parent="purpose"
    )
    return _source("creditg", table, recipe._replace(classes=("good", "bad")))


def bank(data_dir: str | Path | None) -> Source:
    """Reads bank marketing: 45,211 calls, of which 11.7% sold; segments are a job and a month.

    The duration of the call is no feature of the recipe, as it is known only after the call; published
    few-shot tables have it. The column stays in the table, for a recipe of one's own.

    Args:
      data_dir: Folder with `phpkIxskf.arff`, or one above it.

    Returns:
      The data set; the split "random" divides the segments, "whole" makes the table one test task.

    Raises:
      DataError: If the file is missing or broken.
    """
    file = "phpkIxskf.arff"
    path = find_file(data_dir, "bank", file, f"bank/{file}", f"tables/bank/{file}")
    found = read_table(path)
    names = dict(zip(found.columns, (*_BANK, "sold"), strict=True))
    columns = {names[name]: column for name, column in found.columns.items()}
    table = _segmented(Table(columns, found.source, found.numbers), "job", "month")
    rest = tuple(name for name in _BANK if name not in (*_BANK_NUMBERS, "duration"))
    recipe = Recipe(numbers=_BANK_NUMBERS, categories=rest, target="sold", parent="segment")
    notes = (
        "the duration of the call, known only after it, is no feature, as it is in published tables",
    )
    return _source("bank", table, recipe._replace(classes=("1", "2")), notes)


def taiwan(data_dir: str | Path | None) -> Source:
    """Reads Taiwan default: 30,000 borrowers, of whom 22.1% default; segments are an age and an education.

    Args:
      data_dir: Folder with `UCI_Credit_Card.csv`, or one above it.

    Returns:
      The data set; the split "random" divides the segments, "whole" makes the table one test task.

    Raises:
      DataError: If the file is missing or broken.
    """
    file = "UCI_Credit_Card.csv"
    path = find_file(data_dir, "taiwan", file, f"taiwan/{file}", f"tables/taiwan/{file}")
    table = read_table(path)
    ages = table.floats("AGE")
    bands = [f"from {sum(age >= end for end in _AGES) * 10 + 20}" for age in ages.tolist()]
    table = _segmented(table.with_columns({"age band": bands}), "age band", "EDUCATION")
    target = next(name for name in table.columns if name.lower().startswith("default"))
    apart = (*_TAIWAN_CATEGORIES, "ID", target, "age band", "segment")
    recipe = Recipe(
        numbers=tuple(name for name in table.columns if name not in apart),
        categories=_TAIWAN_CATEGORIES,
        target=target,
        classes=("0", "1"),
        parent="segment",
    )
    return _source("taiwan", table, recipe)


def blood(data_dir: str | Path | None) -> Source:
    """Reads blood donations: 748 donors, of whom 24% came again.

    Args:
      data_dir: Folder with `php0iVrYT.arff`, or one above it.

    Returns:
      The data set, a single task.

    Raises:
      DataError: If the file is missing or broken.
    """
    file = "php0iVrYT.arff"
    path = find_file(data_dir, "blood", file, f"blood/{file}", f"tables/blood/{file}")
    found = read_table(path)
    names = dict(zip(found.columns, (*_BLOOD, "came"), strict=True))
    columns = {names[name]: column for name, column in found.columns.items()}
    recipe = Recipe(numbers=_BLOOD, target="came", classes=("1", "2"))
    return _source("blood", Table(columns, found.source, found.numbers), recipe)


def diabetes(data_dir: str | Path | None) -> Source:
    """Reads Pima diabetes: 768 women, of whom 35% have diabetes.

    Args:
      data_dir: Folder with `diabetes.csv`, or one above it.

    Returns:
      The data set, a single task.

    Raises:
      DataError: If the file is missing or broken.
    """
    file = "diabetes.csv"
    path = find_file(data_dir, "diabetes", file, f"diabetes/{file}", f"tables/diabetes/{file}")
    table = read_table(path)
    numbers = tuple(name for name in table.columns if name != "Outcome")
    return _source("diabetes", table, Recipe(numbers=numbers, target="Outcome", classes=("0", "1")))


def _source(name: str, table: Table, recipe: Recipe, notes: tuple[str, ...] = ()) -> Source:
    """Makes a data set whose tasks are segments if there are any, or the whole table."""
    policies = {"whole": splitting.everything}
    if recipe.parent:
        policies = {"random": splitting.random(least=2), **policies}
    return Source(name, table, recipe, policies, notes, least=2)


def _segmented(table: Table, *columns: str) -> Table:
    """Adds a column `segment` that joins the values of others."""
    words = [table.text(name) for name in columns]
    return table.with_columns({"segment": [" ".join(row) for row in zip(*words, strict=True)]})
