"""Molecules as numbers, by RDKit: counts of fragments, physico-chemical descriptors, and padded graphs.

A SMILES that RDKit cannot parse has a row of zeros, is marked in `Molecules.valid`, and is named in
`Molecules.notes`; the caller leaves such rows out.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import DataError
from metajax.models.adapters import require
from metajax.models.molecules import ATOM_CODES, ELEMENTS

# The properties that RDKit computes together, in a fixed order: its own list may grow.
DESCRIPTORS = tuple(
    "exactmw amw lipinskiHBA lipinskiHBD NumRotatableBonds NumHBD NumHBA NumHeavyAtoms NumAtoms "
    "NumHeteroatoms NumAmideBonds FractionCSP3 NumRings NumAromaticRings NumAliphaticRings "
    "NumSaturatedRings NumHeterocycles NumAromaticHeterocycles NumSaturatedHeterocycles "
    "NumAliphaticHeterocycles NumSpiroAtoms NumBridgeheadAtoms NumAtomStereoCenters "
    "NumUnspecifiedAtomStereoCenters labuteASA tpsa CrippenClogP CrippenMR chi0v chi1v chi2v chi3v chi4v "
    "chi0n chi1n chi2n chi3n chi4n hallKierAlpha kappa1 kappa2 kappa3 Phi".split()
)
"""Names of the columns of `descriptors`."""

_HYBRIDIZATIONS = ("S", "SP", "SP2", "SP3", "SP3D", "SP3D2")
_BONDS = {"DOUBLE": 2, "TRIPLE": 3, "AROMATIC": 4}  # any other bond counts as single
_SINGLE = 1
_SMALLEST_RING, _LARGEST_RING = 3, 8


class Molecules(NamedTuple):
    """Arrays of molecules.

    Attributes:
      values: Array, or dict of arrays, [M, ...]; zeros for SMILES that do not parse.
      valid: Whether a SMILES parses, bool [M].
      notes: Lines for people: how many SMILES do not parse, and which are the first.

    Example:
      >>> Molecules(np.zeros((2, 3)), np.array([True, False]), ("1 of 2 SMILES does not parse.",)).valid.sum()
      np.int64(1)
    """

    values: Any
    valid: np.ndarray
    notes: tuple[str, ...] = ()


def morgan_counts(smiles: Sequence[str], radius: int = 2, size: int = 2048) -> Molecules:
    """Counts the circular fragments of molecules in hashed bins: Morgan or ECFP fingerprints.

    Args:
      smiles: Molecules [M] as SMILES.
      radius: Radius of a fragment in bonds; 2 is ECFP4.
      size: Number of bins.

    Returns:
      Counts, uint8 [M, size], where 255 stands for 255 or more.

    Raises:
      ValueError: If `radius` is negative, or `size` below 1.
      ImportError: If `rdkit` is not installed.

    Example:
      >>> counts, valid, _ = morgan_counts(["CCO", "no molecule"])
      >>> valid.tolist(), int(counts[0].sum())
      ([True, False], 6)

    Reference: Rogers and Hahn, 2010 (https://doi.org/10.1021/ci100050t).
    """
    if radius < 0 or size < 1:
        raise ValueError(f"radius is {radius} and size {size}; use at least 0 and 1.")
    generators = require("rdkit.Chem.rdFingerprintGenerator", extra="molecules")
    generator = generators.GetMorganGenerator(radius=radius, fpSize=size)
    counts = np.zeros((len(smiles), size), np.uint8)

    def write(row: int, molecule: Any) -> None:
        counts[row] = np.minimum(generator.GetCountFingerprintAsNumPy(molecule), 255)

    return Molecules(counts, *_each(smiles, write))


def descriptors(smiles: Sequence[str]) -> Molecules:
    """Computes physico-chemical descriptors: weight, polar surface, rings, solubility, shape.

    Args:
      smiles: Molecules [M] as SMILES.

    Returns:
      Numbers, float32 [M, 43], in the order of `DESCRIPTORS` and in their own units; 0 where RDKit finds no
      number.

    Raises:
      ImportError: If `rdkit` is not installed.

    Example:
      >>> found = descriptors(["CCO"])
      >>> round(float(found.values[0, DESCRIPTORS.index("amw")]), 2)
      46.07
    """
    properties = require("rdkit.Chem.rdMolDescriptors", extra="molecules").Properties(DESCRIPTORS)
    numbers = np.zeros((len(smiles), len(DESCRIPTORS)), np.float32)

    def write(row: int, molecule: Any) -> None:
        numbers[row] = np.nan_to_num(
            np.array(properties.ComputeProperties(molecule)), posinf=0, neginf=0
        )

    return Molecules(numbers, *_each(smiles, write))


def molecule_graphs(smiles: Sequence[str], most_atoms: int = 64) -> Molecules:
    """Writes molecules as graphs of their heavy atoms, padded to one size.

    Args:
      smiles: Molecules [M] as SMILES.
      most_atoms: Number of atoms A; of larger molecules, which a note counts, the first A atoms are kept.

    Returns:
      Dict of `atoms`, int8 [M, A, F] codes below `metajax.models.molecules.ATOM_CODES` of the element, the
      degree, the charge, the hydrogens, the hybridization, aromaticity and the smallest ring; `bonds`, int8
      [M, A, A] of 0 for none, 1 single, 2 double, 3 triple, 4 aromatic; and `mask`, bool [M, A] of atoms that
      exist.

    Raises:
      ValueError: If `most_atoms` is below 1.
      ImportError: If `rdkit` is not installed.

    Example:
      >>> graphs = molecule_graphs(["C=O"], most_atoms=3).values
      >>> graphs["bonds"][0].tolist(), graphs["mask"][0].tolist()
      ([[0, 2, 0], [2, 0, 0], [0, 0, 0]], [True, True, False])
    """
    if most_atoms < 1:
        raise ValueError(f"most_atoms is {most_atoms}; use 1 or more.")
    atoms = np.zeros((len(smiles), most_atoms, len(ATOM_CODES)), np.int8)
    bonds = np.zeros((len(smiles), most_atoms, most_atoms), np.int8)
    mask = np.zeros((len(smiles), most_atoms), bool)
    cut = []

    def write(row: int, molecule: Any) -> None:
        kept = min(molecule.GetNumAtoms(), most_atoms)
        if kept < molecule.GetNumAtoms():
            cut.append(molecule.GetNumAtoms())
        atoms[row, :kept] = _atom_codes(molecule)[:kept]
        mask[row, :kept] = True
        for bond in molecule.GetBonds():
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            if max(ends) < kept:
                code = _BONDS.get(bond.GetBondType().name, _SINGLE)
                bonds[row, ends[0], ends[1]] = bonds[row, ends[1], ends[0]] = code

    valid, notes = _each(smiles, write)
    if cut:
        largest = f"{len(cut)} of {len(smiles)} molecules have up to {max(cut)} atoms"
        notes = (*notes, f"{largest}; the first {most_atoms} are kept (most_atoms).")
    return Molecules({"atoms": atoms, "bonds": bonds, "mask": mask}, valid, notes)


def features_version() -> str:
    """Names what the features of a molecule depend on besides their options, for the keys of caches.

    Returns:
      The version of RDKit, whose next one may number fragments otherwise, and a hash of the code of this
      module and of the module of the atoms' codes.

    Raises:
      ImportError: If `rdkit` is not installed.

    Example:
      >>> features_version().split()[0]
      'rdkit'
    """
    installed = require("rdkit.rdBase", extra="molecules").rdkitVersion
    modules = (sys.modules[name] for name in (__name__, "metajax.models.molecules"))
    code = hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()
    return f"rdkit {installed} {code[:16]}"


def _atom_codes(molecule: Any) -> np.ndarray:
    """Lists the codes of the atoms of a molecule, [atoms, F]."""
    rings = molecule.GetRingInfo()
    found = np.zeros((molecule.GetNumAtoms(), len(ATOM_CODES)), np.int8)
    for index, atom in enumerate(molecule.GetAtoms()):
        symbol, hybridization = atom.GetSymbol(), atom.GetHybridization().name
        ring = rings.MinAtomRingSize(index)
        found[index] = (
            # 0 is no atom, 1 any element that is not listed.
            2 + ELEMENTS.index(symbol) if symbol in ELEMENTS else 1,
            atom.GetDegree(),
            atom.GetFormalCharge() + 2,
            atom.GetTotalNumHs(),
            1 + _HYBRIDIZATIONS.index(hybridization) if hybridization in _HYBRIDIZATIONS else 0,
            atom.GetIsAromatic(),
            min(ring, _LARGEST_RING) - _SMALLEST_RING + 1 if ring else 0,
        )
    return np.clip(found, 0, np.array(ATOM_CODES) - 1)


def _each(
    smiles: Sequence[str], write: Callable[[int, Any], None]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Calls `write` with the row and the molecule of each SMILES that parses; returns which do, and notes."""
    valid = np.zeros(len(smiles), bool)
    for row, molecule in _parsed(smiles):
        if molecule is not None:
            write(row, molecule)
            valid[row] = True
    return valid, _notes(smiles, valid)


def _parsed(smiles: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yields rows and molecules; None for SMILES that are empty or do not parse."""
    chem, base = (require(name, extra="molecules") for name in ("rdkit.Chem", "rdkit.rdBase"))
    if isinstance(smiles, str):
        raise DataError(f"The SMILES are one string, {smiles[:20]!r}; use a list of strings.")
    # RDKit explains each failure on several lines of standard error; one note is enough.
    with base.BlockLogs():
        for row, text in enumerate(smiles):
            molecule = chem.MolFromSmiles(text) if isinstance(text, str) and text else None
            yield row, molecule if molecule is not None and molecule.GetNumAtoms() else None


def _notes(smiles: Sequence[str], valid: np.ndarray) -> tuple[str, ...]:
    """Names the first SMILES that do not parse."""
    rows = np.flatnonzero(~valid)
    if not len(rows):
        return ()
    first = ", ".join(f"{smiles[row]!r} (row {row})" for row in rows[:3])
    return (f"{len(rows)} of {len(smiles)} SMILES do not parse and are left out, first {first}.",)
