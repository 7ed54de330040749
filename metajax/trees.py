"""Taking parameter trees apart by path, and putting them together again."""

from collections.abc import Callable
from typing import Any

import jax

Tree = Any
PathPredicate = Callable[[str], bool]


def everything(path: str) -> bool:
    """Selects every leaf."""
    del path
    return True


def under(*names: str) -> PathPredicate:
    """Selects leaves whose path has one of `names` as a component: `under("head")` takes `a/head/bias`."""

    def predicate(path: str) -> bool:
        return not set(names).isdisjoint(path.split("/"))

    predicate.__name__ = f"under({', '.join(map(repr, names))})"
    return predicate


def paths(tree: Tree) -> list[str]:
    """Lists the path of every leaf, its keys joined by `/`, in the order of `jax.tree.leaves`."""
    return [_join(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def split(tree: Tree, predicate: PathPredicate) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves selected by path and the rest.

    Args:
      tree: any pytree.
      predicate: maps a leaf's path, such as `head/kernel`, to whether it is selected.

    Returns:
      Two trees shaped like `tree`, each with None where the leaf is in the other.

    Raises:
      ValueError: when no leaf is selected.
    """
    chosen = [predicate(path) for path in paths(tree)]
    if not any(chosen):
        name = getattr(predicate, "__name__", predicate)
        raise ValueError(f"{name} selects no leaf; the leaves are {', '.join(paths(tree))}.")
    leaves, treedef = jax.tree.flatten(tree)
    selected = [leaf if keep else None for leaf, keep in zip(leaves, chosen, strict=True)]
    rest = [None if keep else leaf for leaf, keep in zip(leaves, chosen, strict=True)]
    return treedef.unflatten(selected), treedef.unflatten(rest)


def merge(selected: Tree, rest: Tree) -> Tree:
    """Undoes `split`: every None in `selected` is filled from `rest`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, selected, rest, is_leaf=lambda leaf: leaf is None
    )


def size(tree: Tree) -> int:
    """Counts the numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _join(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
