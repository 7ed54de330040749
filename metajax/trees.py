"""Parameter trees by path, and trees of examples by their leading axis.

The path of a leaf joins its keys with slashes, as in `head/kernel`. A predicate is a function from a path to
whether the leaf is selected.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
PathPredicate = Callable[[str], bool]


def everything(path: str) -> bool:
    """Selects every leaf.

    Args:
      path: Path of a leaf.

    Returns:
      True.

    Example:
      >>> everything("body/kernel")
      True
    """
    del path
    return True


def under(*names: str) -> PathPredicate:
    """Selects leaves whose path contains one of `names` as a component.

    Args:
      *names: Components, such as "head"; a name may consist of several, as in "layers/1".

    Returns:
      A predicate.

    Example:
      >>> head = under("head")
      >>> head("a/head/bias"), head("a/header/bias")
      (True, False)
    """

    def predicate(path: str) -> bool:
        return any(f"/{name}/" in f"/{path}/" for name in names)

    predicate.__name__ = f"under({', '.join(map(repr, names))})"
    return predicate


def in_norms(path: str) -> bool:
    """Selects the leaves of normalization layers: the name of a layer above the leaf contains "norm".

    Args:
      path: Path of a leaf.

    Returns:
      Whether the leaf is selected.

    Example:
      >>> in_norms("norm0/scale"), in_norms("head/norm")
      (True, False)
    """
    return any("norm" in component.lower() for component in path.split("/")[:-1])


def below(name: str) -> PathPredicate:
    """Selects an entry, by its path from the root, and all leaves below it.

    Args:
      name: Path of the entry.

    Returns:
      A predicate.

    Example:
      >>> [below("a")(path) for path in ("a", "a/b/c", "b/a")]
      [True, True, False]
    """

    def predicate(path: str) -> bool:
        return f"{path}/".startswith(f"{name}/")

    predicate.__name__ = f"below({name!r})"
    return predicate


def within(name: str, predicate: PathPredicate) -> PathPredicate:
    """Selects leaves below an entry that a predicate selects by their path from there.

    Args:
      name: Path of the entry from the root.
      predicate: Predicate of the rest of the path.

    Returns:
      A predicate.

    Example:
      >>> head = within("model", metajax.trees.under("head"))
      >>> head("model/head/bias"), head("warp/head/kernel")
      (True, False)
    """

    def inner(path: str) -> bool:
        return path.startswith(f"{name}/") and predicate(path.removeprefix(f"{name}/"))

    inner.__name__ = f"within({name!r}, {_name(predicate)})"
    return inner


def but(*predicates: PathPredicate) -> PathPredicate:
    """Selects leaves that none of the predicates selects.

    Args:
      *predicates: Predicates.

    Returns:
      A predicate.

    Example:
      >>> body = but(metajax.trees.under("head"), metajax.trees.in_norms)
      >>> body("conv0/kernel"), body("head/bias")
      (True, False)
    """

    def others(path: str) -> bool:
        return not any(predicate(path) for predicate in predicates)

    others.__name__ = f"but({', '.join(map(_name, predicates))})"
    return others


def paths(tree: Tree) -> list[str]:
    """Lists the path of every leaf, in the order of `jax.tree.leaves`.

    Args:
      tree: Any pytree.

    Returns:
      Paths, the keys joined by slashes.

    Example:
      >>> paths({"head": {"kernel": 1, "bias": 2}})
      ['head/bias', 'head/kernel']
    """
    return [_join(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def split(tree: Tree, predicate: PathPredicate, *, required: bool = True) -> tuple[Tree, Tree]:
    """Splits a tree into the leaves selected by path and the rest.

    Args:
      tree: Any pytree.
      predicate: Predicate of a leaf's path, such as `head/kernel`.
      required: Whether at least one leaf must be selected.

    Returns:
      Two trees shaped like `tree`, the selected leaves and the rest, each with None in place of the others.

    Raises:
      ValueError: If no leaf is selected and `required` is True.

    Example:
      >>> split({"body": 1, "head": 2}, metajax.trees.under("head"))
      ({'body': None, 'head': 2}, {'body': 1, 'head': None})
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
    """Merges the two trees of `split`.

    Args:
      selected: Tree with None for missing leaves.
      rest: Tree of the same shape with the missing leaves.

    Returns:
      Tree with the leaves of both.

    Example:
      >>> merge({"body": None, "head": 2}, {"body": 1, "head": None})
      {'body': 1, 'head': 2}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, selected, rest, is_leaf=lambda leaf: leaf is None
    )


def split_floats(tree: Tree) -> tuple[Tree, Tree]:
    """Splits a tree into floating-point leaves and the rest, such as integers, which have no derivative.

    Args:
      tree: Tree of arrays and numbers.

    Returns:
      Two trees shaped like `tree`, each with None in place of the other's leaves.

    Example:
      >>> split_floats({"x": 0.5, "id": 3})
      ({'id': None, 'x': 0.5}, {'id': 3, 'x': None})
    """

    def is_float(leaf):
        return jnp.issubdtype(getattr(leaf, "dtype", None) or jnp.result_type(leaf), jnp.inexact)

    floats = jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, tree)
    return floats, jax.tree.map(lambda leaf: None if is_float(leaf) else leaf, tree)


def float_dtype(*trees: Tree) -> jnp.dtype:
    """Finds the widest floating-point type among the leaves of trees, float32 at least.

    Args:
      *trees: Trees of arrays; leaves that are not floating-point do not count.

    Returns:
      A NumPy type.

    Example:
      >>> float_dtype(jnp.ones(3, jnp.bfloat16), jnp.arange(3))
      dtype('float32')
    """
    return jnp.result_type(jnp.float32, *jax.tree.leaves(split_floats(trees)[0]))


def require_floats(params: Tree) -> Tree:
    """Checks that every leaf of the parameters is a floating-point array.

    Integers have no derivative, and plain numbers would be constants of the program.

    Args:
      params: Tree of parameters.

    Returns:
      The parameters, unchanged.

    Raises:
      ValueError: If a leaf is not a floating-point array; it names the paths.

    Example:
      >>> require_floats({"w": jnp.ones(2)})["w"].tolist()
      [1.0, 1.0]
    """
    leaves = zip(paths(params), jax.tree.leaves(params), strict=True)
    wrong = [f"{path} ({_kind(leaf)})" for path, leaf in leaves if not _is_float_array(leaf)]
    if wrong:
        raise ValueError(
            f"Parameters must be floating-point arrays, and these leaves are not: {', '.join(wrong)}; "
            "convert them, or keep them out of the parameters, for example in the model's `apply`."
        )
    return params


def _is_float_array(leaf: Any) -> bool:
    """Tests whether a leaf is an array of a floating-point type."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _kind(leaf: Any) -> str:
    """Describes a leaf by its type, or by its value if it is not an array."""
    return str(leaf.dtype) if hasattr(leaf, "dtype") else f"{type(leaf).__name__} {leaf!r}"


def difference(found: Tree, given: Tree) -> str:
    """Describes the first difference between two trees in structure, shapes or types.

    A Python number, whose type is weak, matches any type.

    Args:
      found: Tree of arrays as it is.
      given: Tree of arrays as it should be.

    Returns:
      One phrase, such as "leaf w was float32[2] and is float32[3]"; empty if the trees are alike.

    Example:
      >>> difference({"w": jnp.ones(3)}, {"w": jnp.ones(2)})
      'leaf w was float32[2] and is float32[3]'
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
    """Counts the numbers in a tree of arrays.

    Args:
      tree: Tree of arrays.

    Returns:
      Number of all elements, an int.

    Example:
      >>> size({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
      9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count(tree: Tree, name: str = "inputs") -> int:
    """Counts the examples of a tree of arrays [B, ...].

    Args:
      tree: Tree of arrays with one leading axis of examples.
      name: Name of the tree in an error message, a plural.

    Returns:
      Number of examples B, an int.

    Raises:
      ValueError: If leaves disagree, a leaf is a scalar, or the tree is empty.

    Example:
      >>> count({"ids": jnp.zeros((5, 7)), "mask": jnp.ones(5)})
      5
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)} or {()}
    if len(lengths) > 1 or () in lengths:
        found = " and ".join(str(*length) or "no" for length in sorted(lengths))
        raise ValueError(
            f"{name} have {found} examples; use the same number B in all leaves [B, ...]."
        )
    return lengths.pop()[0]


def take(tree: Tree, places: Any) -> Tree:
    """Takes examples from a tree of arrays.

    Args:
      tree: Tree of arrays [B, ...].
      places: Index, slice or integer array [M] of examples.

    Returns:
      Tree of arrays [M, ...], or [...] for one index.

    Example:
      >>> take({"x": jnp.arange(5)}, jnp.array([3, 0]))["x"].tolist()
      [3, 0]
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], tree)


def repeated(tree: Tree, times: int) -> Tree:
    """Computes the shapes of a tree of arrays with several times as many examples.

    Args:
      tree: Tree of arrays or `jax.ShapeDtypeStruct`s [B, ...].
      times: Factor, an int.

    Returns:
      Tree of `jax.ShapeDtypeStruct`s [times * B, ...].

    Example:
      >>> repeated(jnp.zeros((5, 2)), 3).shape
      (15, 2)
    """

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((times * len(leaf), *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, tree)


def append(tree: Tree, example: Tree) -> Tree:
    """Appends one example to a tree of arrays.

    Args:
      tree: Tree of arrays [B, ...].
      example: Tree of arrays [...].

    Returns:
      Tree of arrays [B + 1, ...].

    Example:
      >>> append(jnp.arange(3), jnp.array(7)).tolist()
      [0, 1, 2, 7]
    """
    return jax.tree.map(lambda leaf, one: jnp.append(leaf, one[None], axis=0), tree, example)


def _name(predicate: PathPredicate) -> str:
    """Names a predicate in a message."""
    return getattr(predicate, "__name__", str(predicate))


def _join(path: tuple) -> str:
    """Joins the keys of a path with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
