"""The list of test tasks: shares of classes, sizes, and rows that depend on nothing else."""

import numpy as np
import pytest

from experiments.pertask import scores, splits
from experiments.pertask.splits import (
    Protocol,
    bucket_size,
    buckets,
    list_tests,
    split,
    units_of,
)
from helpers.task_tables import task_data
from metajax import metrics
from metajax.errors import DataError

PROTOCOL = Protocol(order="stratified", repeats=3, seed=0)


@pytest.mark.parametrize("order", ["stratified", "random", "first"])
def test_a_split_has_every_row_once(order):
    strata = np.repeat([0, 1], [13, 7])
    found = split(np.random.default_rng(0), 20, 6, order=order, strata=strata)
    assert [len(part) for part in found] == [6, 14]
    assert sorted(np.concatenate(found)) == list(range(20))
    if order == "first":
        assert found[0].tolist() == list(range(6)) and found[1].tolist() == list(range(6, 20))


def test_a_stratified_support_set_has_the_shares_of_the_classes_like_scikit_learn():
    sklearn = pytest.importorskip("sklearn.model_selection")
    strata = np.repeat([0, 1], [23, 41])
    splitter = sklearn.StratifiedShuffleSplit(50, train_size=16, test_size=48, random_state=0)
    theirs = {strata[chosen].sum() for chosen, _ in splitter.split(strata, strata)}
    drawn = [
        split(np.random.default_rng(seed), 64, 16, order="stratified", strata=strata)[0]
        for seed in range(50)
    ]
    assert {int(strata[chosen].sum()) for chosen in drawn} == theirs
    # Every row of a class is as likely as another one.
    times = np.bincount(np.concatenate(drawn), minlength=64)
    assert times.min() >= 1 and abs(times[:23].mean() - times[23:].mean()) < 3


def test_ties_of_remainders_are_broken_at_random():
    strata = np.repeat([0, 1], [10, 10])
    ones = [
        int(
            strata[
                split(np.random.default_rng(seed), 20, 5, order="stratified", strata=strata)[0]
            ].sum()
        )
        for seed in range(40)
    ]
    assert set(ones) == {2, 3} and 10 < ones.count(2) < 30


def test_a_rare_class_has_a_support_row():
    strata = np.repeat([0, 1], [63, 1])
    chosen, _ = split(np.random.default_rng(0), 64, 4, order="stratified", strata=strata)
    assert strata[chosen].sum() == 1 and len(chosen) == 4


def test_a_balanced_support_set_has_equally_many_of_each_class():
    strata = np.repeat([0, 1], [30, 9])
    chosen, rest = split(np.random.default_rng(0), 39, 8, order="balanced", strata=strata)
    assert strata[chosen].sum() == 4 and len(rest) == 31


def test_units_without_enough_of_a_class_are_no_balanced_tasks():
    data = task_data()
    protocol = PROTOCOL._replace(order="balanced")
    labels = np.asarray(data.stores["test"].targets)
    starts, counts = units_of(data.stores["test"], data.by_group)
    rarest = np.array(
        [
            np.bincount(labels[a : a + n], minlength=2).min()
            for a, n in zip(starts, counts, strict=True)
        ]
    )
    size = 2 * int(np.sort(rarest)[2] + 1)
    np.testing.assert_array_equal(
        list_tests(data, size, protocol).units, np.flatnonzero(rarest >= size // 2)
    )
    with pytest.raises(DataError, match="use a multiple of 2"):
        list_tests(data, 3, protocol)
    rare = np.zeros(len(labels), np.int32)
    rare[np.concatenate([starts, starts + 1])] = 1  # two rows of class 1 in each task
    few = data._replace(stores={"test": data.stores["test"]._replace(targets=rare)})
    with pytest.raises(DataError, match="no test task has more than 2; use --support=4 or less"):
        list_tests(few, 8, protocol)


def test_rows_of_a_task_do_not_depend_on_the_other_tasks():
    data = task_data()
    every = list_tests(data, 4, PROTOCOL)
    few = list_tests(data, 4, PROTOCOL._replace(units=2, repeats=2, queries=3))
    assert few.units.tolist() == [0, 5] and len(few.supports) == 4
    for place, task in enumerate((0, 1, 15, 16)):
        np.testing.assert_array_equal(few.supports[place], every.supports[task])
        np.testing.assert_array_equal(few.queries[place], every.queries[task][:3])
    other = list_tests(data, 4, PROTOCOL._replace(seed=1))
    assert not np.array_equal(other.digests(), every.digests())
    assert len(np.unique(every.digests(), axis=0)) == 18


def test_all_rows_of_a_unit_are_in_its_task():
    data = task_data()
    starts, counts = units_of(data.stores["test"], data.by_group)
    tests = list_tests(data, 4, PROTOCOL)
    for task, (support, queries) in enumerate(zip(tests.supports, tests.queries, strict=True)):
        unit = task // 3
        rows = np.sort(np.concatenate([support, queries]))
        np.testing.assert_array_equal(rows, starts[unit] + np.arange(counts[unit]))


def test_small_units_are_left_out_and_counted():
    data = task_data()
    _, counts = units_of(data.stores["test"], data.by_group)
    size = int(np.sort(counts)[3]) - 1
    tests = list_tests(data, size, PROTOCOL)
    assert tests.left_out == 6 - len(tests.units) > 0
    assert (counts[tests.units] > size).all()
    with pytest.raises(DataError, match=r"use --support=\d+") as error:
        list_tests(data, 1000, PROTOCOL)
    assert "\n" not in str(error.value) and f"has {counts.max()}" in str(error.value)


@pytest.mark.parametrize(("few", "sizes"), [(0, [32, 64]), (splits.FEW_ROWS, [64])])
def test_buckets_hold_every_task_once_with_its_rows(few, sizes, monkeypatch):
    monkeypatch.setattr(splits, "FEW_ROWS", few)
    data = task_data(rows=45)
    tests = list_tests(data, 4, PROTOCOL)
    seen, found = [], list(buckets(tests, data.stores["test"]))
    assert [bucket.sampler.queries for bucket in found] == sizes
    for bucket in found:
        rows, weights = (np.asarray(leaf) for leaf in bucket.listed.draws)
        for place, task in enumerate(bucket.tasks):
            asked = rows[place, 4:][weights[place, 4:] > 0]
            np.testing.assert_array_equal(asked, tests.queries[task])
            np.testing.assert_array_equal(rows[place, :4], tests.supports[task])
        seen += bucket.tasks.tolist()
    assert sorted(seen) == list(range(18))


def test_a_bucket_joins_the_next_if_that_adds_few_rows(monkeypatch):
    monkeypatch.setattr(splits, "FEW_ROWS", 3 * 16)
    queries = [np.zeros(n, int) for n in (*[9] * 2, *[20] * 3, 100, *[300] * 2, 3000)]
    tests = splits.Tests(2, np.arange(9), 0, [np.zeros(2, int)] * 9, queries, 1)
    found = buckets(tests, task_data().stores["test"])
    # Two of 16 rows join three of 32; five more rows of 96 would be too many, and so on.
    shown = [(bucket.sampler.queries, bucket.tasks.tolist()) for bucket in found]
    assert shown == [(32, [0, 1, 2, 3, 4]), (128, [5]), (512, [6, 7]), (4096, [8])]


def test_buckets_are_powers_of_two():
    assert [bucket_size(n) for n in (1, 16, 17, 32, 3578)] == [16, 16, 32, 32, 4096]


def test_repeats_are_averaged_where_they_are_defined():
    tests = list_tests(task_data(), 4, PROTOCOL)
    values = np.arange(18.0)
    values[[0, 3, 4, 5]] = np.nan
    np.testing.assert_array_equal(tests.by_unit(values), [1.5, np.nan, 7, 10, 13, 16])


def test_an_answer_that_is_not_finite_stays_in_an_error_and_an_area_is_left_out():
    tests = list_tests(task_data(), 4, PROTOCOL)
    values = np.arange(18.0)
    values[3] = np.nan
    named = {"mae": metrics.mae(), "auroc": metrics.auroc()}
    means = scores.over_repeats(tests, {name: values for name in named}, named)
    np.testing.assert_array_equal(means["mae"], [1, np.nan, 7, 10, 13, 16])
    np.testing.assert_array_equal(means["auroc"], [1, 4.5, 7, 10, 13, 16])
    assert np.isnan(scores.summary_of(named["mae"], means["mae"]).value)
    lacking = scores.summary_of(named["auroc"], np.array([0.5, np.nan, 0.7]))
    assert (lacking.value, lacking.left_out) == (pytest.approx(0.6), 1)
