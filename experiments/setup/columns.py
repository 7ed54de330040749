"""Columns of a user's own table: the file, which columns are features, and what these hold."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from metajax.data.tables import Layout, Recipe, Table, read_table
from metajax.data.tables.packing import kept_file
from metajax.data.tables.values import MISSING, parse_number
from metajax.errors import DataError
from metajax.names import shown

from ..flags.columns import ColumnOptions, FieldOptions, names_in
from ..flags.settings import UsageError

MOST_CATEGORIES = 1000
# A column with this share of numbers is one of numbers with mistakes, not one of words.
MOSTLY = 0.9


def read_columns(path: str, options: FieldOptions, others: Sequence[str]) -> Table:
    """Reads a user's file, once if it is large, and only the columns in use where features are named.

    Args:
      path: Path of the file.
      options: Columns of features, and the encoding.
      others: Columns with another part in the table, with empty names for those that are not named.

    Returns:
      The table.

    Raises:
      DataError: If the file is missing, broken or too large, or lacks a column.
      ImportError: If the file needs pyarrow, which is missing.
    """
    named = _named(options)
    some = any(named[flag] for flag in named if flag != "categories")
    every = (*(name for names in named.values() for name in names), *others)
    columns = tuple(dict.fromkeys(name for name in every if name)) if some else None
    read = functools.partial(read_table, columns=columns, layout=Layout(encoding=options.encoding))
    return kept_file(path, read)


def recipe_of_features(
    table: Table, options: FieldOptions, *, parts: Mapping[str, str], apart: Sequence[str] = ()
) -> Recipe:
    """Finds the columns of features: those that are named, or all that have no other part.

    Args:
      table: Table.
      options: Columns that are named.
      parts: Columns that are no features, by their part, such as "target".
      apart: Columns that are features only where they are named, such as the time.

    Returns:
      A recipe of features alone.

    Raises:
      DataError: If a column is missing, has a few values that are no numbers, or too many categories.
      UsageError: If a feature has another part.
    """
    named = _named(options)
    for flag, names in named.items():
        for part, column in parts.items():
            if column and column in names:
                raise UsageError(
                    f"--{flag}={shown(column)} is the {part}, which is no feature; leave it out."
                )
    text, smiles = named.get("text", ()), named.get("smiles", ())
    asked = named["features"]
    if not (asked or text or smiles):
        asked = tuple(n for n in table.columns if n not in (*parts.values(), *apart))
    may_be_text = isinstance(options, ColumnOptions)
    numbers, categories = _divided(table, asked, named["categories"], may_be_text)
    return Recipe(text=text, smiles="".join(smiles), numbers=numbers, categories=categories)


def is_number(table: Table, column: str) -> bool:
    """Returns whether all values of a column are numbers or missing, and some are numbers."""
    try:
        return not np.isnan(table.floats(column)).all()
    except DataError:
        table.column(column)  # raised again if there is no such column
        return False


def check_words(table: Table, column: str, *, remedy: str, share: float = MOSTLY) -> None:
    """Refuses a column of numbers that has a few words among them, which are mistakes.

    Args:
      table: Table.
      column: Name of the column.
      remedy: End of the message, for words that are no mistake.
      share: Share of numbers from which on a column is one of numbers.

    Raises:
      DataError: If there are words, and at least `share` of the values that are not missing are numbers.
    """
    words = table.text(column)
    rows = [row for row, word in enumerate(words) if word.strip().lower() not in MISSING]
    wrong = [row for row in rows if not _parses(words[row])]
    if wrong and len(rows) - len(wrong) >= share * len(rows):
        raise DataError(
            f"{table.where(wrong[0])}, column '{shown(column)}': '{shown(words[wrong[0]], 40)}' is not a "
            f"finite number, and {len(rows) - len(wrong):,} of {len(rows):,} values are; mend the value, or "
            f"{remedy}."
        )


def _named(options: FieldOptions) -> dict[str, tuple[str, ...]]:
    """Lists the columns that each option names."""
    found = {"features": names_in(options.features), "categories": names_in(options.categories)}
    if isinstance(options, ColumnOptions):
        smiles = (options.smiles,) if options.smiles else ()
        found |= {"text": names_in(options.text), "smiles": smiles}
    return found


def _divided(
    table: Table, names: Sequence[str], categories: Sequence[str], may_be_text: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides columns into numbers and categories, by their values where no option names a category."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for name in dict.fromkeys((*names, *categories)):
        found[name not in categories and is_number(table, name)].append(name)
    for name in found[False]:
        if name not in categories:
            check_words(table, name, remedy="name the column in --categories")
        if (values := len(set(table.text(name)))) > MOST_CATEGORIES:
            text = "name it in --text, or " if may_be_text else ""
            raise DataError(
                f"Column '{shown(name)}' of {table.source} has {values:,} different values, and a category "
                f"at most {MOST_CATEGORIES:,}; {text}name the columns to read by --features, without it."
            )
    return tuple(found[True]), tuple(found[False])


def _parses(word: str) -> bool:
    """Returns whether a word is a finite number."""
    try:
        return bool(np.isfinite(parse_number(word)))
    except ValueError:
        return False
