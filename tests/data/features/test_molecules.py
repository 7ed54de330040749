import numpy as np
import pytest

pytest.importorskip("rdkit")

from metajax.data.features.molecules import (
    DESCRIPTORS,
    descriptors,
    molecule_graphs,
    morgan_counts,
)
from metajax.errors import DataError
from metajax.models.molecules import ATOM_CODES, ELEMENTS

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def test_fragments_are_counted_and_do_not_depend_on_how_a_molecule_is_written():
    counts, valid, notes = morgan_counts([ASPIRIN, "OC(=O)c1ccccc1OC(C)=O", "CCO"])
    assert counts.dtype == np.uint8 and counts.shape == (3, 2048) and valid.all() and not notes
    np.testing.assert_array_equal(counts[0], counts[1])
    # Of radius 0 there is a fragment per atom: 13 atoms of aspirin, 3 of ethanol.
    atoms = morgan_counts([ASPIRIN, "CCO"], radius=0).values
    assert atoms.sum(1).tolist() == [13, 3]
    # Ethanol has three fragments of radius 1, and none of radius 2 that are new.
    assert morgan_counts(["CCO"]).values.sum() == 6
    assert morgan_counts(["C" * 400], radius=0, size=8).values.max() == 255


def test_smiles_that_do_not_parse_are_zeros_and_the_first_three_are_named(capfd):
    smiles = ["C", "no", "", "C1CC", "C(C)(C)(C)(C)C", "CC"]
    counts, valid, notes = morgan_counts(smiles, size=64)
    assert valid.tolist() == [True, False, False, False, False, True]
    assert not counts[1:5].any()
    assert notes == (
        "4 of 6 SMILES do not parse and are left out, first 'no' (row 1), '' (row 2), 'C1CC' (row 3).",
    )
    assert not capfd.readouterr().err
    with pytest.raises(DataError, match="one string, 'CCO'"):
        morgan_counts("CCO")


def test_descriptors_are_the_known_ones():
    numbers, valid, _ = descriptors(["CCO", ASPIRIN, "no", "[H][H]"])
    by_name = dict(zip(DESCRIPTORS, numbers.T, strict=True))
    assert numbers.dtype == np.float32 and np.isfinite(numbers).all()
    assert valid.tolist() == [True, True, False, True]
    np.testing.assert_allclose(by_name["amw"][:2], [46.07, 180.16], atol=0.01)
    np.testing.assert_allclose(by_name["tpsa"][:2], [20.23, 63.60], atol=0.01)
    assert by_name["NumAromaticRings"][:2].tolist() == [0, 1]
    assert by_name["NumHBD"][:2].tolist() == [1, 1]


def test_graphs_have_atoms_bonds_and_a_mask():
    (graphs, valid, notes) = molecule_graphs(["C#N", "c1ccccc1[O-]", "no"], most_atoms=8)
    assert valid.tolist() == [True, True, False] and len(notes) == 1
    assert graphs["mask"].sum(1).tolist() == [2, 7, 0]
    element = dict(zip(ELEMENTS, range(2, 99), strict=False))
    #  element, degree, charge + 2, hydrogens, hybridization (SP 2, SP2 3), aromatic, ring of 6 (4)
    assert graphs["atoms"][0, :3].tolist() == [
        [element["C"], 1, 2, 1, 2, 0, 0],
        [element["N"], 1, 2, 0, 2, 0, 0],
        [0] * len(ATOM_CODES),
    ]
    assert graphs["atoms"][1, 0].tolist() == [element["C"], 2, 2, 1, 3, 1, 4]
    assert graphs["atoms"][1, 6, [0, 1, 2]].tolist() == [element["O"], 1, 1]
    bonds = graphs["bonds"]
    assert bonds.dtype == np.int8 and (bonds == bonds.swapaxes(1, 2)).all()
    assert bonds[0, 0, 1] == 3 and bonds[0].sum() == 6
    assert (bonds[1] == 4).sum() == 12 and (bonds[1] == 1).sum() == 2
    assert (graphs["atoms"].max((0, 1)) < ATOM_CODES).all()


def test_large_molecules_keep_their_first_atoms_and_a_note_counts_them():
    graphs, valid, notes = molecule_graphs(["CCCCCC", "CC"], most_atoms=4)
    assert valid.all() and graphs["mask"].sum(1).tolist() == [4, 2]
    assert (graphs["bonds"][0] > 0).sum() == 6
    assert notes == ("1 of 2 molecules have up to 6 atoms; the first 4 are kept (most_atoms).",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: morgan_counts(["C"], radius=-1), "radius is -1"),
        (lambda: morgan_counts(["C"], size=0), "size 0"),
        (lambda: molecule_graphs(["C"], most_atoms=0), "most_atoms is 0"),
    ],
)
def test_errors_name_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
