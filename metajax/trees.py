"""Taking parameter trees apart by path, and putting them together again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
PathPredicate = Callable[[str], bool]


def everything(path: str) -> bool:
    """Selects every leaf."""
    del path
    return True


def under(*names: str) -> PathPredicate:
    """Selects leaves whose path has one of `names` as a component: `under("head")` takes `a/head/bias`.

    A name may be of several components that follow each other, as in `under("layers/1")`.
    """

    def predicate(path: str) -> bool:
        return any(f"/{name}/" in f"/{path}/" for name in names)

    predicate.__name__ = f"under({', '.join(map(repr, names))})"
    return predicate


def in_norms(path: str) -> bool:
    """Selects the leaves of norm layers: those with a component that is called norm, as in `norm0/scale`."""
    return any("norm" in component.lower() for component in path.split("/")[:-1])


def below(name: str) -> PathPredicate:
    """Selects what lies at or below an entry, by its path from the top: `below("a")` takes `a`, `a/b/c`."""

    def predicate(path: str) -> bool:
        return f"{path}/".startswith(f"{name}/")

    predicate.__name__ = f"below({name!r})"
    return predicate


def within(name: str, predicate: PathPredicate) -> PathPredicate:
    """Selects what lies below an entry, and by its path from there is selected by `predicate`.

    `within("model", under("head"))` takes `model/head/bias` and not `warp/head/kernel`.
    """

    def inner(path: str) -> bool:
        return path.startswith(f"{name}/") and predicate(path.removeprefix(f"{name}/"))

    inner.__name__ = f"within({name!r}, {_name(predicate)})"
    return inner


def but(*predicates: PathPredicate) -> PathPredicate:
    """Selects what none of the predicates does."""

    def others(path: str) -> bool:
        return not any(predicate(path) for predicate in predicates)

    others.__name__ = f"but({', '.join(map(_name, predicates))})"
    return others


def paths(tree: Tree) -> list[str]:
    """Lists the path of every leaf, its keys joined by `/`, in the order of `jax.tree.leaves`."""
    return [_join(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def split(tree: Tree, predicate: PathPredicate, *, required: bool = True) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves selected by path and the rest.

    Args:
      tree: any pytree.
      predicate: maps a leaf's path, such as `head/kernel`, to whether it is selected.
      required: whether to select nothing is an error.

    Returns:
      Two trees shaped like `tree`, each with None where the leaf is in the other.

    Raises:
      ValueError: when no leaf is selected, if that is required.
    """
    chosen = [predicate(path) for path in paths(tree)]
    if required and not any(chosen):
        raise ValueError(
            f"{_name(predicate)} selects no leaf; the leaves are {', '.join(paths(tree))}."
        )
    leaves, treedef = jax.tree.flatten(tree)
    selected = [leaf if keep else None for leaf, keep in zip(leaves, chosen, strict=True)]
    rest = [None if keep else leaf for leaf, keep in zip(leaves, chosen, strict=True)]
    return treedef.unflatten(selected), treedef.unflatten(rest)


def merge(selected: Tree, rest: Tree) -> Tree:
    """Undoes `split`: every None in `selected` is filled from `rest`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, selected, rest, is_leaf=lambda leaf: leaf is None
    )


def split_floats(tree: Tree) -> tuple[Tree, Tree]:
    """Splits a tree into floating-point leaves and the rest, integers and keys, which have no derivative."""

    def is_float(leaf):
        return jnp.issubdtype(getattr(leaf, "dtype", None) or jnp.result_type(leaf), jnp.inexact)

    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
    return floats, jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, tree)


def float_dtype(*trees: Tree) -> jnp.dtype:
    """The widest floating type among the leaves of trees, float32 at least."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(split_floats(trees)[0]))


def require_floats(params: Tree) -> Tree:
    """Returns parameters as they are, if every leaf is a floating-point array.

    Raises:
      ValueError: with the paths of the leaves that are not: integers, which have no derivative, and plain
        numbers, which would be constants of the program.
    """
    leaves = zip(paths(params), jax.tree.leaves(params), strict=True)
    wrong = [f"{path} ({_kind(leaf)})" for path, leaf in leaves if not _is_float_array(leaf)]
    if wrong:
        raise ValueError(
            f"Parameters are floating-point arrays, and these leaves are not: {', '.join(wrong)}; make them "
            "such, or keep them out of the parameters, for example in the function that applies the model."
        )
    return params


def _is_float_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _kind(leaf: Any) -> str:
    return str(leaf.dtype) if hasattr(leaf, "dtype") else f"{type(leaf).__name__} {leaf!r}"


def difference(found: Tree, given: Tree) -> str:
    """Describes the first difference between two trees in structure, shapes or dtypes; "" if they are alike.

    Python numbers, whose dtype gives way to others, are alike in any.
    """
    new, old = (
        dict(zip(paths(tree), jax.tree.leaves(tree), strict=True)) for tree in (found, given)
    )
    for path in dict.fromkeys((*old, *new)):
        name = f"leaf {path}" if path else "it"
        if path not in new or path not in old:
            return f"{name} is {'missing' if path in old else 'new'}"
        now, before = jax.typeof(new[path]), jax.typeof(old[path])
        if now.shape != before.shape or (now.dtype != before.dtype and not before.weak_type):
            return f"{name} was {before.str_short()} and is {now.str_short()}"
    now, before = jax.tree.structure(found), jax.tree.structure(given)
    return "" if now == before else f"the structure was {before} and is {now}"


def size(tree: Tree) -> int:
    """Counts the numbers in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count(tree: Tree, name: str = "inputs") -> int:
    """Counts the examples of a tree of arrays [B, ...]; ValueError, with its name, where leaves disagree."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)} or {()}
    if len(lengths) > 1 or () in lengths:
        found = " and ".join(str(*length) or "no" for length in sorted(lengths))
        raise ValueError(f"{name} are of {found} examples; use arrays of as many in all leaves.")
    return lengths.pop()[0]


def take(tree: Tree, places: Any) -> Tree:
    """Takes the examples at `places`, an index, a slice or an array [M], of a tree of arrays [B, ...]."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], tree)


def repeated(tree: Tree, times: int) -> Tree:
    """Returns the shapes of a tree of arrays [B, ...] with `times` as many examples, [times * B, ...]."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((times * len(leaf), *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, tree)


def append(tree: Tree, example: Tree) -> Tree:
    """Puts one example [...] behind a tree of arrays [B, ...]."""
    return jax.tree.map(lambda leaf, one: jnp.append(leaf, one[None], axis=0), tree, example)


def _name(predicate: PathPredicate) -> str:
    return getattr(predicate, "__name__", str(predicate))


def _join(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
