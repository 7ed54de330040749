"""Options of the columns of a table and of the networks that read them, for every driver on tables."""

import dataclasses
from typing import Any

from metajax.data.tables.sets import SETS
from metajax.names import shown
from metajax.zoo.options import nearest
from metajax.zoo.row_models import ROW_MODELS, RowOptions, row_options

from .settings import UsageError, option

TABLE = "table"  # a file of the user's
TABLES = (TABLE, *SETS)
_OWN = {"dataset": (TABLE,)}


def readers(kind: str) -> tuple[str, ...]:
    """Lists the networks that read a kind of columns: "text", "smiles" or "fields"."""
    return tuple(name for name, entry in ROW_MODELS.items() if entry.reads == kind)


@dataclasses.dataclass(frozen=True)
class FieldOptions:
    """The columns of numbers and categories of a user's table."""

    features: str = option(
        "",
        "Columns of numbers and categories, separated by commas. Without --text and --smiles, all columns "
        "that are nothing else.",
        section="Data",
        only=_OWN,
        basic=True,
    )
    categories: str = option(
        "",
        "Columns of features that are categories though they look like numbers, such as a postal code, "
        "separated by commas.",
        section="Data",
        only=_OWN,
    )
    encoding: str = option(
        "utf-8",
        "Encoding of the text of the file, such as cp1252 or latin-1.",
        section="Data",
        only=_OWN,
    )


@dataclasses.dataclass(frozen=True)
class ColumnOptions(FieldOptions):
    """The columns of features of a user's table."""

    text: str = option(
        "",
        "Columns of text, separated by commas, which are joined.",
        section="Data",
        only=_OWN,
        basic=True,
    )
    smiles: str = option(
        "", "Column of molecules as SMILES.", section="Data", only=_OWN, basic=True
    )


@dataclasses.dataclass(frozen=True)
class RowModelOptions:
    """Options of a network that reads rows of tables."""

    model_options: str = option(
        "",
        "Options of a network of rows and of its features, separated by blanks, such as "
        "'size=2048 hidden=512'; an unknown one is answered by a list.",
        section="Learner",
        only={"model": tuple(ROW_MODELS)},
    )


def model_options(model: str, asked: str, *, unset: str = "") -> RowOptions:
    """Reads `--model_options`.

    Args:
      model: Name of the network.
      asked: Words NAME=VALUE.
      unset: Words that hold where `asked` does not name the option.

    Returns:
      Options of the features and of the network; none for a network that is not in ROW_MODELS.

    Raises:
      UsageError: If the network has no such option, or the option no such value.
    """
    if model not in ROW_MODELS:
        return RowOptions({}, {})
    declared = {**ROW_MODELS[model].features, **ROW_MODELS[model].options}
    given = {}
    for word in (*unset.split(), *asked.split()):
        name, _, value = word.partition("=")
        if name not in declared:
            raise UsageError(
                f"--model_options={shown(word)} is no option of --model={model}; "
                f"{nearest(name, list(declared))}"
            )
        given[name] = _typed(word, value, declared[name].type)
    try:
        return row_options(model, given)
    except ValueError as error:
        raise UsageError(f"--model_options={shown(asked)}: {error}") from error


def _typed(word: str, value: str, kind: type) -> Any:
    """Parses a value of an option; raises UsageError if it is of another type."""
    truth = {"true": True, "1": True, "false": False, "0": False}
    try:
        return truth[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        raise UsageError(
            f"--model_options={shown(word)} is no {kind.__name__}; write NAME=VALUE, such as size=2048."
        ) from None


def names_in(asked: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in asked.split(",") if name.strip())


def usual_model(*, text: bool, smiles: bool, fields: bool) -> str:
    """Chooses the network by the kinds of columns: one for each kind, and "mlp" on several kinds."""
    kinds = ((smiles, "fingerprints"), (text, "ngrams"), (fields, "fields"))
    found = [model for present, model in kinds if present]
    return found[0] if len(found) == 1 else "mlp"
