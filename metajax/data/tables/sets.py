"""Data sets of tables by name; `load_table` reads and splits them."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from metajax.data.tables import molecule_sets, segment_sets, text_sets, user_sets
from metajax.data.tables.lines import MOST_BYTES
from metajax.data.tables.near import nearest
from metajax.data.tables.reading import Layout, read_table
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.source import Reader, TableSplits, divided, split_table
from metajax.errors import DataError
from metajax.names import shown

_PLAIN = Layout()
_TABLE = "table"  # a table of one's own

SETS: dict[str, Reader] = {
    "banking77": functools.partial(text_sets.intents, name="banking77", folder="BANKING77"),
    "hwu64": functools.partial(text_sets.intents, name="hwu64", folder="HWU64"),
    "liu": functools.partial(text_sets.intents, name="liu", folder="Liu"),
    "clinc150": functools.partial(text_sets.intents, name="clinc150", folder="OOS"),
    "clinc150_oos": text_sets.clinc150_full,
    "fewrel": text_sets.fewrel,
    "xsid": text_sets.xsid,
    "fsmol": molecule_sets.fsmol,
    **{name: functools.partial(molecule_sets.molnet, name=name) for name in molecule_sets.MOLNET},
    "restaurant": user_sets.restaurant,
    "movielens": user_sets.movielens,
    "assist": user_sets.assist,
    "creditg": segment_sets.creditg,
    "taiwan": segment_sets.taiwan,
    "bank": segment_sets.bank,
    "blood": segment_sets.blood,
    "diabetes": segment_sets.diabetes,
}
"""Readers of data sets by name. All are on the user's disk; nothing is downloaded."""


def load_table(
    name: str,
    *,
    data_dir: str | Path | None = None,
    recipe: Recipe | None = None,
    split: str | None = None,
    split_file: str | None = None,
    seed: int = 0,
    least: int | None = None,
    most: int | None = None,
    min_tasks: int = 1,
    layout: Layout = _PLAIN,
    most_bytes: int = MOST_BYTES,
) -> TableSplits:
    """Reads a data set of a table and splits its tasks.

    Args:
      name: Name in `SETS`; or `table`, for a file of one's own.
      data_dir: Folder of the data set, or the path of one's own file.
      recipe: Parts of the columns; None is the recipe of the data set, and `table` needs one.
      split: Split of the data set by name, such as "official", "1" or "random"; or `column:NAME`, `file` or
        `all`, see `split_table`. None is the first of the data set.
      split_file: JSON file {"train": [values], "valid": [...], "test": [...]} of groups or parents.
      seed: Seed of splits that draw.
      least: Fewest rows of a task, or of a class; None is that of the published protocol, or 1.
      most: Most rows of a task, or of a class; None is that of the published protocol.
      min_tasks: Fewest tasks of each split of the split `random` of one's own file.
      layout: Layout of delimited text of one's own file.
      most_bytes: Limit of the bytes of one's own file; see `read_table`.

    Returns:
      The splits.

    Raises:
      DataError: If the data set is unknown, files are missing or broken, or the split does not fit.
      ImportError: If a file needs pyarrow, which is missing.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from metajax.data.tables import Recipe
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "tickets.csv")
      ...     _ = path.write_text("message,topic\\nhi,a\\nho,a\\nlost,b\\nbye,c\\n")
      ...     splits = load_table("table", data_dir=path, recipe=Recipe(text=("message",), group="topic"))
      >>> len(splits.train), len(splits.valid), len(splits.test)
      (2, 1, 1)
    """
    if name == _TABLE:
        return _own(
            data_dir,
            recipe,
            split=split,
            split_file=split_file,
            seed=seed,
            least=least or 1,
            most=most,
            min_tasks=min_tasks,
            columns=None,
            layout=layout,
            most_bytes=most_bytes,
        )
    if name not in SETS:
        raise DataError(f"There is no table '{shown(name)}'; {nearest(name, [*SETS, _TABLE])}")
    source = SETS[name](data_dir)
    if split == "whole" and recipe is None:
        recipe = source.recipe._replace(parent="")
    source = source._replace(
        recipe=recipe or source.recipe,
        least=source.least if least is None else least,
        most=source.most if most is None else most,
    )
    return divided(source, split, split_file=split_file, seed=seed)


def _own(
    path: str | Path | None,
    recipe: Recipe | None,
    *,
    columns: Sequence[str] | None,
    layout: Layout,
    most_bytes: int,
    **options,
) -> TableSplits:
    """Reads and splits a file of one's own, of which only the columns of the recipe are read."""
    if not path:
        raise DataError("The data set 'table' is a file of yours; set data_dir to its path.")
    if recipe is None:
        raise DataError(
            "The data set 'table' needs a recipe; name its columns of features, and its target or group."
        )
    split = options["split"] or ""
    more = (split.removeprefix("column:"),) if split.startswith("column:") else ()
    wanted = tuple(dict.fromkeys((*recipe.columns(), *more)))
    path = Path(os.path.expanduser(path))
    table = read_table(path, columns=columns or wanted, layout=layout, most_bytes=most_bytes)
    return split_table(table, recipe, **options)
