"""Predicates of paths, and trees taken apart and merged."""

import jax
import jax.numpy as jnp
import pytest

from metajax import trees

PARAMS = {
    "body": {"kernel": jnp.ones((2, 3))},
    "head": {"bias": jnp.zeros(4), "kernel": jnp.ones(5)},
}


def test_paths_join_keys_with_slashes():
    assert trees.paths(PARAMS) == ["body/kernel", "head/bias", "head/kernel"]


def test_split_then_merge_gives_the_tree_back():
    head, body = trees.split(PARAMS, trees.under("head"))
    assert trees.paths(head) == ["head/bias", "head/kernel"]
    assert trees.paths(body) == ["body/kernel"]
    merged = trees.merge(head, body)
    assert trees.paths(merged) == trees.paths(PARAMS)
    assert merged["head"]["bias"] is PARAMS["head"]["bias"]


def test_under_matches_whole_components_only():
    assert trees.under("head")("a/head/bias")
    assert not trees.under("head")("a/header/bias")


def test_selecting_nothing_names_the_leaves():
    with pytest.raises(
        ValueError, match=r"under\('tail'\) selects no leaf; .*body/kernel, head/bias"
    ):
        trees.split(PARAMS, trees.under("tail"))


def test_size_counts_numbers():
    assert trees.size(PARAMS) == 15


def test_a_name_may_be_a_path():
    tree = {"layers": [{"w": 1}, {"w": 2}], "other": {"layers": [3, 4]}, "players": [5, 6]}
    chosen, _ = trees.split(tree, trees.under("layers/1"))
    assert jax.tree.leaves(chosen) == [2, 4]
    chosen, _ = trees.split(tree, trees.below("layers/1"))
    assert jax.tree.leaves(chosen) == [2]
    with pytest.raises(ValueError, match=r"under\('ayers/1'\) selects no leaf"):
        trees.split(tree, trees.under("ayers/1"))


def test_predicates_compose_and_have_names():
    head = trees.within("model", trees.under("head"))
    assert [
        head(path) for path in ("model/head/bias", "warp/head", "model/body", "head/model")
    ] == [*(True, False, False, False)]
    neither = trees.but(head, trees.below("warp"))
    assert [neither(path) for path in ("model/head", "warp/head", "model/body")] == [0, 0, 1]
    with pytest.raises(
        ValueError, match=r"but\(within\('model', under\('head'\)\), below\('w'\)\) sel"
    ):
        trees.split({"w": 1}, trees.but(head, trees.below("w")))


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(4)}, "3 and 4"),
        ({"a": jnp.ones(3), "b": 1.0}, "no and 3"),
        (jnp.ones(()), "no"),
        ((), "no"),
    ],
)
def test_count_names_the_numbers_that_disagree(tree, found):
    assert trees.count({"a": jnp.ones((3, 2)), "b": jnp.ones(3)}) == 3
    with pytest.raises(ValueError, match=f"targets have {found} examples; use the same number"):
        trees.count(tree, "targets")
