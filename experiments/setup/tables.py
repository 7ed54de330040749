"""Columns of tables as features: what a network reads of them, and its network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from metajax.data.features import Featurizer, fit_featurizer
from metajax.data.tables import Recipe, Table, TableSplits, cached
from metajax.data.tables.packing import content_hash
from metajax.models import in_precision
from metajax.types import Model
from metajax.zoo.row_models import ROW_MODELS, RowOptions, build_row_model

from ..flags.columns import readers
from ..flags.settings import UsageError

SPLITS = ("train", "valid", "test")
USUAL_FEATURES = {"text": "ngrams", "smiles": "fingerprints"}  # of networks that read another kind


def fit_featurizers(
    recipe: Recipe, train: Table, model: str, options: RowOptions
) -> dict[str, Featurizer]:
    """Fits the functions that make features of text and of molecules to the training rows.

    Args:
      recipe: Parts of the columns.
      train: Training rows.
      model: Name of the network; columns of a kind that it does not read get the usual features.
      options: Options of its features.

    Returns:
      Featurizers by kind of columns, "text" and "smiles".

    Raises:
      UsageError: If the model reads columns that the table has not.
    """
    training = {
        "text": recipe.texts(train) if recipe.text else None,
        "smiles": train.text(recipe.smiles) if recipe.smiles else None,
    }
    entry, found = ROW_MODELS.get(model), {}
    has = {"fields": bool(recipe.numbers or recipe.categories)}
    has |= {kind: texts is not None for kind, texts in training.items()}
    if entry and not has.get(entry.reads):
        able = [name for kind, present in has.items() if present for name in readers(kind)]
        raise UsageError(
            f"--model={model} reads {entry.reads}, and the table has none; use mlp or one of "
            f"{', '.join(able)}."
        )
    for kind, texts in training.items():
        if texts is None:
            continue
        mine = entry is not None and entry.reads == kind
        name = entry.featurizer if mine else USUAL_FEATURES[kind]
        chosen = options.features if mine else {}
        found[kind] = fit_featurizer(name, texts, **chosen)
        if kind == "smiles":  # which takes a minute per 200,000 molecules
            key = f"{name} {found[kind].version} {sorted(chosen.items())} {content_hash(texts)}"
            found[kind] = found[kind]._replace(encode=cached(found[kind].encode, key=key))
    return found


def row_networks(
    model: str,
    options: RowOptions,
    about: Mapping[str, Mapping[str, Any]],
    heads: Sequence[int | None],
    precision: str,
) -> list[Model]:
    """Builds a network of rows with each of several heads.

    Args:
      model: Name of the network, in ROW_MODELS.
      options: Options of the network.
      about: Arguments that depend on the data, by kind of columns.
      heads: Widths of the heads; None for no head.
      precision: Data type that the network computes in.

    Returns:
      The networks.

    Raises:
      UsageError: If options do not fit together.
    """
    mine = about.get(ROW_MODELS[model].reads, {})
    try:
        made = [
            build_row_model(model, outputs=outputs, about=mine, **options.network)
            for outputs in heads
        ]
    except ValueError as error:
        raise UsageError(f"--model={model} does not fit: {error}") from error
    return [in_precision(network, jnp.dtype(precision)) for network in made]


def row_network_in_words(model: str, options: RowOptions) -> str:
    """Describes a network of rows with its options."""
    chosen = {**options.features, **options.network}
    return " ".join([model, *(f"{name}={value}" for name, value in chosen.items())])


def fingerprint(tables: TableSplits, names: Sequence[str]) -> str:
    """Hashes the recipe and the rows of some splits, and rows of no class with the test rows."""
    empty = tables.test.select([])
    kept = {name: getattr(tables, name) if name in names else empty for name in SPLITS}
    unknown = tables.unknown if "test" in names else {}
    return tables._replace(**kept, unknown=unknown).fingerprint()
