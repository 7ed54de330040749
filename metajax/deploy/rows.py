"""The form in which a network expects texts and rows of a table, and the reading of values into it."""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax.data.features import flat_rows
from metajax.data.tables import Encoding, Recipe, Table, read_table
from metajax.data.tables.encoding import fields
from metajax.deploy import row_fields, row_reading
from metajax.deploy.row_fields import Features
from metajax.deploy.row_reading import Row
from metajax.errors import DataError
from metajax.names import composed, listed, shown
from metajax.types import Tree

_SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".jsonl", ".ndjson", ".json", ".arff"),
    *(".parquet", ".arrow", ".feather"),
)  # of files of rows, where a command takes texts too


@dataclasses.dataclass(frozen=True, eq=False)
class RowForm:
    """The form of texts, molecules or rows of a table that a network was trained on.

        Attributes:
          recipe: Columns that are read, and as its `group` the column of the class in files.
          encoding: Statistics of the numbers and categories of the training rows.
          featurizers: Features of the columns "text" and "smiles", by these names.
          flat: Whether the network reads all features as one row of numbers.

        Example:
          >>> from metajax.data.features import fit_featurizer
          >>> from metajax.data.tables import Encoding, Recipe
          >>> from metajax.deploy.row_fields import Features
    from metajax.deploy.row_reading import Row
          >>> features = Features("ngrams", {"size": 64}, fit_featurizer("ngrams", ["a card"], size=64))
          >>> recipe, nothing = Recipe(text=("message",), group="topic"), Encoding(np.zeros(0), np.ones(0))
          >>> form = RowForm(recipe, nothing, {"text": features})
          >>> form.features(form.read(["lost", {"message": "my card"}]))["text"].shape
          (2, 64)
    """

    recipe: Recipe
    encoding: Encoding
    featurizers: Mapping[str, Features] = dataclasses.field(default_factory=dict)
    flat: bool = False

    noun = "row"
    """Name of an example in messages."""

    @classmethod
    def from_json(cls, found: Any, arrays: Mapping[str, np.ndarray]) -> "RowForm":
        """Reads a form that `to_json` and `arrays` made.

        Args:
          found: Parsed JSON.
          arrays: Arrays by name.

        Returns:
          The form.

        Raises:
          DataError: If a field is missing, unknown, of another type, or out of range.
        """
        return cls(*row_fields.from_json(found, arrays))

    def to_json(self) -> dict[str, Any]:
        """Returns the form as values that JSON can hold, but for its arrays.

        Returns:
          Values by name.

        Raises:
          DataError: If its features are of an encoder that no package holds.
        """
        return row_fields.to_json(self.recipe, self.encoding, self.featurizers, self.flat)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of the form by name."""
        return row_fields.arrays_of(self.featurizers)

    @functools.cached_property
    def _key(self) -> str:
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode())
        for name, array in sorted(self.arrays().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Compares the contents, so that equal forms share compiled programs."""
        return isinstance(other, RowForm) and self._key == other._key

    def __hash__(self) -> int:
        """Hashes the contents."""
        return hash(self._key)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row has."""
        return row_reading.columns_of(self.recipe)

    @property
    def about(self) -> dict[str, Any]:
        """Arguments of the network that depend on the data."""
        if self.flat:
            return {}
        found = {k: v for each in self.featurizers.values() for k, v in each.fitted.about.items()}
        return found | self._sizes

    @property
    def _sizes(self) -> dict[str, Any]:
        return {"categories": self.encoding.sizes} if self.recipe.categories else {}

    @functools.cached_property
    def example(self) -> Tree:
        """Inputs of the network for two rows, tree of `jax.ShapeDtypeStruct`s."""
        of_words = dict.fromkeys((*self.recipe.text, self.recipe.smiles), "C")
        row = {name: of_words.get(name) for name in self.columns}
        features = self.features(self.read([row, row]))
        return jax.eval_shape(self.inputs, features)

    def read(self, rows: Sequence[Row]) -> np.ndarray:
        """Checks rows, and puts their values into one form.

        Args:
          rows: M rows: dicts of values by column, or texts where one column is read, or sequences of values
            in the order of `columns`. None is a missing number or category.

        Returns:
          Rows [M] as an array of dicts, of texts, and of float numbers or None.

        Raises:
          DataError: If a row lacks a column, has no text, or a number is none.
        """
        return row_reading.read_rows(self.recipe, rows)

    def from_file(self, path: str | Path) -> np.ndarray:
        """Reads the rows of a file.

        Args:
          path: File that `metajax.data.tables.read_table` reads, such as .csv, .tsv or .jsonl.

        Returns:
          Rows [M], as `read` returns them.

        Raises:
          DataError: If the file cannot be read, or a row does not fit.
        """
        return row_reading.rows_of(self.recipe, read_table(path, columns=self.columns))

    def by_class(self, path: str | Path, *, label: str | None = None) -> dict[str, np.ndarray]:
        """Reads the rows of a file with their classes; rows without a class are left out with a warning.

        Args:
          path: File that `metajax.data.tables.read_table` reads, such as .csv, .tsv or .jsonl.
          label: Column of the class; None is the one of the training.

        Returns:
          Rows [n], as `read` returns them, by class name.

        Raises:
          DataError: If the file cannot be read, lacks a column, or a row does not fit.
        """
        label = self.recipe.group if label is None else label
        table = read_table(path, columns=(*self.columns, label))
        names = [composed(name.strip()) for name in table.text(label)]
        if missing := sum(not name for name in names):
            warnings.warn(
                f"{missing:,} of {len(table):,} rows of {table.source} have no {shown(label)} and stay out.",
                stacklevel=4,
            )
        places: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            places.setdefault(name, []).append(row)
        places.pop("", None)
        return {n: row_reading.rows_of(self.recipe, table.select(p)) for n, p in places.items()}

    def named(self, asked: Sequence[str]) -> list[tuple[str, Row]]:
        """Lists the rows of files, and texts, of a command: files by name and row, texts by themselves.

        Args:
          asked: Paths of files with the suffix of a table, and texts.

        Returns:
          Names and rows.

        Raises:
          DataError: If a file cannot be read.
        """
        found: list[tuple[str, Row]] = []
        for each in asked:
            path = Path(each)
            if path.suffix.lower() in _SUFFIXES or path.suffix.lower() == ".gz":
                rows = enumerate(self.from_file(path), 1)
                found += [(f"{each}:{number}", row) for number, row in rows]
            else:
                found.append((each, each))
        return found

    def in_words(self) -> str:
        """Describes the form for people."""
        recipe = self.recipe
        parts = [
            ("texts in", recipe.text),
            ("molecules in", (recipe.smiles,) * bool(recipe.smiles)),
            ("numbers in", recipe.numbers),
            ("categories in", recipe.categories),
        ]
        columns = [f"{kind} {listed(names, few=10)}" for kind, names in parts if names]
        features = [f"features {each.name}" for each in self.featurizers.values()]
        return "; ".join([*columns, *features])

    def features(self, kept: np.ndarray) -> Tree:
        """Makes features of rows.

        Args:
          kept: Rows [M], as `read` returns them, M of 1 or more.

        Returns:
          Features, dict of trees of arrays [M, ...].

        Raises:
          DataError: If a molecule does not parse.
          ImportError: If a package that the features need is missing.
        """
        rows: list[dict[str, Any]] = list(kept)
        recipe = self.recipe
        columns = {n: [row[n] for row in rows] for n in (*recipe.numbers, *recipe.categories)}
        found: dict[str, Any] = {}
        if columns:
            found |= fields(Table.of(columns), recipe, self.encoding)
        for kind, texts in row_reading.texts_of(recipe, rows).items():
            made = self.featurizers[kind].fitted.encode(texts)
            if hasattr(made, "valid"):
                if not np.all(made.valid):
                    bad = texts[int(np.flatnonzero(~np.asarray(made.valid))[0])]
                    raise DataError(f"the molecule {shown(bad)} does not parse; correct its SMILES")
                made = made.values
            found[kind] = made
        return found

    def inputs(self, features: Tree) -> Tree:
        """Makes inputs of the network from features.

        Args:
          features: Features [M, ...], as `features` returns them.

        Returns:
          Inputs, tree of arrays [M, ...].
        """
        return flat_rows(features, True, sizes=self._sizes) if self.flat else features

    def pack(self, examples: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
        """Writes examples as JSON, and as arrays by name, of which rows have none."""
        return [[name, list(rows)] for name, rows in examples.items()], {}

    def unpack(self, found: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reads examples that `pack` wrote; raises DataError if they are damaged."""
        if arrays:
            raise DataError(f"the examples {listed(arrays)} are arrays, and this model reads rows")
        examples = {}
        for entry in found or []:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise DataError(f"{shown(entry)} is no class with its rows")
            name, rows = entry
            whole = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
            if not whole or not rows or name in examples:
                raise DataError(f"the class {shown(name)} has no rows, or rows of no kind")
            examples[name] = self.read(rows)
        return examples
