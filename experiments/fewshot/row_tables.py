"""Tables of classes as the options name them, divided into training, validation and test."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from metajax.data.splits import shuffled
from metajax.data.tables import Recipe, Table, TableSplits, load_table, split_table
from metajax.data.tables.near import nearest
from metajax.errors import DataError
from metajax.names import shown

from ..flags.columns import TABLE, names_in
from ..flags.settings import PACKAGE, UsageError
from ..setup.columns import read_columns, recipe_of_features
from ..setup.tables import SPLITS
from .options import FewshotPlan

# The file that a row is from, where texts of one file are translations of each other: the test domains are
# tested on rows of the file "test", and no other rows are trained on.
_FILES = {"xsid": "file"}
_VALID_SHARE = 0.2


def own_table(plan: FewshotPlan) -> TableSplits:
    """Reads a user's file, and divides its classes or domains.

    Args:
      plan: The run.

    Returns:
      The splits.

    Raises:
      DataError: If rows are missing, broken or too few.
      UsageError: If a column is not named that has to be.
    """
    options, data = plan.table, plan.data
    for name, value in (("data_dir", data.data_dir), ("label", options.label)):
        if not value:
            example = {"data_dir": "tickets.csv", "label": "topic"}[name]
            raise UsageError(f"--dataset=table needs --{name}, such as --{name}={example}.")
    column = data.split.removeprefix("column:") if data.split.startswith("column:") else ""
    parts = {"label": options.label, "domain": options.domain}
    table = read_columns(data.data_dir, options, (*parts.values(), column))
    recipe = recipe_of_features(table, options, parts=parts, apart=(column,))
    recipe = recipe._replace(group=options.label, parent=options.domain)
    recipe.check(table)
    unknown = {}
    if options.unknown:
        labels = np.array(table.text(options.label), object)
        if not (labels == options.unknown).any():
            raise DataError(
                f"Column '{shown(options.label)}' of {table.source} has no value "
                f"'{shown(options.unknown)}'; {nearest(options.unknown, sorted(set(labels) - {''}))}"
            )
        unknown = {"test": table.select(labels == options.unknown)}
        table = table.select(labels != options.unknown)
    if options.train_domains:
        return _by_domains(plan, table, recipe)._replace(unknown=unknown)
    found = split_table(
        table,
        recipe,
        split=data.split or None,
        split_file=data.split_file or None,
        seed=data.split_seed,
        least=options.min_rows,
        min_tasks=1 if options.domain else _fewest_classes(plan, table),
    )
    return found._replace(unknown=unknown)


def _fewest_classes(plan: FewshotPlan, table: Table) -> int:
    """Counts the classes that each split needs: the ones of an episode if there are as many, else two."""
    rows = Counter(word for word in table.text(plan.table.label) if word)
    able = sum(count >= plan.table.min_rows for count in rows.values())
    ways = plan.episodes.ways
    return ways if able >= 3 * ways else 2


def named_table(plan: FewshotPlan) -> TableSplits:
    """Reads a data set by its name, with a published split.

    Args:
      plan: The run.

    Returns:
      The splits.

    Raises:
      DataError: If files are missing or broken.
      UsageError: If options do not go together.
    """
    data = plan.data
    by_domains = bool(plan.table.train_domains)
    if by_domains and (data.split or data.split_file):
        given = "split" if data.split else "split_file"
        raise UsageError(
            f"--train_domains and --{given} divide the rows in two ways; leave out one of them."
        )
    found = load_table(
        data.dataset,
        data_dir=data.data_dir or None,
        split="all" if by_domains else data.split or None,
        split_file=data.split_file or None,
        seed=data.split_seed,
        least=plan.table.min_rows,
    )
    if found.recipe.target:
        raise UsageError(
            f"--dataset={data.dataset} has targets of its own and no classes of rows; use python -m "
            f"{PACKAGE}.pertask."
        )
    if not by_domains:
        return found
    divided = _by_domains(plan, found.test, found.recipe)
    return divided._replace(notes=found.notes, unknown=found.unknown)


def _by_domains(plan: FewshotPlan, table: Table, recipe: Recipe) -> TableSplits:
    """Divides a table by the domains that are named."""
    options, dataset = plan.table, plan.data.dataset
    if not recipe.parent:
        remedy = "name their column by --domain" if dataset == TABLE else "use --split"
        raise UsageError(f"--train_domains needs domains, and {dataset} has none; {remedy}.")
    if not options.test_domains:
        raise UsageError("--train_domains needs --test_domains too.")
    asked = {split: names_in(getattr(options, f"{split}_domains")) for split in SPLITS}
    if not asked["valid"]:
        asked |= _some_for_validation(asked["train"], plan.data.split_seed)
    domains = table.text(recipe.parent)
    known, holders = sorted(set(domains) - {""}), {}
    for split, names in asked.items():
        for name in names:
            if name not in known:
                raise UsageError(
                    f"--{split}_domains={shown(name)} is no value of '{shown(recipe.parent)}'; "
                    f"{nearest(name, known)}"
                )
            if holders.setdefault(name, split) != split:
                raise UsageError(
                    f"The domain {shown(name)} is in --{holders[name]}_domains and in --{split}_domains; "
                    "leave it out of one of them."
                )
    words = [holders.get(name, "") for name in domains]
    if dataset in _FILES:
        files = table.text(_FILES[dataset])
        pairs = zip(words, files, strict=True)
        words = [split if (split == "test") == (file == "test") else "" for split, file in pairs]
    parts = {split: table.select(np.array([word == split for word in words])) for split in SPLITS}
    listing = "; ".join(f"{split} {', '.join(names)}" for split, names in asked.items())
    rows = ", ".join(f"{len(part):,}" for part in parts.values())
    return TableSplits(
        **parts,
        recipe=recipe,
        description=f"{table.source}, {recipe.parent}s: {listing}; {rows} rows",
    )


def _some_for_validation(train: Sequence[str], seed: int) -> dict[str, Sequence[str]]:
    """Draws a fifth of the training domains for validation."""
    if len(train) < 2:
        raise UsageError(
            f"--train_domains={shown(','.join(train))} is a single domain, so none is left to validate on; "
            "name others by --valid_domains."
        )
    drawn = shuffled(sorted(train), seed)
    held = max(1, round(_VALID_SHARE * len(drawn)))
    return {"train": sorted(drawn[held:]), "valid": sorted(drawn[:held])}
