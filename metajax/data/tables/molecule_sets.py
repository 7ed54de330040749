"""Data sets of molecules: assays with active and inactive ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metajax.data.tables import splitting
from metajax.data.tables.packing import kept_table
from metajax.data.tables.reading import read_table
from metajax.data.tables.recipe import Recipe
from metajax.data.tables.source import Source, find_file
from metajax.data.tables.splitting import Parts
from metajax.data.tables.table import Table, concatenate

ASSAYS = Recipe(smiles="smiles", parent="assay", target="active", classes=("0", "1"))
"""An assay is a task, whose groups are inactive and active molecules."""

_FSMOL_COLUMNS = ["fold", "assay", "smiles", "active", "log_activity"]
_FOLDS = ("train", "valid", "test")

# Files, and number of training assays of the protocol of few-shot papers; the others are for test.
MOLNET = {
    "tox21": ("tox21.csv", 9),
    "muv": ("muv.csv", 12),
    "toxcast": ("toxcast_data.csv", 450),
    "sider": ("sider.csv", 21),
}
# Papers leave out 99 assays of ToxCast by a list, which is that of the assays with fewer measurements.
_TOXCAST_LEAST = 150


def fsmol(data_dir: str | Path | None) -> Source:
    """Reads FS-Mol, assays of ChEMBL with the published folds.

    Args:
      data_dir: Folder with `fsmol.tsv.gz` (columns fold, assay, smiles, active, log_activity), or with the
        published folders `train`, `valid` and `test` of `*.jsonl.gz`; or the one above it. Decoded JSON is
        kept in the cache.

    Returns:
      The data set; the split "official" has the published folds. Targets are 0 and 1; the column
      `log_activity` has the measured value.

    Raises:
      DataError: If files are missing or broken.

    Reference: Stanley et al., 2021 (https://openreview.net/forum?id=701FtuyLlAd).
    """
    path = find_file(data_dir, "fsmol", "fsmol.tsv.gz", "fsmol/fsmol.tsv.gz", "test", "fsmol/test")
    packed = path.is_file()
    table = read_table(path, columns=_FSMOL_COLUMNS) if packed else _fsmol_folders(path.parent)
    return Source("fsmol", table, ASSAYS, {"official": _by_fold, "random": splitting.random()})


def _fsmol_folders(root: Path) -> Table:
    """Reads the published files, which hold graphs and fingerprints as well."""
    files = [path for fold in _FOLDS for path in sorted((root / fold).glob("*.jsonl.gz"))]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def build() -> Table:
        return concatenate([_fsmol_assay(path) for path in files], source="fsmol")

    return kept_table(f"fsmol {root} {stats}", build)


def _fsmol_assay(path: Path) -> Table:
    """Reads an assay of the published files."""
    found = read_table(path, columns=["SMILES", "Property", "Assay_ID", "LogRegressionProperty"])
    return Table.of(
        {
            "fold": [path.parent.name] * len(found),
            "assay": found.text("Assay_ID"),
            "smiles": found.text("SMILES"),
            "active": found.text("Property"),
            "log_activity": found.text("LogRegressionProperty"),
        },
        source=path.name,
    )


def _by_fold(table: Table, recipe: Recipe, seed: int) -> Parts:
    """Divides assays by the column `fold`."""
    del recipe, seed
    folds = np.array(table.text("fold"))
    return splitting.of_masks({fold: folds == fold for fold in _FOLDS})


def molnet(data_dir: str | Path | None, *, name: str) -> Source:
    """Reads a data set of MoleculeNet, whose columns are assays.

    Args:
      data_dir: Folder with its CSV file, compressed or not, or the one above it.
      name: `tox21`, `muv`, `toxcast` or `sider`.

    Returns:
      The data set, a row per measured molecule and assay. The split "official" tests on the last assays, as
      few-shot papers do; as they have no validation assays, validation draws tasks of training assays.

    Raises:
      DataError: If the file is missing or broken.

    Reference: Wang et al., 2021 (https://arxiv.org/abs/2107.07994).
    """
    file, training = MOLNET[name]
    path = find_file(
        data_dir, name, *(f"{a}{file}{b}" for a in ("", "molnet/") for b in (".gz", ""))
    )
    wide = read_table(path)
    assays = [column for column in wide.columns if column not in ("smiles", "mol_id")]
    table, counts = melted(wide, "smiles", assays)
    notes = ("the protocol has no validation assays: validation draws tasks of training assays",)
    if name == "toxcast":
        small = {assay for assay in assays if sum(counts[assay]) < _TOXCAST_LEAST}
        notes += (
            f"{len(small)} assays have fewer than {_TOXCAST_LEAST} molecules and are left out",
        )
    else:
        small = set()

    def official(table: Table, recipe: Recipe, seed: int) -> Parts:
        del recipe, seed
        first = set(assays[:training]) - small
        last = set(assays[training:]) - small
        found = table.text("assay")
        train = [assay in first for assay in found]
        return splitting.of_masks(
            {"train": train, "valid": train, "test": [assay in last for assay in found]}
        )

    policies = {"official": official, "random": splitting.random()}
    return Source(name, table, ASSAYS, policies, notes)


def melted(
    wide: Table, key: str, columns: Sequence[str]
) -> tuple[Table, dict[str, tuple[int, int]]]:
    """Makes a row of each value of a table whose columns are assays.

    Args:
      wide: Table of a row per molecule.
      key: Column of the molecule.
      columns: Columns of assays, of 0, 1, or nothing.

    Returns:
      A table of the columns `assay`, `smiles` and `active`, whose rows have the numbers of the molecules; and
      the numbers of inactive and active molecules by assay.

    Raises:
      DataError: If a value is no number.

    Example:
      >>> wide = Table.of({"smiles": ["C", "CO"], "a": ["1", ""], "b": ["0", "1.0"]})
      >>> table, counts = melted(wide, "smiles", ["a", "b"])
      >>> table.text("assay"), table.text("active"), counts["b"]
      (['a', 'b', 'b'], ['1', '0', '1'], (1, 1))
    """
    keys = wide.column(key)
    parts, counts = [], {}
    for name in columns:
        values = wide.floats(name)
        rows = np.flatnonzero(~np.isnan(values))
        active = values[rows].astype(np.int64)
        counts[name] = (int(np.sum(active == 0)), int(np.sum(active == 1)))
        parts.append(
            Table(
                {
                    "assay": np.full(len(rows), name, object),
                    "smiles": keys[rows],
                    "active": active,
                },
                wide.source,
                wide.numbers[rows],
            )
        )
    return concatenate(parts, source=wide.source), counts
