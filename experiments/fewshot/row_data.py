"""Tables of classes as the options name them: their splits, their features, and rows of no class."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.data.features import Featurizer, encode_once, fit_featurizer, flat_rows
from metajax.data.tables import Encoding, Recipe, Table, TableSplits, TableStore, make_store
from metajax.deploy import EncodedForm, Features, RowForm
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.types import Array, Tree
from metajax.zoo.row_models import ROW_MODELS

from ..flags.columns import TABLE
from ..setup import tables as setup_tables
from ..setup.tables import SPLITS, USUAL_FEATURES
from .options import FewshotPlan
from .row_tables import named_table, own_table

_NO_CLASS = "of no class"
_FROZEN = "frozen"
# What class means are compared by without training, where the features of a network mean nothing by then.
_COMPARABLE = {"tokens": _FROZEN, "words": "ngrams", "graphs": "fingerprints"}
OWN, PLAIN = "own", "plain"


class RowData(NamedTuple):
    """Rows of each split in classes, and what is known of them.

    Attributes:
      stores: Stores by split, whose groups are classes and whose parents are domains.
      unknown: Store of the test's rows of no class; None without any.
      within: Whether the classes of a task are of one domain.
      about: Arguments of networks that depend on the data, by kind of columns.
      flat: Function from features [B, ...] to rows of numbers [B, D] that compare without training.
      parted: Kinds of columns whose features have two parts, OWN for the network and PLAIN for `flat`.
      compared: Names of the features that `flat` compares.
      form: Form of the rows that the network reads.
      description: The data in words.
      fingerprint: Hashes of the splits joined by dots, test data last.
      noun: Name of the examples in messages.
    """

    stores: Mapping[str, Rows]
    unknown: Rows | None
    within: bool
    about: Mapping[str, Mapping[str, Any]]
    flat: Callable[[Tree], Array]
    parted: tuple[str, ...]
    compared: str
    form: RowForm | EncodedForm
    description: str
    fingerprint: str
    noun: str = "rows"


def load(plan: FewshotPlan) -> RowData:
    """Reads the table of a run.

    Args:
      plan: The run.

    Returns:
      The data.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If a column is not named that has to be.
    """
    tables = own_table(plan) if plan.data.dataset == TABLE else named_table(plan)
    for split in SPLITS:
        if not len(getattr(tables, split)):
            raise DataError(
                f"{tables.description}: there are no {split} rows; use another --split, or bring more."
            )
    tables = tables._replace(least=plan.table.min_rows)
    model, recipe = plan.network.model, tables.recipe
    fitted = setup_tables.fit_featurizers(recipe, tables.train, model, plan.row_options)
    entry = ROW_MODELS.get(model)
    if entry and entry.featurizer == _FROZEN:
        fitted["text"] = encode_once(fitted["text"], _every_text(tables))
    encoders, parted, compared = _with_plain(plan, recipe, tables.train, fitted)
    featurize = {kind: encoder.encode for kind, encoder in encoders.items()}
    stores = {s: store for s, store in tables.stores(featurize=featurize).items() if store}
    test = stores["test"]
    sizes = {"categories": test.encoding.sizes} if recipe.categories else {}
    about = {kind: dict(encoder.about) for kind, encoder in fitted.items()}
    notes = [f"{split}: {note}" for split, store in stores.items() for note in store.notes]
    return RowData(
        stores={split: store.rows for split, store in stores.items()},
        unknown=_unknown(tables, featurize, test),
        within=bool(recipe.parent),
        about={**about, "fields": sizes},
        flat=functools.partial(
            _flat, reads=entry.reads if entry else "", parted=parted, sizes=sizes
        ),
        parted=parted,
        compared=compared,
        form=_form(plan, recipe, test.encoding, fitted),
        description="; ".join([tables.description, *tables.notes, *notes]),
        fingerprint=".".join(setup_tables.fingerprint(tables, (split,)) for split in SPLITS),
    )


def _form(
    plan: FewshotPlan, recipe: Recipe, encoding: Encoding, fitted: Mapping[str, Featurizer]
) -> RowForm:
    """Describes the columns that the network reads, and their features."""
    entry = ROW_MODELS.get(plan.network.model)
    if entry and entry.reads != "fields":
        text, smiles = (recipe.text, "") if entry.reads == "text" else ((), recipe.smiles)
        mine = Features(entry.featurizer, plan.row_options.features, fitted[entry.reads])
        read = Recipe(text=text, smiles=smiles, group=recipe.group)
        return RowForm(read, Encoding(np.zeros(0), np.ones(0)), {entry.reads: mine})
    # Networks of fields read no words.
    kinds = {} if entry else fitted
    features = {kind: Features(USUAL_FEATURES[kind], {}, each) for kind, each in kinds.items()}
    read = recipe._replace(parent="", **({"text": (), "smiles": ""} if entry else {}))
    return RowForm(read, encoding._replace(items=()), features, flat=entry is None)


def _with_plain(
    plan: FewshotPlan, recipe: Recipe, train: Table, fitted: Mapping[str, Featurizer]
) -> tuple[dict[str, Featurizer], tuple[str, ...], str]:
    """Adds features that compare without training, where the features of the network do not.

    Returns:
      Featurizers by kind of columns, the kinds that have two parts now, and the names of what is compared.
    """
    entry, encoders, parted, names = ROW_MODELS.get(plan.network.model), dict(fitted), (), []
    for kind, encoder in fitted.items():
        mine = entry is not None and entry.reads == kind
        if entry and not mine:
            continue
        name = entry.featurizer if mine else USUAL_FEATURES[kind]
        plain = _COMPARABLE.get(name, name)
        names.append(plain)
        if plain != name:
            texts = recipe.texts(train) if kind == "text" else train.text(recipe.smiles)
            # Of the same pre-trained encoder, and as many tokens.
            options = plan.row_options.features if plain == _FROZEN else {}
            other = fit_featurizer(plain, texts, **options)
            encoders[kind] = Featurizer(functools.partial(_both, encoder.encode, other.encode))
            parted += (kind,)
    if (not entry or entry.reads == "fields") and (recipe.numbers or recipe.categories):
        names.append("fields")
    return encoders, parted, " and ".join(names)


def _every_text(tables: TableSplits) -> list[str]:
    """Lists the texts of all splits, and of rows of no class."""
    found = [getattr(tables, split) for split in SPLITS] + list(tables.unknown.values())
    return [text for table in found for text in tables.recipe.texts(table)]


def _both(own: Callable[..., Any], plain: Callable[..., Any], texts: Sequence[str]) -> Any:
    """Makes two features of texts; for molecules with a mark of which SMILES parse."""
    first, second = own(texts), plain(texts)
    if not hasattr(first, "valid"):
        return {OWN: first, PLAIN: second}
    return first._replace(values={OWN: first.values, PLAIN: second.values})


def _flat(
    features: Tree,
    *,
    reads: str,
    parted: Sequence[str],
    sizes: Mapping[str, Sequence[int]],
) -> Array:
    """Makes rows of numbers of the features that a network of this kind of columns reads; "" is all."""
    kinds = {name: name if name in ("text", "smiles") else "fields" for name in features}
    chosen = {
        name: leaf[PLAIN] if name in parted else leaf
        for name, leaf in features.items()
        if kinds[name] == reads or not reads
    }
    return flat_rows(chosen, True, sizes=sizes)


def _unknown(
    tables: TableSplits, featurize: Mapping[str, Callable[..., Any]], test: TableStore
) -> Rows | None:
    """Makes the store of the test's rows of no class, all of them in one group."""
    table = tables.unknown.get("test")
    if table is None or not len(table):
        return None
    # A store needs a target or groups, and these rows have neither.
    recipe = tables.recipe._replace(group="", parent="", target=_NO_CLASS)
    table = table.with_columns({_NO_CLASS: np.zeros(len(table))})
    return make_store(table, recipe, featurize=featurize, encoding=test.encoding).rows
