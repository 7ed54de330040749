"""Splits of tasks: disjoint, repeatable, of columns and of lists, and strict about both."""

import json

import numpy as np
import pytest

from metajax.data import splits
from metajax.data.tables import Recipe, Table, load_table, split_table
from metajax.errors import DataError

SPLITS = ("train", "valid", "test")


def _users(count=10, rows=3):
    users = [f"u{user}" for user in range(count) for _ in range(rows)]
    return Table.of(
        {"user": users, "x": range(len(users)), "stars": [row % 5 for row in range(len(users))]},
        source="ratings.csv",
    )


USERS = Recipe(numbers=("x",), group="user", target="stars")


def _all(parts):
    return [value for values in parts.values() for value in values]


def _tasks(found, column="user"):
    return {split: sorted(set(getattr(found, split).text(column))) for split in SPLITS}


def test_random_splits_are_the_splits_of_classes_of_images():
    table = _users()
    found = _tasks(split_table(table, USERS, seed=3))
    names = tuple(f"u{user}" for user in range(10))
    classes = splits.Classes(names, ("",) * 10, np.full(10, 3))
    expected = splits.split_classes(classes, splits.random(), seed=3)
    assert found == {split: [names[i] for i in expected[split]] for split in SPLITS}
    assert found != _tasks(split_table(table, USERS, seed=4))
    shuffled = table.select(np.random.default_rng(0).permutation(len(table)))
    assert found == _tasks(split_table(shuffled, USERS, seed=3))


def test_parents_are_divided_where_there_are_some():
    table = _users().with_columns({"country": [f"c{row % 6}" for row in range(30)]})
    found = split_table(table, USERS._replace(parent="country"))
    countries = _tasks(found, "country")
    assert sorted(_all(countries)) == [f"c{i}" for i in range(6)]
    assert found.description.startswith(
        "ratings.csv, split random (seed 0): 4 train, 1 valid, 1 test values of country; 20, 5, 5 rows"
    )


def test_small_and_large_tasks_are_in_no_split():
    users = ["a"] * 5 + ["b"] * 2 + ["c"] * 3 + ["d"] * 4 + ["e"] * 9
    table = Table.of({"user": users, "x": range(23), "stars": [0] * 23})
    found = split_table(table, USERS, least=3, most=5)
    assert sorted(_all(_tasks(found))) == ["a", "c", "d"]
    note = "2 of 5 values of 'user' are in no split, such as those without 3 to 5 rows"
    assert found.notes == (note,)
    with pytest.raises(
        DataError,
        match=r"'user' of the table has 2 values of 5 rows or more, and three splits of 1 or more need 3; "
        r"4 rows would leave as many",
    ):
        split_table(table, USERS, least=5)
    with pytest.raises(
        DataError, match="has 5 values of 1 rows or more, and three splits of 2 or more"
    ):
        split_table(table, USERS, min_tasks=2)


def test_rows_without_a_task_are_in_no_split():
    table = _users().with_columns({"user": ["", *_users().text("user")[1:]]})
    found = split_table(table, USERS)
    assert sum(len(getattr(found, split)) for split in SPLITS) == 29
    assert found.notes == ("1 of 30 rows have no 'user' and are in no split",)


FOLDS = {"u0": "Train", "u1": "training", "u2": "dev", "u3": "test"}


def _folds(folds):
    table = _users(len(folds), 2)
    return table.with_columns({"fold": [folds[user] for user in table.text("user")]})


def test_a_column_names_the_splits():
    found = _tasks(split_table(_folds(FOLDS), USERS, split="column:fold"))
    assert found == {"train": ["u0", "u1"], "valid": ["u2"], "test": ["u3"]}


def test_without_validation_rows_some_training_tasks_are_drawn():
    folds = {f"u{i}": "train" if i < 10 else "test" for i in range(12)}
    found = split_table(_folds(folds), USERS, split="column:fold", seed=1)
    drawn = sorted(splits.shuffled([f"u{i}" for i in range(10)], 1)[:2])
    tasks = _tasks(found)
    assert tasks["valid"] == drawn and tasks["test"] == ["u10", "u11"]
    assert tasks["train"] == sorted({f"u{i}" for i in range(10)} - set(drawn))


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (
            {**FOLDS, "u1": "holdout"},
            "'fold' of ratings.csv has the values 'holdout', which name no split",
        ),
        ({**FOLDS, "u3": "dev"}, "names no rows for test"),
        (
            {"u0": "train", "u1": "test"},
            "has no validation rows, and its training rows have 1 tasks",
        ),
    ],
)
def test_columns_that_name_no_splits_are_refused(folds, message):
    with pytest.raises(DataError, match=message):
        split_table(_folds(folds), USERS, split="column:fold")


def test_a_task_of_two_splits_is_refused():
    table = _folds(FOLDS)
    folds = table.text("fold")
    folds[0] = "test"
    with pytest.raises(
        DataError, match=r"1 values of 'user' are in two splits: 'u0', .* train and test"
    ):
        split_table(table.with_columns({"fold": folds}), USERS, split="column:fold")


def test_a_file_lists_the_tasks(tmp_path):
    names = {"train": ["u3", "u1"], "valid": ["u0"], "test": ["u2"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(names))
    found = split_table(_users(4), USERS, split_file=str(path))
    assert _tasks(found) == {split: sorted(users) for split, users in names.items()}
    path.write_text(json.dumps({**names, "test": ["u9"]}))
    with pytest.raises(DataError, match="'u9'"):
        split_table(_users(4), USERS, split_file=str(path))
    with pytest.raises(DataError, match="takes no split_file"):
        split_table(_users(4), USERS, split="random", split_file=str(path))


def test_a_single_task_is_all_for_test():
    recipe = Recipe(numbers=("x",), target="stars")
    found = split_table(_users(), recipe)
    assert len(found.test) == 30 and not len(found.train) and not len(found.valid)
    stores = found.stores()
    assert stores["train"] is None and stores["test"].rows.counts.tolist() == [30]
    with pytest.raises(DataError, match="is a single task"):
        split_table(_users(), recipe, split="random")


def test_unknown_splits_have_the_nearest_names():
    with pytest.raises(
        DataError, match=r"'randon' does not fit ratings.csv; did you mean 'random'"
    ):
        split_table(_users(), USERS, split="randon")
    with pytest.raises(DataError, match="needs a split_file"):
        split_table(_users(), USERS, split="file")


def test_stores_have_the_statistics_of_the_training_rows():
    found = split_table(_users(), USERS)
    stores = found.stores()
    train = found.train.floats("x")
    np.testing.assert_allclose(
        stores["test"].rows.take(np.arange(len(found.test)))["numbers"].ravel(),
        (np.sort(found.test.floats("x")) - train.mean()) / train.std(),
        rtol=1e-5,
    )


def test_fingerprints_depend_on_the_rows_in_use_and_on_the_split():
    found = split_table(_users(), USERS)
    more = split_table(_users().with_columns({"unused": range(30)}), USERS)
    assert found.fingerprint() == more.fingerprint()
    others = [
        split_table(_users(), USERS, seed=1),
        split_table(_users().with_columns({"x": range(1, 31)}), USERS),
        split_table(_users(), USERS._replace(categories=("x",), numbers=())),
    ]
    assert len({found.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_file_of_ones_own_is_read_and_split(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text(
        "id,message,topic,fold\n1,hi,a,train\n2,ho,b,train\n3,lost,c,val\n4,bye,d,test\n"
    )
    recipe = Recipe(text=("message",), group="topic")
    found = load_table("table", data_dir=path, recipe=recipe, split="column:fold")
    assert _tasks(found, "topic") == {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}
    assert list(found.train.columns) == ["message", "topic", "fold"]  # no others are read
    with pytest.raises(DataError, match=r"no column 'topik' among .*did you mean 'topic'"):
        load_table("table", data_dir=path, recipe=recipe._replace(group="topik"))
    with pytest.raises(DataError, match="set data_dir to its path"):
        load_table("table", recipe=recipe)
    with pytest.raises(DataError, match="needs a recipe"):
        load_table("table", data_dir=path)
    with pytest.raises(DataError, match="no table 'bankin77'; did you mean 'banking77'"):
        load_table("bankin77", data_dir=path)
