"""The layout of trees on a mesh: which leaves are divided over devices, and moving them there and back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.sharding.mesh import SHARDS, divided, replicated
from metajax.train import TrainState
from metajax.types import Array

# A leaf with fewer numbers is held whole: gathering it would cost more than storing it.
LEAST_DIVIDED = 2**12


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Chooses the sharding of each leaf, as `place` uses it.

    In a `TrainState`, each leaf of the parameters and the optimizer state is divided along its longest axis
    that the mesh's `shards` divide; a leaf without such an axis, or with fewer than `LEAST_DIVIDED` numbers,
    is replicated. The choice depends on the shape alone, so optimizer moments have the sharding of their
    parameter. The memory of tasks is divided by task. Trees that are not a `TrainState`, such as data, are
    replicated.

    Args:
      mesh: Mesh from `task_mesh`.
      tree: Tree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      Tree of `NamedSharding`s like `tree`.

    Example:
      >>> where = metajax.sharding.shardings(metajax.task_mesh(), {"images": jnp.zeros((8, 4))})
      >>> where["images"].is_fully_replicated
      True

    Reference: Rajbhandari et al., 2020 (https://arxiv.org/abs/1910.02054), section 5.
    """
    if not isinstance(tree, TrainState):
        return jax.tree.map(lambda leaf: replicated(mesh), tree)
    memory = jax.tree.map(lambda leaf: divided(mesh), tree.memory)
    rest = jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec_of(mesh, leaf)), tree._replace(memory=())
    )
    return rest._replace(memory=memory)


def place(mesh: Mesh, tree: Any) -> Any:
    """Puts a tree on the devices of a mesh with the shardings of `shardings`; call it in every process.

    Args:
      mesh: Mesh from `task_mesh`.
      tree: Tree of arrays that every process has whole.

    Returns:
      Tree of `jax.Array`s on the mesh.

    Example:
      >>> state = metajax.init_state({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
      >>> state = metajax.sharding.place(metajax.task_mesh(), state)
      >>> state.meta["w"].sharding.is_fully_replicated
      True
    """
    return jax.tree.map(_put, tree, shardings(mesh, tree))


def fetch(tree: Any) -> Any:
    """Copies a tree from the devices to the host, every leaf whole.

    If several processes hold parts, all of them must call it, and each gets the whole tree.

    Args:
      tree: Tree of arrays and random keys.

    Returns:
      Tree of NumPy arrays; random keys stay `jax.Array`s.

    Example:
      >>> metajax.sharding.fetch({"w": jnp.arange(3)})["w"]
      array([0, 1, 2], dtype=int32)
    """

    def whole(leaf: Any) -> Any:
        if _is_key(leaf):
            data = whole(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated and jax.process_count() > 1:
            # No process can read all parts: a program gathers them on every device first.
            mesh = leaf.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]  # a NamedSharding
            leaf = jax.jit(lambda x: x, out_shardings=replicated(mesh))(leaf)
        # A copy, not a view: a step may be given the state's own buffers to overwrite.
        return np.array(jax.device_get(leaf))

    return jax.tree.map(whole, tree)


def spec_of(mesh: Mesh, leaf: Any) -> P:
    """Chooses the partition of a parameter leaf: its longest axis that `shards` divides, if it is large."""
    parts, shape = mesh.shape.get(SHARDS, 1), np.shape(leaf)
    fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < LEAST_DIVIDED or not fitting:
        return P()
    axis = max(fitting, key=lambda axis: shape[axis])
    return P(*[None] * axis, SHARDS)


def _is_key(leaf: Any) -> bool:
    """Tests whether a leaf is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """Puts a leaf that every process has whole on the devices of a sharding."""
    on_devices = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if on_devices or jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Not `device_put`, which compares the values of all processes: a class store is large.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])
