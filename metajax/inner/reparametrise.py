"""Models whose weights are made of other weights, so that few numbers, or warped ones, adapt.

Each function takes a model and returns one whose parameters are `{"model": the old ones, ...}` and whose
weights are computed from both. Whatever adapts is then a choice of leaves; the network itself, in whatever
framework, knows nothing of it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Key, Model, Params, Parts, Tree

VECTORS = trees.under("bias", "scale")


def with_context(model: Model, size: int, *, modulates: trees.PathPredicate = VECTORS) -> Model:
    """Lets a context vector shift some leaves: leaf + context @ modulation.

    On the scale and bias of a norm this is FiLM's affine transformation of each channel, with a linear
    generator; on the first bias of a network it is concatenating the context to the inputs.

    Args:
      model: the network.
      size: numbers in the context.
      modulates: the leaves that the context shifts, by path.

    Returns:
      A model with `params["context"]` [size], zero at first, and `params["modulation"]`, [size, *shape] for a
      leaf of that shape, uniform in +-1 / sqrt(size) at first.

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

        return _changed(params["model"], shift, params["modulation"])

    return _made_of(model, make, weights)


def low_rank(model: Model, rank: int, *, kernels: trees.PathPredicate = trees.everything) -> Model:
    """Adds a product of two thin matrices to every kernel: kernel + down @ up.

    A kernel [..., O] is taken for a matrix [I, O].

    Args:
      model: the network.
      rank: columns of `down` and rows of `up`, at most I.
      kernels: the leaves meant, by path; among them only those of two or more axes have matrices.

    Returns:
      A model with `params["factors"]["down"]`, of orthonormal columns at first, and `["up"]`, zero at first,
      so that at rank I one step of gradient descent moves the product as it would move the kernel.

    Reference: Hu et al., 2022 (https://arxiv.org/abs/2106.09685), eq. 3.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; use 1 or more.")

    def make(params: Params, key: Key) -> Params:
        chosen = _matrices(params, kernels)

        def rank_of(leaf):
            return min(rank, leaf.size // leaf.shape[-1])

        def down(leaf, key):
            # A decomposition, which there is not in half precision.
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

        return _changed(params["model"], add, factors["down"], factors["up"])

    return _made_of(model, make, weights)


def warped(model: Model, *, kernels: trees.PathPredicate = trees.everything) -> Model:
    """Follows every kernel by a linear warp layer: kernel @ warp, which mixes the outputs of a layer.

    Args:
      model: the network.
      kernels: the leaves meant, by path; among them only those of two or more axes have warps.

    Returns:
      A model with `params["warp"]`, [O, O] for a kernel [..., O], the identity at first.

    Reference: Flennerhag et al., 2020 (https://arxiv.org/abs/1909.00025), section 3.2; Lee and Choi, 2018
    (https://arxiv.org/abs/1801.05558), eq. 5, whose T-nets are these linear warps.
    """

    def make(params: Params, key: Key) -> Params:
        del key
        chosen = _matrices(params, kernels)
        return {
            "warp": jax.tree.map(lambda leaf: jnp.eye(leaf.shape[-1], dtype=leaf.dtype), chosen)
        }

    def weights(params: Params) -> Params:
        return _changed(params["model"], _product, params["warp"])

    return _made_of(model, make, weights)


def _product(left: Array, right: Array) -> Array:
    # Weights are few beside activations; rounded as those are, the identity would not be one.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _made_of(
    model: Model,
    make: Callable[[Params, Key], Params],
    weights: Callable[[Params], Params],
) -> Model:
    def init(key: Key, inputs: Tree) -> Params:
        model_key, own_key = jax.random.split(key)
        params = trees.require_floats(model.init(model_key, inputs))
        return {"model": params, **make(params, own_key)}

    def apply(params: Params, inputs: Tree) -> Tree:
        return model.apply(weights(params), inputs)

    parts = Parts(*(trees.within("model", part) for part in model.parts))
    return Model(init, apply, parts)


def _matrices(params: Params, kernels: trees.PathPredicate) -> Params:
    chosen, _ = trees.split(params, kernels)
    chosen = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, chosen)
    if not jax.tree.leaves(chosen):
        raise ValueError(
            f"No kernel is selected, a leaf of two or more axes; the leaves are "
            f"{', '.join(trees.paths(params))}."
        )
    return chosen


def _draw(tree: Params, key: Key, draw: Callable[[Array, Key], Array]) -> Params:
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([draw(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def _changed(params: Params, change: Callable[..., Array], *own: Params) -> Params:
    """Changes the leaves for which the first of the model's own trees has an entry."""

    def some(first, leaf, *others):
        return leaf if first is None else change(leaf, first, *others)

    first, *others = own
    return jax.tree.map(some, first, params, *others, is_leaf=lambda node: node is None)
