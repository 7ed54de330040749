"""Rows in groups, and samplers of rows of any kind; `test_store` tests the samplers of images."""

import collections
import doctest
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import metajax
from metajax.episodes import listed as lists
from metajax.episodes.changes import label_noise
from metajax.episodes.choose import choose_within
from metajax.episodes.group_sampler import GroupSampler
from metajax.episodes.listed import BY_TASK, ListedSampler, listed_rows
from metajax.episodes.rows import Rows
from metajax.episodes.split_sampler import SplitSampler
from metajax.errors import DataError
from metajax.evaluate import make_evaluate
from metajax.train import draw_tasks

ROOT = Path(__file__).parents[2]
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3000)
# Group of each row, out of order, and parent of each group.
GROUPS = np.array([2, 0, 1, 0, 2, 1, 0, 3, 3, 3, 3, 4])
PARENTS = np.array([0, 1, 1, 0, 2])


def features(size=12):
    """Makes a dict of numbers and categories that identify their rows."""
    return {"number": np.arange(size) / 2.0, "category": np.arange(size, dtype=np.int32)}


STORE = Rows.from_groups(features(), GROUPS, parents=PARENTS)
# The row of the user's that each row of the store is, of groups 0 and 3, then 1 and 2, then 4.
ORDER = [1, 3, 6, 7, 8, 9, 10, 2, 5, 0, 4, 11]


def many(function, store=STORE, keys=KEYS):
    """Draws a task for each key, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function, (None, 0)))(store, keys))


def test_rows_are_sorted_by_parent_and_group_and_stay_in_order():
    np.testing.assert_array_equal(STORE.features["category"], ORDER)
    np.testing.assert_array_equal(STORE.features["number"], np.array(ORDER) / 2)
    assert STORE.rows is None
    np.testing.assert_array_equal(STORE.starts, [0, 3, 7, 9, 11])
    np.testing.assert_array_equal(STORE.counts, [3, 4, 2, 2, 1])
    np.testing.assert_array_equal(STORE.parents.starts, [0, 2, 4])
    np.testing.assert_array_equal(STORE.parents.counts, [2, 2, 1])


def test_rows_share_features_and_have_targets_of_their_own():
    rows, groups = [4, 0, 4, 2], [1, 0, 0, 1]
    store = Rows.from_groups(features(5), groups, rows=rows, targets={"y": np.arange(4.0)})
    np.testing.assert_array_equal(store.rows, [0, 4, 4, 2])
    np.testing.assert_array_equal(store.targets_of(jnp.arange(4))["y"], [1, 2, 0, 3])
    np.testing.assert_array_equal(store.take(jnp.array([[1], [3]]))["category"], [[4], [2]])
    assert Rows.from_groups(features(3), [0, 0, 1], rows=[0, 1, 2]).rows is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": GROUPS[:-1]},
            "There are 11 groups and 12 features; give the same number of both",
        ),
        ({"groups": GROUPS.astype(float)}, "The groups are float64 of shape .*, not integers"),
        ({"groups": GROUPS - 1}, "A group is -1; number them from 0 without gaps, as np.unique"),
        (
            {"groups": np.where(GROUPS == 1, 7, GROUPS)},
            "There is a group 7, but nothing is in group 1",
        ),
        ({"parents": [0, 1]}, "There are 2 parents and 5 groups; give the same number of both"),
        ({"parents": [0, 2, 2, 0, 0]}, "There is a parent 2, but nothing is in parent 1"),
        ({"rows": GROUPS + 8}, "The rows are 8 to 12, and the features are 0 to 11; use numbers"),
        (
            {"targets": np.zeros(5)},
            "There are 5 targets and 12 groups; give the same number of both",
        ),
        (
            {"features": {"a": np.zeros(3), "b": np.zeros(2)}},
            "arrays of 2 and 3 rows; give all leaves",
        ),
        ({"features": {"user": np.arange(12) + 2**40}}, "user has integers from 1099511627776"),
        (
            {"targets": -np.arange(12) * 2**30},
            "An array has integers from -11811160064 to 0, beyond",
        ),
        ({"features": {"word": np.array(["a"] * 12)}}, "word is <U1 of shape .*; use numbers"),
    ],
)
def test_what_fits_no_store_is_one_line(options, message):
    options = {"features": features(), "groups": GROUPS, **options}
    with pytest.raises(DataError, match=message) as raised:
        Rows.from_groups(options.pop("features"), options.pop("groups"), **options)
    assert "\n" not in str(raised.value)


def test_every_ordered_choice_of_groups_and_rows_is_as_likely():
    store = Rows.from_groups(np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    draws = many(GroupSampler(ways=2, shots=1, queries=1).identify, store)
    counts = collections.Counter(map(tuple, draws.rows.reshape(-1, 4)))
    expected = {
        (2 * a + i, 2 * a + 1 - i, 2 * b + j, 2 * b + 1 - j)
        for a, b in itertools.permutations(range(3), 2)
        for i, j in itertools.product(range(2), repeat=2)
    }
    assert set(counts) == expected
    # Chi-squared of 23 degrees of freedom: 99.99% lie below 57.
    assert sum((count - 125) ** 2 / 125 for count in counts.values()) < 57


def test_groups_of_a_task_are_of_one_parent_that_has_enough():
    sampler = GroupSampler(ways=2, shots=1, queries=1, within=True)
    draws = many(sampler.identify)
    groups = np.asarray(STORE.groups_of(draws.rows[:, :, 0]))
    counts = collections.Counter(map(tuple, groups))
    assert set(counts) == {(0, 1), (1, 0), (2, 3), (3, 2)}, "the parent of one group is not drawn"
    assert max(abs(count - 750) for count in counts.values()) < 5 * 750**0.5
    given = many(lambda store, key: sampler.identify(store, key, 1).rows)
    assert given.min() == 7 and given.max() == 10


def test_parents_of_fewer_groups_are_padded_and_the_padding_counts_for_nothing():
    store = Rows.from_groups(features(10), np.arange(10) // 2, parents=[0, 0, 0, 1, 1])
    sampler = GroupSampler(ways=3, shots=1, queries=1, within=True, min_ways=2)

    def loss(episode):
        total = jnp.sum(episode.query.weights * jnp.sin(episode.query.inputs["number"]))
        return total / jnp.sum(episode.query.weights)

    episodes = many(sampler, store)
    weights, inputs = episodes.support.weights, episodes.support.inputs["category"]
    assert {tuple(row) for row in weights} == {(1, 1, 0), (1, 1, 1)}
    small = inputs[:, 0] >= 6
    assert small.any() and not weights[small, 2].any()
    assert set(inputs[small].ravel()) == {6, 7, 8, 9}, "padding repeats rows of the task's own"
    assert weights[~small, 2].mean() == pytest.approx(0.5, abs=0.07), "two or three ways alike"
    losses = jax.vmap(loss)(jax.tree.map(jnp.asarray, episodes))
    alone = jax.tree.map(lambda leaf: leaf[:, :2], episodes.query)._replace(weights=None)
    for i in np.flatnonzero(weights[:, 2] == 0)[:5]:
        assert losses[i] == pytest.approx(np.sin(alone.inputs["number"][i]).mean(), rel=1e-6)


def test_groups_keep_their_own_labels_or_targets():
    sampler = GroupSampler(ways=2, shots=1, queries=1, own_targets=True)
    store = Rows.from_groups(features(6), np.arange(6) // 2)
    episodes = many(sampler, store)
    np.testing.assert_array_equal(episodes.query.targets, episodes.query.inputs["category"] // 2)
    rated = store._replace(targets={"stars": 10 * store.features["category"]})
    episodes = many(sampler, rated)
    np.testing.assert_array_equal(
        episodes.support.targets["stars"], 10 * episodes.support.inputs["category"]
    )


def test_a_view_sees_the_store_the_key_the_features_and_the_variant_of_each_row():
    def view(store, key, examples):
        return store.constants + examples.features * 10 + examples.variants[:, None]

    store = Rows.from_groups(np.arange(4), [0, 0, 1, 1], constants=jnp.int32(100))
    sampler = GroupSampler(ways=4, shots=1, queries=1, variants=2, view=view)
    episodes = many(sampler, store)
    # Two groups of two rows, each group being two classes.
    seen = np.stack([episodes.support.inputs, episodes.query.inputs], -1) - 100
    assert (seen % 10 == seen[..., :1] % 10).all() and (seen // 20 == seen[..., :1] // 20).all()
    classes = {tuple(sorted(task)) for task in (seen[..., 0] // 20 * 10 + seen[..., 0] % 10)}
    assert classes == {(0, 1, 10, 11)}


@pytest.mark.parametrize("order", ["random", "first", "stratified"])
def test_no_row_is_in_both_halves_and_short_parents_are_padded(order):
    sampler = SplitSampler(support=3, queries=4, order=order)
    draws = many(sampler.identify)
    first = draws.rows.min(1)
    assert set(first) <= set(range(11)), "the parent of one row is not drawn"
    for rows, weights in zip(draws.rows, draws.weights, strict=True):
        support, queries = rows[:3], rows[3:]
        large = rows[0] < 7
        assert weights.tolist() == [1] * 7 if large else [1, 1, 1, 1, 0, 0, 0]
        kept = np.concatenate([support[weights[:3] > 0], queries[weights[3:] > 0]])
        assert sorted(kept) == (list(range(7)) if large else [7, 8, 9, 10])
        assert set(support) | set(queries) == set(kept) and not set(support) & set(queries)
    large = draws.rows[draws.rows[:, 0] < 7]
    assert len(large) / 3000 == pytest.approx(0.5, abs=0.06)
    if order == "first":
        np.testing.assert_array_equal(large, np.tile(np.arange(7), (len(large), 1)))


def test_every_ordered_split_is_as_likely():
    store = Rows.from_groups(np.arange(4), np.zeros(4, int))
    draws = many(SplitSampler(support=1, queries=2).identify, store)
    counts = collections.Counter(map(tuple, draws.rows))
    assert set(counts) == set(itertools.permutations(range(4), 3))
    assert sum((count - 125) ** 2 / 125 for count in counts.values()) < 57


def test_strata_have_their_share_and_rows_of_a_stratum_are_alike():
    groups = np.repeat([0, 1, 2], [3, 7, 2])
    store = Rows.from_groups(np.arange(12), groups, parents=[0, 0, 0])
    draws = many(SplitSampler(support=6, queries=4, order="stratified").identify, store)
    for half, size in ((draws.rows[:, :6], 6), (draws.rows[:, 6:], 4)):
        shares = np.stack([(groups[half] == g).sum(1) for g in range(3)])
        exact = size * np.array([3, 7, 2]) / 12
        np.testing.assert_allclose(shares.mean(1), exact, atol=0.05)
        assert (np.abs(shares - exact[:, None]) < (1 if size == 6 else 2)).all()
        often = np.bincount(half.ravel(), minlength=12) / 3000
        np.testing.assert_allclose(often, size / 12, atol=0.05)
    # Two of the seven are drawn together as often as any other two.
    pairs = collections.Counter(
        pair
        for task in draws.rows[:, :6]
        for pair in itertools.combinations(sorted(task), 2)
        if groups[list(pair)].tolist() == [1, 1]
    )
    assert len(pairs) == 21 and max(pairs.values()) < 1.5 * min(pairs.values())


def test_a_rare_stratum_has_a_support_row_where_there_is_room():
    sizes = [1, 19, 2, 5, *[1] * 4, 18]
    groups = np.repeat(np.arange(9), sizes)
    store = Rows.from_groups(np.arange(49), groups, parents=[0, 0, 0, 1, 2, 2, 2, 2, 2])
    draws = many(SplitSampler(support=4, queries=9, order="stratified").identify, store)
    own = draws.rows[draws.rows[:, 0] < 22]
    assert (np.diff(np.sort(own)) > 0).all()
    support, queries = own[:, :4], own[:, 4:]
    # Shares of four rows are 0.2, 3.5 and 0.4; the largest stratum gives what the others lack.
    assert (np.sort(groups[support]) == [0, 1, 1, 2]).all()
    often = np.bincount(support.ravel()) / len(own)
    np.testing.assert_allclose(often, np.repeat([1, 2 / 19, 1 / 2], sizes[:3]), atol=0.05)
    # The queries have the shares of the rows that are left: one of 18 is of the third stratum.
    np.testing.assert_allclose((groups[queries] == 2).mean(), 1 / 18, atol=0.01)
    assert set(groups[draws.rows].max(1)) == {2, 3, 8}  # the second parent has one stratum
    # Four rows have no room for the five strata of the third parent, and keep their shares.
    support = draws.rows[draws.rows[:, 0] >= 27, :4]
    np.testing.assert_allclose((groups[support] == 8).mean(), 18 / 22, atol=0.02)


def test_integers_of_several_ranges_are_different():
    starts, sizes, ranks = (
        jnp.array(x) for x in ([0, 0, 5, 5, 5], [3, 3, 3, 3, 3], [0, 1, 0, 1, 2])
    )
    drawn = np.asarray(jax.vmap(lambda key: choose_within(key, starts, sizes, ranks))(KEYS))
    counts = collections.Counter(map(tuple, drawn))
    expected = itertools.product(
        itertools.permutations(range(3), 2), itertools.permutations(range(5, 8))
    )
    assert set(counts) == {a + b for a, b in expected}
    assert sum((count - 3000 / 36) ** 2 / (3000 / 36) for count in counts.values()) < 76


def test_one_group_is_split_in_its_order_with_its_targets():
    store = STORE._replace(targets=-STORE.features["category"])
    sampler = SplitSampler(support=2, queries=2, order="first", by_group=True)
    episode = sampler.episode(store, KEY, sampler.identify(store, KEY, 1))
    np.testing.assert_array_equal(episode.support.targets, [-7, -8])
    np.testing.assert_array_equal(episode.query.inputs["category"], [9, 10])
    labels = many(SplitSampler(support=2, queries=2)).query
    large = labels.inputs["category"] % 12
    expected = np.isin(large, [7, 8, 9, 10, 0, 4]).astype(int)  # the second group of its parent
    np.testing.assert_array_equal(labels.targets, expected)


SAMPLERS = {
    "groups": GroupSampler(ways=2, shots=1, queries=1, within=True, min_ways=1),
    "split": SplitSampler(support=2, queries=3, order="stratified"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_task_is_the_same_however_it_is_computed(name):
    sampler, keys = SAMPLERS[name], KEYS[:4]
    shared = Rows.from_groups(features(), GROUPS, rows=np.arange(12)[::-1], parents=PARENTS)
    assert shared.rows is not None
    at_once = many(sampler, shared, keys)
    one_by_one = [sampler(shared, key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    over = jax.shard_map(
        jax.vmap(sampler, (None, 0)),
        mesh=jax.make_mesh((2,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(P(), P("tasks")),
        out_specs=P("tasks"),
        check_vma=False,
    )
    leaves, tree = jax.tree.flatten(shared)

    def drawn(leaves, data):
        episode = sampler(tree.unflatten(leaves), jax.random.wrap_key_data(data))
        return jax.tree.leaves(episode)

    data = jax.random.key_data(keys[0])
    exported = jax.export.export(jax.jit(drawn))(leaves, data)
    again = exported.call(leaves, data)
    jax.tree.map(np.testing.assert_array_equal, at_once, stacked)
    jax.tree.map(np.testing.assert_array_equal, at_once, jax.jit(over)(shared, keys))
    first = [leaf[0] for leaf in jax.tree.leaves(at_once)]
    jax.tree.map(np.testing.assert_array_equal, first, list(again))


def test_features_that_were_read_elsewhere_are_taken():
    for sampler in SAMPLERS.values():
        draw = sampler.identify(STORE, KEY)
        found = STORE.take(draw.rows)
        jax.tree.map(np.testing.assert_array_equal, sampler(STORE, KEY, found), sampler(STORE, KEY))


def test_a_list_of_parents_and_repeats_is_one_test_under_any_key():
    sampler = ListedSampler(SplitSampler(support=2, queries=2))
    parents, repeats = jnp.repeat(jnp.arange(2), 10), jnp.tile(jnp.arange(10), 2)
    listed = sampler.of_parents(STORE, KEY, parents, repeats)
    draw = jax.vmap(sampler, (BY_TASK, 0))
    one, other = (draw(listed, jax.random.split(jax.random.key(seed), 20)) for seed in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    rows = np.asarray(listed.draws.rows)
    assert (rows[:10] < 7).all() and (rows[10:] >= 7).all() and (rows[10:] < 11).all()
    assert len({tuple(task) for task in rows[:10]}) == 10, "repeats differ"
    # Each task is a function of its pair, at any place in the list.
    last = sampler.of_parents(STORE, KEY, parents[-3:], repeats[-3:])
    np.testing.assert_array_equal(last.draws.rows, rows[-3:])
    named = draw_tasks(sampler.identify, listed, KEY, 0, jnp.arange(20), by_task=BY_TASK)[1]
    np.testing.assert_array_equal(named.rows, rows)


SPLIT = SplitSampler(support=2, queries=2)
WITHIN = GroupSampler(ways=2, shots=1, queries=1, within=True)


@pytest.mark.parametrize(
    ("sampler", "parents", "message"),
    [
        (SPLIT, [0, 7], "A task has parent 7, but the parents are 0 to 2"),
        (SPLIT, [-1], "A task has parent -1, but the parents are 0 to 2"),
        (SPLIT, [1, 2], "Parent 2 of data has one row, and a split"),
        (WITHIN, [0, 2], "2 ways are more than the 1 groups of parent 2 of data"),
    ],
)
def test_lists_of_parents_that_do_not_fit_are_refused(sampler, parents, message):
    size = 13 if sampler is WITHIN else 12  # two rows in every group
    store = Rows.from_groups(features(size), [*GROUPS, 4][:size], parents=PARENTS)
    with pytest.raises(DataError, match=message):
        ListedSampler(sampler).of_parents(store, KEY, parents, [0] * len(parents))


def test_a_list_of_rows_is_evaluated_as_it_stands():
    split = SplitSampler(support=3, queries=2)
    listed = listed_rows(split, STORE, support=[[0, 1, 2], [7]], queries=[[4], [8, 10]])
    sampler = ListedSampler(split)
    episodes = jax.vmap(sampler, (BY_TASK, 0))(listed, KEYS[:2])
    np.testing.assert_array_equal(episodes.support.weights, [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(
        episodes.support.inputs["category"], np.take(ORDER, [[0, 1, 2], [7, 7, 7]])
    )
    np.testing.assert_array_equal(episodes.query.weights, [[1, 0], [1, 1]])

    def total(meta, key, episode):
        del key
        rows = episode.query.weights * episode.query.inputs["category"]
        return rows.sum(), {"total": meta * rows.sum()}

    evaluate = make_evaluate(total, sampler, by_task=BY_TASK)
    scores = evaluate(jnp.float32(2), listed, KEY, jnp.arange(2))
    np.testing.assert_array_equal(scores["total"], [2 * ORDER[4], 2 * (ORDER[8] + ORDER[10])])
    with pytest.raises(DataError, match="Task 1 has 4 rows for its support; use 1 to 3"):
        listed_rows(split, STORE, support=[[0], [0, 1, 2, 3]], queries=[[4], [5]])
    with pytest.raises(DataError, match="Task 0 has rows 3 to 12 for its queries; use 0 to 11"):
        listed_rows(split, STORE, support=[[0]], queries=[[12, 3]])
    with pytest.raises(DataError, match="There are 1 support sets and 2 sets of queries; give the"):
        listed_rows(split, STORE, support=[[0]], queries=[[1], [2]])


def test_samplers_and_stores_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="3 ways are more than the 2 groups of any parent of test"):
        GroupSampler(ways=3, shots=1, queries=1, within=True).check(STORE, name="test")
    with pytest.raises(DataError, match="need 2 rows per group, but a group of data has 1"):
        GroupSampler(ways=3, shots=1, queries=1).check(STORE)
    with pytest.raises(
        DataError, match="have no targets, and all rows of a group have the same label"
    ):
        SplitSampler(support=1, queries=1, by_group=True).check(STORE)
    with pytest.raises(DataError, match="a parent of data has 2 groups, and its rows are sorted"):
        SplitSampler(support=1, queries=1, order="first").check(STORE)
    users = Rows.from_groups(features(), GROUPS, parents=np.arange(5))
    SplitSampler(support=1, queries=1, order="first").check(users)
    with pytest.raises(ValueError, match="order is 'last'; use random, first, stratified"):
        SplitSampler(support=1, queries=1, order="last")
    with pytest.raises(ValueError, match="A single group has no strata"):
        SplitSampler(support=1, queries=1, order="stratified", by_group=True)
    with pytest.raises(ValueError, match=r"A parent is given, .*; use within=True"):
        GroupSampler(ways=1, shots=1, queries=1).identify(STORE, KEY, 0)
    with pytest.raises(ValueError, match="changes need tasks whose labels are 0 to ways - 1"):
        GroupSampler(ways=1, shots=1, queries=1, own_targets=True, changes=(label_noise,))
    with pytest.raises(ValueError, match="variants is 0"):
        GroupSampler(ways=1, shots=1, queries=1, variants=0)


def test_the_example_of_lists_runs():
    found = doctest.testmod(lists, extraglobs={"metajax": metajax})
    assert found.attempted > 10 and not found.failed
