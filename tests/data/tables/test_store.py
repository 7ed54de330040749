"""Stores of tasks: what a recipe makes of hand-made rows, and rows that do not fit."""

import re

import jax
import numpy as np
import pytest

import metajax
from metajax.data.tables import Featurized, Recipe, Table, classes_of, fit, make_store
from metajax.errors import DataError


def _lengths(texts):
    return np.array([[len(text)] for text in texts])


TICKETS = Table.of(
    {
        "message": ["lost it", "hi", "blocked!", "", "hello", "hi", "bye"],
        "topic": ["card", "greet", "card", "card", "greet", "leave", "leave"],
        "domain": ["bank", "talk", "bank", "bank", "talk", "talk", "talk"],
    },
    source="tickets.csv",
)
CLASSES = Recipe(text=("message",), group="topic", parent="domain")


def test_a_class_store_has_groups_in_parents_and_shares_equal_texts():
    store = make_store(TICKETS, CLASSES, featurize={"text": _lengths})
    assert store.groups == ("card", "greet", "leave") and store.parents == ("bank", "talk")
    assert store.rows.counts.tolist() == [2, 2, 2] and store.rows.targets is None
    assert store.rows.parents.counts.tolist() == [1, 2]
    assert store.numbers.tolist() == [1, 3, 2, 5, 6, 7]  # row 4 has no text
    assert store.rows.take(np.arange(6))["text"].ravel().tolist() == [7, 8, 2, 5, 2, 3]
    assert len(store.rows.features["text"]) == 5  # "hi" is there twice
    assert store.notes == ("1 of 7 rows have no 'message' and are left out: rows 4",)
    jax.eval_shape(
        metajax.GroupSampler(ways=2, shots=1, queries=1, within=True), store.rows, jax.random.key(0)
    )


def test_the_same_groups_of_two_parents_are_two_groups():
    table = Table.of(
        {"t": list("abcd"), "intent": ["x", "y", "x", "y"], "lang": ["de", "de", "en", "en"]}
    )
    recipe = Recipe(text=("t",), group="intent", parent="lang")
    store = make_store(table, recipe, featurize={"text": _lengths})
    assert store.groups == ("x", "y", "x", "y") and store.parents == ("de", "en")
    assert store.rows.counts.tolist() == [1, 1, 1, 1]


RATINGS = Table.of(
    {
        "user": ["10", "9", "10", "9", "10", "8"],
        "film": ["Up", "Heat", "Heat", "Tron", "Tron", "Up"],
        "year": ["2009", "1995", "1995", "NA", "1982", "2009"],
        "stars": ["4", "5", "1", "", "2", "3"],
        "time": ["30", "20", "10", "10", "20", "1"],
    },
    source="ratings.csv",
)
USERS = Recipe(
    numbers=("year",), categories=("film",), group="user", target="stars", order="time", item="film"
)


def test_users_are_tasks_whose_rows_are_in_order_of_time():
    store = make_store(RATINGS, USERS)
    assert store.groups == store.parents == ("8", "9", "10")
    assert store.rows.counts.tolist() == [1, 1, 3] and store.rows.parents.counts.tolist() == [
        1,
        1,
        1,
    ]
    assert store.numbers.tolist() == [6, 2, 3, 5, 1]  # row 4 has no stars
    np.testing.assert_array_equal(store.rows.targets, np.float32([3, 5, 1, 2, 4]))
    assert store.items.tolist() == [3, 1, 1, 2, 3]  # Heat, Tron, Up
    assert store.rows.rows is not None and len(store.rows.features["numbers"]) == 3
    years = np.array([2009, 1995, 1995, 1982, 2009.0])  # of the complete rows, in the store's order
    found = store.rows.take(np.arange(5))
    standard = (years - years.mean()) / years.std()
    np.testing.assert_allclose(found["numbers"].ravel(), standard, rtol=1e-6)
    assert not found["missing"].any() and found["categories"].ravel().tolist() == [3, 1, 1, 2, 3]


def test_statistics_and_vocabularies_are_of_the_training_rows():
    encoding = fit(RATINGS.select([0, 1]), USERS)
    test = RATINGS.select([2, 3, 4]).with_columns({"stars": [1, 2, 3]})
    store = make_store(test, USERS, encoding=encoding)
    np.testing.assert_array_equal(encoding.means, [2002])
    np.testing.assert_array_equal(encoding.scales, [7])
    assert encoding.vocabularies == (("Heat", "Up"),) and encoding.sizes == (3,)
    rows = store.rows.take(np.arange(3))  # row 4 of user 9, then rows 3 and 5 of user 10
    np.testing.assert_allclose(rows["numbers"].ravel(), [0, -1, -20 / 7], rtol=1e-6)
    assert rows["missing"].ravel().tolist() == [True, False, False]
    assert rows["categories"].ravel().tolist() == [0, 1, 0] and store.items.tolist() == [0, 1, 0]


def test_none_is_a_category_and_a_question_mark_is_none():
    table = Table.of({"debtor": ["none", "?", "", "guarantor"], "y": [0, 1, 0, 1]})
    recipe = Recipe(categories=("debtor",), target="y", classes=("0", "1"))
    encoding = fit(table, recipe)
    assert encoding.vocabularies == (("guarantor", "none"),)
    codes = make_store(table, recipe).rows.take(np.arange(4))["categories"]
    assert codes.ravel().tolist() == [2, 0, 0, 1]


def test_constant_and_empty_columns_of_numbers_are_zeros():
    table = Table.of({"same": [7, 7], "none": ["", "?"], "y": [0, 1]})
    recipe = Recipe(numbers=("same", "none"), target="y", classes=("0", "1"))
    rows = make_store(table, recipe).rows
    found = rows.take(np.arange(2))
    np.testing.assert_array_equal(found["numbers"], np.zeros((2, 2)))
    np.testing.assert_array_equal(found["missing"], [[False, True]] * 2)


ASSAYS = Table.of(
    {
        "smiles": ["CC", "CO", "CC", "CN", "CO", "?(", "CC"],
        "assay": ["b", "b", "a", "a", "a", "a", "b"],
        "active": ["1", "0.0", "0", "1", "0", "1", "0"],
    },
    source="assays.tsv",
)
ACTIVITY = Recipe(smiles="smiles", parent="assay", target="active", classes=("0", "1"))


def _atoms(smiles):
    counts = np.array([[text.count("C"), len(text)] for text in smiles], np.uint8)
    return Featurized(counts, np.array(["(" not in text for text in smiles]))


def test_assays_are_parents_of_inactive_and_active_molecules_that_they_share():
    calls = []

    def featurize(smiles):
        calls.append(smiles)
        return _atoms(smiles)

    store = make_store(ASSAYS, ACTIVITY, featurize={"smiles": featurize})
    assert calls == [["CC", "CO", "CN", "?("]]  # each molecule once
    assert store.parents == ("a", "b") and store.groups == ("0", "1", "0", "1")
    assert store.rows.counts.tolist() == [2, 1, 2, 1] and store.rows.parents.counts.tolist() == [
        2,
        2,
    ]
    assert (
        store.rows.targets.tolist() == [0, 0, 1, 0, 0, 1] and store.rows.targets.dtype == np.int32
    )
    assert store.numbers.tolist() == [3, 5, 4, 2, 7, 1]
    assert store.rows.features["smiles"].shape == (3, 2)  # without the one that does not parse
    found = store.rows.take(np.arange(6))["smiles"]
    assert found[:, 0].tolist() == [2, 1, 1, 1, 2, 2] and found.dtype == np.uint8
    assert "1 of 4 different values of 'smiles' have no features" in store.notes[0]
    assert "'?('" in store.notes[0]
    sampler = metajax.SplitSampler(support=2, queries=1, order="stratified")
    sampler.check(store.rows)
    task = sampler(store.rows, jax.random.key(0))
    assert sorted(np.concatenate([task.support.targets, task.query.targets]).tolist()) == [0, 0, 1]


def test_a_store_has_the_notes_of_a_featurizer_but_for_what_it_says_itself():
    def featurize(smiles):
        made = _atoms(smiles)
        return made._replace(notes=("1 of 4 SMILES does not parse, row 3.", "2 of 4 are cut."))

    notes = make_store(ASSAYS, ACTIVITY, featurize={"smiles": featurize}).notes
    assert len(notes) == 2 and notes[0].startswith("1 of 4 different values of 'smiles'")
    assert notes[1] == "2 of 4 are cut."


def test_a_target_has_the_missing_words_of_categories_unless_they_are_its_classes():
    table = Table.of({"age": [1, 2, 3, 4], "y": ["a", "NA", "b", " ? "]})
    assert classes_of(table, "y") == ("a", "b")
    recipe = Recipe(numbers=("age",), target="y", classes=("a", "b"))
    store = make_store(table, recipe)
    assert store.numbers.tolist() == [1, 3] and "2 of 4 rows have no 'y'" in store.notes[0]
    with_na = recipe._replace(classes=("a", "b", "NA"))
    assert make_store(table, with_na).numbers.tolist() == [1, 3, 2]


def test_none_is_missing_among_classes_that_are_numbers():
    table = Table.of({"a": [1, 2, 3, 4], "y": ["0", "none", "1", "None"]})
    classes = classes_of(table, "y")
    assert classes == ("0", "1")
    store = make_store(table, Recipe(numbers=("a",), target="y", classes=classes))
    assert store.numbers.tolist() == [1, 3]
    assert classes_of(Table.of({"y": ["mild", "none"]}), "y") == ("mild", "none")


def test_classes_keep_their_order_and_the_whole_table_may_be_one_task():
    table = Table.of({"age": [1, 2, 3], "risk": ["bad", "good", "bad"]})
    recipe = Recipe(numbers=("age",), target="risk", classes=("good", "bad"))
    store = make_store(table, recipe)
    assert store.groups == ("good", "bad") and store.parents == ("",)
    assert store.rows.targets.tolist() == [0, 1, 1] and store.numbers.tolist() == [2, 1, 3]


def test_numbers_of_a_parent_are_one_group():
    table = Table.of({"x": [1, 2, 3], "sensor": ["b", "a", "b"], "y": [0.5, 1.5, 2.5]})
    store = make_store(table, Recipe(numbers=("x",), parent="sensor", target="y"))
    assert store.groups == store.parents == ("a", "b")
    assert store.rows.targets.tolist() == [1.5, 0.5, 2.5]


def test_dates_are_sorted_as_text():
    table = Table.of(
        {"x": [1, 2], "u": ["a", "a"], "day": ["2020-02-01", "2020-01-31"], "y": [1, 2]}
    )
    recipe = Recipe(numbers=("x",), group="u", target="y", order="day")
    assert make_store(table, recipe).numbers.tolist() == [2, 1]


def test_tasks_of_the_wrong_size_are_left_out():
    store = make_store(RATINGS, USERS, least=2)
    assert store.groups == ("10",) and len(store.rows.features["numbers"]) == 3
    note = "2 of 3 values of 'user' do not have 2 rows or more and are left out; 1 remain"
    assert note in store.notes
    assert make_store(RATINGS, USERS, most=1).groups == ("8", "9")
    with pytest.raises(
        DataError,
        match=r"None of 3 values of 'user' in ratings.csv has 5 rows or more: the largest has 3, and 1 ",
    ):
        make_store(RATINGS, USERS, least=5)


def test_tasks_of_a_single_class_are_named():
    table = ASSAYS.select([0, 2, 3]).with_columns({"smiles": ["a", "b", "c"]})
    store = make_store(table, ACTIVITY, featurize={"smiles": _atoms})
    assert store.notes == ("1 of 2 tasks have rows of one class alone: 'b'",)


@pytest.mark.parametrize(
    ("table", "recipe", "message"),
    [
        (
            TICKETS,
            CLASSES._replace(group="topik"),
            "tickets.csv has no column 'topik'; did you mean 'topic'",
        ),
        (TICKETS, Recipe(group="topic"), "is a feature; name columns of text.* such as 'message'"),
        (TICKETS, Recipe(text=("message",)), "neither a target nor a group"),
        (TICKETS, CLASSES._replace(classes=("a",)), "have no target"),
        (
            TICKETS.select([0, 2]),
            CLASSES,
            "'topic' of tickets.csv has one value, 'card'; tasks of classes need two",
        ),
        (
            TICKETS.with_columns({"message": [""] * 7}),
            CLASSES,
            "'message' of tickets.csv is empty in all 7 rows",
        ),
        (
            RATINGS.with_columns({"stars": ["4", "5", "good", "", "2", "3"]}),
            USERS,
            "row 3 of ratings.csv, column 'stars': 'good' is not a number",
        ),
        (
            ASSAYS.with_columns({"active": ["1", "0", "2", "1", "0", "1", "0"]}),
            ACTIVITY,
            "row 3 of assays.tsv, column 'active': '2' is none of the classes '0', '1'",
        ),
        (
            ASSAYS.with_columns({"active": ["1"] * 7}),
            ACTIVITY,
            "All 6 rows of assays.tsv have the class '1' in column 'active'",
        ),
        (
            ASSAYS.with_columns({"smiles": ["("] * 7}),
            ACTIVITY,
            "No row of assays.tsv is left: 1 of 1 different values of 'smiles' have no features",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named(table, recipe, message):
    with pytest.raises(DataError, match=message):
        make_store(table, recipe, featurize={"text": _lengths, "smiles": _atoms})


def test_a_missing_featurizer_is_named():
    with pytest.raises(DataError, match=re.escape("pass featurize={'text': function}")):
        make_store(TICKETS, CLASSES)


def test_classes_are_listed_in_numerical_order():
    assert classes_of(Table.of({"y": ["10", "9", ""]}), "y") == ("9", "10")
    with pytest.raises(DataError, match="'y' of the table has only 'a'"):
        classes_of(Table.of({"y": ["a", "a"]}), "y")
    with pytest.raises(DataError, match="has 3 values, and 2 classes are the most"):
        classes_of(Table.of({"y": list("abc")}), "y", most=2)
