"""Numbers and categories as features, by the statistics of the training rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metajax.data.tables.recipe import Recipe
from metajax.data.tables.table import Table
from metajax.data.tables.values import is_missing


class Encoding(NamedTuple):
    """What the training rows decide about the features of all rows; `fit` makes it.

    Attributes:
      means: Mean of each column of numbers, [F] float64.
      scales: Standard deviation of each column of numbers, [F] float64; 1 for a constant column.
      vocabularies: Values of each column of categories, in order.
      items: Values of the column of items, in order.

    Example:
      >>> from metajax.data.tables import Recipe, Table, fit
      >>> table = Table.of({"age": [20, 40], "job": ["cook", "smith"]})
      >>> fit(table, Recipe(numbers=("age",), categories=("job",))).sizes
      (3,)
    """

    means: np.ndarray
    scales: np.ndarray
    vocabularies: tuple[tuple[str, ...], ...] = ()
    items: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each column of categories; code 0 is an unseen or missing value."""
        return tuple(len(words) + 1 for words in self.vocabularies)


def fit(table: Table, recipe: Recipe) -> Encoding:
    """Computes the statistics of training rows.

    Args:
      table: Training rows.
      recipe: Recipe whose numbers, categories and items are encoded.

    Returns:
      The encoding.

    Raises:
      DataError: If a column is missing, or a number is none.

    Example:
      >>> from metajax.data.tables import Recipe, Table
      >>> fit(Table.of({"age": [20, 40, None]}), Recipe(numbers=("age",))).means.tolist()
      [30.0]
    """
    means, scales = [], []
    for name in recipe.numbers:
        values = table.floats(name)
        known = values[~np.isnan(values)]
        scale = known.std() if len(known) else 0.0
        means.append(known.mean() if len(known) else 0.0)
        scales.append(scale if scale > 0 else 1.0)
    vocabularies = tuple(_vocabulary(table.text(name)) for name in recipe.categories)
    items = _vocabulary(table.text(recipe.item)) if recipe.item else ()
    return Encoding(np.array(means), np.array(scales), vocabularies, items)


def fields(table: Table, recipe: Recipe, encoding: Encoding) -> dict[str, np.ndarray]:
    """Encodes the numbers and categories of rows.

    Args:
      table: Rows.
      recipe: Recipe with their columns.
      encoding: Statistics of the training rows.

    Returns:
      Features by name, without those that the recipe has not: `numbers` [R, F] float32, standardized, 0 where
      missing; `missing` [R, F] bool; `categories` [R, C] int32, 0 where unseen or missing.

    Raises:
      DataError: If a column is missing, or a number is none.

    Example:
      >>> table, recipe = Table.of({"age": [20, 40, None]}), Recipe(numbers=("age",))
      >>> fields(table, recipe, fit(table, recipe))["numbers"].ravel().tolist()
      [-1.0, 1.0, 0.0]
    """
    found = {}
    if recipe.numbers:
        values = np.stack([table.floats(name) for name in recipe.numbers], axis=1)
        missing = np.isnan(values)
        standard = (values - encoding.means) / encoding.scales
        found["numbers"] = np.where(missing, 0, standard).astype(np.float32)
        found["missing"] = missing
    if recipe.categories:
        pairs = zip(recipe.categories, encoding.vocabularies, strict=True)
        found["categories"] = np.stack(
            [codes(table.text(name), words) for name, words in pairs], axis=1
        )
    return found


def codes(words: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Numbers words by a vocabulary.

    Args:
      words: Words [R].
      vocabulary: Known words.

    Returns:
      1 + the place in the vocabulary, [R] int32; 0 for an unknown word.

    Example:
      >>> codes(["b", "c"], ["a", "b"]).tolist()
      [2, 0]
    """
    known = {word: place for place, word in enumerate(vocabulary, 1)}
    return np.array([known.get(word, 0) for word in words], np.int32)


def _vocabulary(words: Sequence[str]) -> tuple[str, ...]:
    """Lists the words that are not missing, in order."""
    return tuple(sorted({word for word in words if not is_missing(word)}))
