"""The driver of prior-fitted tables: splits, baselines, the comparison, and a user's own file afterwards."""

import csv
import json

import numpy as np
import pytest

from experiments.flags.columns import FieldOptions
from experiments.flags.settings import UsageError
from experiments.pertask import driver as pertask
from experiments.pertask.options import PertaskSettings
from experiments.tables import data, driver, scores
from experiments.tables.options import TablesSettings, resolve_tables
from helpers.driver_runs import drive, unlock
from metajax.errors import DataError
from metajax.metrics import auroc
from metajax.types import Batch

SMALL = (
    "--rows=8 --queries=4 --columns=3 --most_ways=3 --width=8 --layers=1 --heads=2 --meta_batch=2 --steps=2 "
    "--eval_every=1 --checkpoint_every=1 --valid_episodes=4 --log_every=1 --repeats=3 --support=9 --trees=3"
).split()


def table(rows=40, name="made"):
    """Numbers, a category, missing cells, and classes of unequal sizes that the first column shows."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [rows - 12, 8, 4]).astype(np.int32)
    cells = np.stack([labels + rng.normal(size=rows) / 9, rng.integers(1, 4, rows)], 1)
    cells[::7, 0] = np.nan
    numbers = np.arange(1, rows + 1)
    return data.RealTable(name, cells.astype(np.float32), labels, ("a", "b", "c"), (0, 3), numbers)


@pytest.fixture(scope="module")
def loans(tmp_path_factory):
    """A user's file: two classes, an empty cell, and a row without a class."""
    path = tmp_path_factory.mktemp("loans") / "loans.csv"
    lines = ["income,job,paid", ",cook,yes", "3,smith,"]
    lines += [
        f"{i % 7},{'cook' if i % 3 else 'smith'},{'yes' if i % 7 > 3 else 'no'}" for i in range(30)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(loans, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    own = ["--test_dataset=table", f"--data_dir={loans}", "--target=paid"]
    assert (
        drive(*SMALL, *own, f"--workdir={workdir}", driver=driver, settings_class=TablesSettings)
        == 0
    )
    unlock()
    return workdir


def test_support_sets_keep_the_shares_of_the_classes():
    splits = data.list_splits(table(), 10, repeats=50, queries=0, seed=0)
    assert splits.supports.shape == (50, 10) and splits.queries.shape == (50, 30)
    both = np.sort(np.concatenate(splits, axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(40), (50, 1)))
    counts = [np.bincount(table().labels[rows]).tolist() for rows in splits.supports]
    assert counts == [[7, 2, 1]] * 50  # 7, 2 and 1 are the exact shares
    assert len(np.unique(splits.supports[:, 0])) > 10
    again = data.list_splits(table(), 10, repeats=3, queries=5, seed=0)
    np.testing.assert_array_equal(again.supports, splits.supports[:3])
    np.testing.assert_array_equal(again.queries, splits.queries[:3, :5])
    few = data.list_splits(table(), 3, repeats=5, queries=0, seed=1)
    assert all(sorted(table().labels[rows]) == [0, 1, 2] for rows in few.supports)


def write(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def read(path, **columns):
    """Reads a file whose target is the column y."""
    return data.read_real("table", path, "y", FieldOptions(**columns))


def test_unix_times_keep_their_seconds(tmp_path):
    seconds = np.random.default_rng(0).permutation(60)
    rows = [f"{1_760_000_000 + second},{'ab'[int(second > 29)]}" for second in seconds]
    own = read(write(tmp_path / "times.csv", "time,y", rows))
    assert own.cells.dtype == np.float32 and own.numbers.tolist() == list(range(1, 61))
    standard = (seconds - seconds.mean()) / seconds.std()
    np.testing.assert_allclose(own.cells[:, 0], standard, atol=1e-6)
    splits = data.list_splits(own, 20, repeats=4, queries=0, seed=0)
    found = scores.of_baselines(["logistic"], own, splits, trees=1, seed=0)
    assert (
        found["logistic"]["auroc"].min() > 0.999
    )  # of float32 times, of which one or two are left, 0.5


def test_missing_cells_and_classes_have_one_rule(tmp_path):
    rows = ["1,x,a", "NA,?,b", "?,nan,a", ",NA,b", "null,none,a", "2,x,n/a", "3,,b"]
    own = read(write(tmp_path / "gaps.csv", "age,kind,y", rows))
    np.testing.assert_array_equal(np.isnan(own.cells[:, 0]), [False, True, True, True, True, False])
    # "none" may be an answer: the codes are of none and x.
    np.testing.assert_array_equal(own.cells[:, 1], [2, np.nan, np.nan, np.nan, 1, np.nan])
    assert own.labels.tolist() == [0, 1, 0, 1, 0, 1] and own.categories == (0, 2)
    assert own.numbers.tolist() == [1, 2, 3, 4, 5, 7]
    assert own.notes == ("1 of 7 rows have no 'y' and are left out: rows 6",)


@pytest.mark.parametrize(
    ("columns", "features", "sizes"),
    [
        ({"features": "age,job"}, 2, (0, 2)),
        ({"features": "age", "categories": "zip"}, 2, (0, 3)),
        ({"features": "age,price,job", "categories": "zip,y2"}, 5, (0, 0, 2, 3, 2)),
    ],
)
def test_columns_are_those_that_are_named(columns, features, sizes, ids):
    own = read(ids, **columns)
    assert own.cells.shape == (1200, features) and own.categories == sizes


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """A user's file with a column of ids, and one of postal codes, which look like numbers."""
    rows = [
        f"c{i},{i % 50},{10 + i % 3},{'pq'[i % 2]},{'no'[i % 2]},{i / 7},{i % 2}"
        for i in range(1200)
    ]
    path = tmp_path_factory.mktemp("ids") / "ids.csv"
    return write(path, "id,age,zip,job,y,price,y2", rows)


@pytest.mark.parametrize(
    ("target", "columns", "message"),
    [
        (
            "y",
            {},
            "'id' of ids.csv has 1,200 different values, .*; name the columns to read by --features",
        ),
        ("y", {"features": "aeg"}, "no column 'aeg' .*; did you mean 'age'"),
        ("y", {"features": "age,y"}, "--features=y is the target, which is no feature"),
        ("Y", {"features": "age"}, "no column 'Y' .*; did you mean 'y'"),
        (
            "price",
            {"features": "age"},
            "has 1,200 values, and 20 classes are the most; make a column of",
        ),
        ("id", {"features": "age"}, "has 1,200 values, and 100 classes are the most; join some"),
    ],
)
def test_what_a_file_lacks_is_named_with_a_remedy_that_there_is(target, columns, message, ids):
    with pytest.raises((UsageError, DataError), match=message) as caught:
        data.read_real("table", ids, target, FieldOptions(**columns))
    assert "\n" not in str(caught.value) and "--text" not in str(caught.value)


def test_a_word_among_numbers_is_a_mistake_with_its_row(tmp_path):
    rows = [f"{i},{'ab'[i % 2]}" for i in range(30)]
    path = write(tmp_path / "typo.csv", "age,y", [*rows, "12a,a"])
    with pytest.raises(
        DataError, match=r"row 31 of typo.csv, column 'age': '12a' .* 30 of 31 values"
    ):
        read(path)
    assert read(path, categories="age").categories == (31,)


@pytest.mark.parametrize("support", [2, 40])
def test_a_support_set_that_does_not_fit_is_refused(support):
    with pytest.raises(DataError, match=rf"--support={support} does not fit made of 40 rows and 3"):
        data.list_splits(table(), support, repeats=2, queries=0, seed=0)


def test_baselines_read_standardized_numbers_and_coded_categories():
    own = table()
    support, queries = np.arange(0, 40, 2), np.arange(1, 40, 2)
    inputs, asked = scores.filled(own, support, queries)
    numbers = own.cells[support, 0]
    known = numbers[~np.isnan(numbers)]
    expected = np.where(np.isnan(numbers), 0, (numbers - known.mean()) / known.std())
    np.testing.assert_allclose(inputs[:, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(inputs[:, 1:].argmax(1) + 1, own.cells[support, 1])
    assert asked.shape == (20, 4) and not np.isnan(asked).any()


def test_the_area_leaves_out_classes_without_examples():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(12, 3)), np.tile([0, 1, 2], 4)
    metric = scores.auroc_of_classes()
    whole = Batch(None, labels.astype(np.int32))
    np.testing.assert_allclose(metric(outputs, whole), auroc()(outputs, whole), rtol=1e-5)
    # Of a class that nobody has, a logit changes nothing.
    more = np.concatenate([outputs, np.full((12, 1), -1e9)], axis=1)
    np.testing.assert_allclose(metric(more, whole), metric(outputs, whole), rtol=1e-5)
    one = Batch(None, np.zeros(12, np.int32))
    assert np.isnan(metric(outputs, one))


def test_learner_and_baselines_are_compared_on_the_same_splits(trained):
    result = json.loads((trained / "result.json").read_text())
    assert result["episodes"] == 3 and result["tables"] == ["table"]
    rows = result["comparison"]["9"]["table"]
    assert list(rows) == ["learner", "logistic", "forest", "knn"]
    assert result["test_auroc"] == pytest.approx(rows["learner"]["auroc"], rel=1e-6)
    assert rows["logistic"]["auroc"] > 0.9  # the classes are a threshold of a column
    with (trained / "splits.csv").open() as file:
        splits = list(csv.DictReader(file))
    assert [split["repeat"] for split in splits] == ["0", "1", "2"]
    # Thirty-one rows have a class, of which nine are the support set.
    assert {len(split["support_rows"].split()) for split in splits} == {9}
    assert {len(split["query_rows"].split()) for split in splits} == {22}
    # The rows are numbered as in the file, whose second one has no class.
    for split in splits:
        named = {int(n) for kind in ("support", "query") for n in split[f"{kind}_rows"].split()}
        assert named == {1, *range(3, 33)}
    differences = [float(s["learner_auroc"]) - float(s["forest_auroc"]) for s in splits]
    assert rows["forest"]["auroc_difference"] == pytest.approx(np.mean(differences), rel=1e-5)
    # Student's t of two degrees of freedom: t = a sqrt(2 / (1 - a^2)) at a = 0.95.
    quantile = 0.95 * (2 / (1 - 0.95**2)) ** 0.5
    width = quantile * np.std(differences, ddof=1) / 3**0.5
    assert rows["forest"]["auroc_difference_ci95"] == pytest.approx(width, rel=1e-5)


def test_a_finished_training_is_tested_on_other_tables(trained, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b,c,y\n" + "\n".join(f"{i},{i % 3},{i % 5},{i % 2}" for i in range(20)))
    own = ["--mode=evaluate", "--test_dataset=table", f"--data_dir={path}", "--target=y"]
    more = ["--support=4,8", "--baselines=none", f"--workdir={trained}"]
    assert drive(*SMALL, *own, *more, driver=driver, settings_class=TablesSettings) == 0
    unlock()
    result = json.loads((trained / "evaluation" / "result.json").read_text())
    assert list(result["comparison"]) == ["4", "8"]
    assert list(result["comparison"]["8"]["table"]) == ["learner"]


def test_the_learner_goes_on_with_tasks_of_a_users_table(trained, tmp_path):
    # Users are tasks of experiments.pertask; the parameters of made-up tables fit other columns and classes.
    path = tmp_path / "users.csv"
    lines = ["user,age,mood,late"]
    lines += [f"u{i // 8},{i % 5},{'ab'[i % 2]},{'yn'[i % 3 % 2]}" for i in range(96)]
    path.write_text("\n".join(lines) + "\n")
    flags = (
        f"--data_dir={path} --group=user --target=late --learner=in_context_tables --most_ways=3 --width=8 "
        "--layers=1 --heads=2 --support=4 --queries=3 --meta_batch=2 --steps=1 --eval_every=1 "
        f"--valid_episodes=2 --repeats=1 --baselines=none --init_from={trained} --init_head "
        f"--outer_lr=1e-30 --workdir={tmp_path / 'run'}"
    ).split()
    assert drive(*flags, driver=pertask, settings_class=PertaskSettings) == 0
    unlock()
    best = [next((run / "checkpoints").iterdir()) for run in (trained, tmp_path / "run")]
    assert all(best)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["model"] == "cells"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learner": "protonet"}, "--learner=protonet does not read tables"),
        ({"test_dataset": "irises"}, "--test_dataset=irises is unknown; did you mean iris"),
        ({"test_dataset": ","}, "--test_dataset= is unknown; use one of breast_cancer"),
        ({"features": "age"}, "--features is for --test_dataset=table"),
        ({"support": "32,x"}, "--support=32,x is not a list of different numbers"),
        ({"baselines": "svm"}, "--baselines=svm is unknown; use one of logistic"),
        ({"test_dataset": "table"}, "--target= do not go together"),
        ({"target": "y"}, "--target=y do not go together"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        resolve_tables(TablesSettings(**options))


def test_a_table_of_too_many_classes_is_refused(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("a,y\n" + "\n".join(f"{i},{i % 12}" for i in range(48)))
    settings = TablesSettings(test_dataset="table", data_dir=str(path), target="y", support="24")
    with pytest.raises(DataError, match="table has 12 classes, and the learner --most_ways=10"):
        driver.build(settings)
