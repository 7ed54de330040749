"""Models whose weights are computed from other weights, so that few numbers, or warped ones, adapt.

Each function takes a model and returns one whose parameters are `{"model": its parameters, ...}` and whose
weights are computed from all of them. Learners then choose the leaves that adapt; the network itself, of
whatever framework, does not change.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Key, Model, Params, Parts, Tree

VECTORS = trees.under("bias", "scale")


def with_context(model: Model, size: int, *, modulates: trees.PathPredicate = VECTORS) -> Model:
    """Shifts some leaves by a context vector: leaf + context @ modulation.

    For the scale and bias of a norm this is FiLM's affine transformation of each channel, with a linear
    generator; for the first bias of a network it is the concatenation of the context to the inputs.

    Args:
      model: Network.
      size: Length D of the context, an int of 1 or more.
      modulates: Predicate of the paths of the leaves that the context shifts.

    Returns:
      A model with `params["context"]` [D], zero at first, and `params["modulation"]`, [D, *shape] for a leaf
      of that shape, uniform in +-1 / sqrt(D) at first.

    Raises:
      ValueError: If `size` is below 1, or (from `init`) no leaf is selected.

    Example:
      >>> from metajax.toys import toy_model
      >>> model = with_context(toy_model(3), 4)
      >>> model.init(jax.random.key(0), jnp.zeros((5, 2)))["context"].shape
      (4,)

    Reference: Zintgraf et al., 2019 (https://arxiv.org/abs/1810.03642), sections 3.1 and 3.3; Perez et al.,
    2018 (https://arxiv.org/abs/1709.07871), eq. 2.
    """
    if size < 1:
        raise ValueError(f"The context has {size} numbers; use 1 or more.")

    def make(params: Params, key: Key) -> Params:
        chosen, _ = trees.split(params, modulates)
        bound = 1 / math.sqrt(size)
        modulation = _draw(
            chosen,
            key,
            lambda leaf, key: jax.random.uniform(
                key, (size, *leaf.shape), leaf.dtype, minval=-bound, maxval=bound
            ),
        )
        dtype = jax.tree.leaves(chosen)[0].dtype
        return {"context": jnp.zeros(size, dtype), "modulation": modulation}

    def weights(params: Params) -> Params:
        def shift(leaf, modulation):
            return leaf + jnp.tensordot(
                params["context"], modulation, axes=1, precision=jax.lax.Precision.HIGHEST
            )

        return _change(params["model"], shift, params["modulation"])

    return _reparametrized(model, make, weights)


def low_rank(model: Model, rank: int, *, kernels: trees.PathPredicate = trees.everything) -> Model:
    """Adds a product of two thin matrices to each kernel: kernel + down @ up.

    A kernel [..., O] is treated as a matrix [I, O], all axes but the last merged.

    Args:
      model: Network.
      rank: Columns of `down` and rows of `up`, an int of 1 or more; cut to I where that is smaller.
      kernels: Predicate of the paths of kernels; selected leaves of fewer than two axes stay as they are.

    Returns:
      A model with `params["factors"]["down"]`, of orthonormal columns at first, and `["up"]`, zero at first.
      So at rank I, one step of gradient descent moves the product as it would move the kernel.

    Raises:
      ValueError: If `rank` is below 1, or (from `init`) no kernel is selected.

    Example:
      >>> from metajax.toys import toy_model
      >>> model = low_rank(toy_model(3), 1)
      >>> factors = model.init(jax.random.key(0), jnp.zeros((5, 2)))["factors"]
      >>> factors["down"]["head"]["kernel"].shape, factors["up"]["head"]["kernel"].shape
      ((8, 1), (1, 3))

    Reference: Hu et al., 2022 (https://arxiv.org/abs/2106.09685), eq. 3.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; use 1 or more.")

    def make(params: Params, key: Key) -> Params:
        chosen = _select_kernels(params, kernels)

        def rank_of(leaf):
            return min(rank, leaf.size // leaf.shape[-1])

        def down(leaf, key):
            # Orthogonal matrices come from a QR decomposition, which half precision does not have.
            dtype = jnp.promote_types(leaf.dtype, jnp.float32)
            shape = (leaf.size // leaf.shape[-1], rank_of(leaf))
            return jax.nn.initializers.orthogonal()(key, shape, dtype).astype(leaf.dtype)

        def up(leaf):
            return jnp.zeros((rank_of(leaf), leaf.shape[-1]), leaf.dtype)

        return {"factors": {"down": _draw(chosen, key, down), "up": jax.tree.map(up, chosen)}}

    def weights(params: Params) -> Params:
        factors = params["factors"]

        def add(leaf, down, up):
            return leaf + _product(down, up).reshape(leaf.shape)

        return _change(params["model"], add, factors["down"], factors["up"])

    return _reparametrized(model, make, weights)


def warped(model: Model, *, kernels: trees.PathPredicate = trees.everything) -> Model:
    """Multiplies each kernel by a linear warp layer, which mixes the outputs of a layer: kernel @ warp.

    Args:
      model: Network.
      kernels: Predicate of the paths of kernels; selected leaves of fewer than two axes stay as they are.

    Returns:
      A model with `params["warp"]`, [O, O] for a kernel [..., O], the identity at first.

    Raises:
      ValueError: (from `init`) If no kernel is selected.

    Example:
      >>> from metajax.toys import toy_model
      >>> model = warped(toy_model(3))
      >>> model.init(jax.random.key(0), jnp.zeros((5, 2)))["warp"]["head"]["kernel"].shape
      (3, 3)

    Reference: Flennerhag et al., 2020 (https://arxiv.org/abs/1909.00025), section 3.2; Lee and Choi, 2018
    (https://arxiv.org/abs/1801.05558), eq. 5, whose T-nets are these linear warps.
    """

    def make(params: Params, key: Key) -> Params:
        del key
        chosen = _select_kernels(params, kernels)
        return {
            "warp": jax.tree.map(lambda leaf: jnp.eye(leaf.shape[-1], dtype=leaf.dtype), chosen)
        }

    def weights(params: Params) -> Params:
        return _change(params["model"], _product, params["warp"])

    return _reparametrized(model, make, weights)


def _product(left: Array, right: Array) -> Array:
    """Multiplies weights in full precision."""
    # Weights are few compared with activations; in fewer bits, a warp by the identity would change them.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _reparametrized(
    model: Model,
    make: Callable[[Params, Key], Params],
    weights: Callable[[Params], Params],
) -> Model:
    """Makes a model of additional parameters, and of a function from all parameters to weights."""

    def init(key: Key, inputs: Tree) -> Params:
        model_key, own_key = jax.random.split(key)
        params = trees.require_floats(model.init(model_key, inputs))
        return {"model": params, **make(params, own_key)}

    def apply(params: Params, inputs: Tree) -> Tree:
        return model.apply(weights(params), inputs)

    parts = Parts(*(trees.within("model", part) for part in model.parts))
    return Model(init, apply, parts)


def _select_kernels(params: Params, kernels: trees.PathPredicate) -> Params:
    """Selects leaves of two or more axes; the others are None."""
    chosen, _ = trees.split(params, kernels)
    chosen = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, chosen)
    if not jax.tree.leaves(chosen):
        raise ValueError(
            f"No kernel is selected, a leaf of two or more axes; the leaves are "
            f"{', '.join(trees.paths(params))}."
        )
    return chosen


def _draw(tree: Params, key: Key, draw: Callable[[Array, Key], Array]) -> Params:
    """Draws an array for each leaf, each with its own key."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([draw(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def _change(params: Params, change: Callable[..., Array], *own: Params) -> Params:
    """Changes each leaf that has an entry in the first of the additional trees."""

    def some(first, leaf, *others):
        return leaf if first is None else change(leaf, first, *others)

    first, *others = own
    return jax.tree.map(some, first, params, *others, is_leaf=lambda node: node is None)
