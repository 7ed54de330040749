"""Forms of rows in values that JSON can hold, and in arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.data.features import Featurizer, restore_featurizer
from metajax.data.tables import Encoding, Recipe
from metajax.deploy.fields import in_range, taken
from metajax.errors import DataError
from metajax.names import listed, shown
from metajax.zoo.options import complete
from metajax.zoo.row_models import ROW_MODELS

_DECLARED = {entry.featurizer: entry.features for entry in ROW_MODELS.values() if entry.featurizer}
_MOST = 10**6  # bins, words or atoms of a featurizer
_WHAT = "The form of rows"
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("text", "numbers", "categories", "means", "scales", "vocabularies"), list),
    **dict.fromkeys(("smiles", "label"), str),
    "features": dict,
    "flat": bool,
}


class Features(NamedTuple):
    """Features of the texts or the molecules of a row.

    Attributes:
      name: A key of `metajax.data.features.FEATURIZERS`.
      options: Options of the featurizer by name.
      fitted: The fitted featurizer.

    Example:
      >>> from metajax.data.features import fit_featurizer
      >>> Features("ngrams", {"size": 8}, fit_featurizer("ngrams", ["a"], size=8)).fitted.encode([""]).shape
      (1, 8)
    """

    name: str
    options: Mapping[str, Any]
    fitted: Featurizer


def to_json(
    recipe: Recipe, encoding: Encoding, featurizers: Mapping[str, Features], flat: bool
) -> dict[str, Any]:
    """Writes a form of rows in values that JSON can hold, without its arrays.

    Args:
      recipe: Columns that are read, and as its group the column of the class.
      encoding: Statistics of the numbers and categories.
      featurizers: Features by kind of columns.
      flat: Whether the network reads all features as one row of numbers.

    Returns:
      Values by name.

    Raises:
      DataError: If features are of an encoder that no package holds.
    """
    for each in featurizers.values():
        if each.options.get("encoder_dir"):
            raise DataError(
                "features of an encoder in a folder (encoder_dir) cannot leave in a bundle, which would name "
                "a folder of one machine; use the packaged encoder"
            )
    return {
        "text": list(recipe.text),
        "smiles": recipe.smiles,
        "numbers": list(recipe.numbers),
        "categories": list(recipe.categories),
        "label": recipe.group,
        "means": encoding.means.tolist(),
        "scales": encoding.scales.tolist(),
        "vocabularies": [list(words) for words in encoding.vocabularies],
        "features": {
            kind: {
                "name": each.name,
                "options": dict(each.options),
                "state": {
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in each.fitted.state.items()
                    if not isinstance(value, np.ndarray)
                },
            }
            for kind, each in featurizers.items()
        },
        "flat": flat,
    }


def arrays_of(featurizers: Mapping[str, Features]) -> dict[str, np.ndarray]:
    """Collects the arrays of features.

    Args:
      featurizers: Features by kind of columns.

    Returns:
      Arrays by kind of columns and name, such as "text.weights".
    """
    return {
        f"{kind}.{name}": value
        for kind, each in featurizers.items()
        for name, value in each.fitted.state.items()
        if isinstance(value, np.ndarray)
    }


def from_json(
    found: Any, arrays: Mapping[str, np.ndarray]
) -> tuple[Recipe, Encoding, dict[str, Features], bool]:
    """Reads what `to_json` and `arrays_of` wrote.

    Args:
      found: Parsed JSON.
      arrays: Arrays by name.

    Returns:
      Recipe, encoding, features by kind of columns, and whether the network reads one row of numbers.

    Raises:
      DataError: If a field is missing, unknown, of another type, or out of range.
    """
    given = taken(found, _KINDS, what=_WHAT)
    text, numbers, categories = (_names(given, n) for n in ("text", "numbers", "categories"))
    recipe = Recipe(
        text=text,
        smiles=given["smiles"],
        numbers=numbers,
        categories=categories,
        group=given["label"],
    )
    means, scales = (_numbers(given, name, len(numbers)) for name in ("means", "scales"))
    if (scales <= 0).any():
        raise DataError(f"{_WHAT}: scales have to be above zero")
    vocabularies = given["vocabularies"]
    if len(vocabularies) != len(categories):
        raise DataError(
            f"{_WHAT}: there are {len(categories)} categories and {len(vocabularies)} vocabularies"
        )
    words = tuple(_names({"a vocabulary": each}, "a vocabulary") for each in vocabularies)
    kinds = {kind for kind, has in (("text", text), ("smiles", recipe.smiles)) if has}
    if set(given["features"]) != kinds:
        raise DataError(
            f"{_WHAT}: the features are of {listed(given['features'])}, and the columns of {listed(kinds)}"
        )
    if not (kinds or numbers or categories):
        raise DataError(f"{_WHAT}: no column is read")
    made = {kind: _features(kind, each, arrays) for kind, each in given["features"].items()}
    if strange := set(arrays) - set(arrays_of(made)):
        raise DataError(f"{_WHAT}: the arrays {listed(strange)} belong to no features")
    return recipe, Encoding(means, scales, words), made, given["flat"]


def _features(kind: str, found: Any, arrays: Mapping[str, np.ndarray]) -> Features:
    """Restores the features of a kind of columns."""
    what = f"The features of {kind}"
    given = taken(found, {"name": str, "options": dict, "state": dict}, what=what)
    name, options = given["name"], given["options"]
    if name not in _DECLARED:
        raise DataError(f"{what}: {shown(name)} are unknown; known are {listed(_DECLARED)}")
    if "encoder_dir" in options:
        raise DataError(f"{what}: a bundle names no folder of an encoder; leave encoder_dir out")
    for option, value in options.items():
        declared = _DECLARED[name].get(option)
        if declared is not None and type(value) is not declared.type:
            raise DataError(
                f"{what}: {shown(option)} is {shown(value)}; it has to be of type {declared.type.__name__}"
            )
        if type(value) is int:
            in_range(value, option, least=0, most=_MOST, what=what)
    try:
        complete(what, options, _DECLARED[name])
    except ValueError as error:
        raise DataError(str(error)) from error
    mine = {n.removeprefix(f"{kind}."): a for n, a in arrays.items() if n.startswith(f"{kind}.")}
    return Features(name, options, restore_featurizer(name, {**given["state"], **mine}, **options))


def _names(given: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Takes a list of different names."""
    found = given[field]
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise DataError(f"{_WHAT}: {field} has to be a list of names")
    if len(set(found)) != len(found):
        raise DataError(f"{_WHAT}: {field} names one thing twice")
    return tuple(found)


def _numbers(given: Mapping[str, Any], field: str, count: int) -> np.ndarray:
    """Takes finite numbers, one for each column."""
    found = given[field]
    if len(found) != count or not all(type(v) in (int, float) for v in found):
        raise DataError(f"{_WHAT}: {field} has to be {count} numbers, one for each column")
    array = np.array(found, np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{_WHAT}: {field} has to be finite")
    return array
