"""Rows of values and of tables, checked and put into one form."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metajax.data.tables import Recipe, Table
from metajax.errors import DataError
from metajax.names import listed, shown

Row = Any
"""A dict of values by column; or a text, or the values in the order of the columns."""


def columns_of(recipe: Recipe) -> tuple[str, ...]:
    """Lists the columns that a row has.

    Args:
      recipe: Columns that are read, and as its group the column of the class.

    Returns:
      Names of the columns, without the class.

    Example:
      >>> from metajax.data.tables import Recipe
      >>> columns_of(Recipe(text=("message",), group="topic"))
      ('message',)
    """
    return recipe._replace(group="", parent="", target="").columns()


def read_rows(recipe: Recipe, rows: Sequence[Row]) -> np.ndarray:
    """Checks rows, and puts their values into one form.

    Args:
      recipe: Columns that are read.
      rows: M rows: dicts of values by column, texts where one column is read, or sequences of values in the
        order of the columns.

    Returns:
      Rows [M] as an array of dicts, of texts, and of float numbers or None.

    Raises:
      DataError: If a row lacks a column, has no text, or a number is none.

    Example:
      >>> from metajax.data.tables import Recipe
      >>> read_rows(Recipe(numbers=("age",)), [{"age": "41"}, [None]]).tolist()
      [{'age': 41.0}, {'age': None}]
    """
    if isinstance(rows, str):
        raise DataError(f"the rows are one string, {shown(rows, 20)!r}; use a list of strings")
    columns = columns_of(recipe)
    given = [_values(row, index, columns) for index, row in enumerate(rows)]
    if not given:
        return np.empty(0, object)
    texts = {
        name: [_text(row[name], name, index) for index, row in enumerate(given)] for name in columns
    }
    table = Table.of(texts, source="the rows")
    return rows_of(recipe, dataclasses.replace(table, numbers=np.arange(len(given))))


def rows_of(recipe: Recipe, table: Table) -> np.ndarray:
    """Reads the rows of a table.

    Args:
      recipe: Columns that are read.
      table: Table with R rows.

    Returns:
      Rows [R] as an array of dicts, of texts, and of float numbers or None.

    Raises:
      DataError: If a column is missing, a row has no text, or a number is none.

    Example:
      >>> from metajax.data.tables import Recipe, Table
      >>> rows_of(Recipe(text=("message",)), Table.of({"message": ["lost card"]})).tolist()
      [{'message': 'lost card'}]
    """
    columns: dict[str, Sequence[Any]] = {}
    for name in columns_of(recipe):
        if name in recipe.numbers:
            numbers = table.floats(name).tolist()
            columns[name] = [None if number != number else number for number in numbers]
        else:
            columns[name] = table.text(name)
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    for kind, texts in texts_of(recipe, rows).items():
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty:
            names = recipe.text if kind == "text" else (recipe.smiles,)
            raise DataError(f"{table.where(empty[0])} has nothing in {listed(names)}; leave it out")
    kept = np.empty(len(rows), object)
    kept[:] = rows
    return kept


def texts_of(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Collects the texts and the molecules of rows.

    Args:
      recipe: Columns that are read.
      rows: M rows, as `read_rows` returns them.

    Returns:
      Texts [M] by kind, "text" and "smiles"; several columns of text are joined by spaces.

    Example:
      >>> from metajax.data.tables import Recipe
      >>> texts_of(Recipe(text=("title", "body")), [{"title": "Card", "body": "lost"}])
      {'text': ['Card lost']}
    """
    found = {}
    if recipe.text:
        found["text"] = [" ".join(row[name] for name in recipe.text).strip() for row in rows]
    if recipe.smiles:
        found["smiles"] = [row[recipe.smiles] for row in rows]
    return found


def _values(row: Row, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
    """Names the values of a row."""
    if isinstance(row, Mapping):
        for name in columns:
            if name not in row:
                raise DataError(
                    f"row {index} has no '{shown(name)}'; give it as None if it is missing. Has it another "
                    f"name? It has {listed(map(str, row))}"
                )
        return row
    if isinstance(row, str) and len(columns) > 1:
        raise DataError(
            f"row {index} is a text, and this model reads the columns {listed(columns)}; give a dict of "
            "their values"
        )
    values = list(row) if isinstance(row, (list, tuple, np.ndarray)) else [row]
    if len(values) != len(columns):
        raise DataError(
            f"row {index} has {len(values)} values, and this model reads {len(columns)}: {listed(columns)}"
        )
    return dict(zip(columns, values, strict=True))


def _text(value: Any, column: str, index: int) -> str:
    """Writes a value as the text that it would be in a file, whatever the others of its column are."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value
    if value is not None and not isinstance(value, (bool, int, float)):
        raise DataError(
            f"row {index}, column '{shown(column)}': {shown(value, 40)} is {type(value).__name__}; use text, "
            "a number or None"
        )
    return Table.of({column: [value]}).text(column)[0]
