"""Collectives inside `jax.shard_map`: gathering divided parameters, and averaging gradients and metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from metajax.sharding.mesh import SHARDS, TASKS, task_axes
from metajax.types import Array, Metrics


def gather(specs: Any, tree: Any) -> Any:
    """Gathers the leaves of which a device holds a part, so that it has the whole tree.

    Args:
      specs: Tree of partition specs, from `layout.spec_of`.
      tree: Tree of a device's parts.
    """

    def whole(leaf, spec):
        if not spec:
            return leaf
        return jax.lax.all_gather(leaf, SHARDS, axis=len(spec) - 1, tiled=True)

    return jax.tree.map(whole, tree, specs)


def average(mesh: Mesh, specs: Any, grads: Any, metrics: Metrics) -> tuple[Any, Metrics]:
    """Averages gradients and metrics over devices.

    Args:
      mesh: Mesh of the devices.
      specs: Tree of partition specs like `grads`.
      grads: Gradients of this device's tasks.
      metrics: Metrics of this device's tasks.

    Returns:
      Mean gradients, of which each device gets its own part of the divided leaves, and mean metrics.
    """
    leaves, structure = jax.tree.flatten(grads)
    specs = structure.flatten_up_to(specs)
    whole = [leaf for leaf, spec in zip(leaves, specs, strict=True) if not spec]
    whole, metrics = _mean(task_axes(mesh), (whole, metrics))

    # Reduce-scatter within a group of shards, then all-reduce between the groups: no device ever holds more
    # of the mean than its own part.
    def part(leaf: Array, spec: P) -> Array:
        axis = len(spec) - 1
        own = jax.lax.psum_scatter(leaf, SHARDS, scatter_dimension=axis, tiled=True)
        return jax.lax.pmean(own / mesh.shape[SHARDS], TASKS)

    rest = iter(whole)
    averaged = [
        part(leaf, spec) if spec else next(rest) for leaf, spec in zip(leaves, specs, strict=True)
    ]
    return structure.unflatten(averaged), metrics


def _mean(axes: tuple[str, ...], tree: Any) -> Any:
    """Averages a tree over devices, with one message per type instead of one per leaf between TPU slices."""
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        alike.setdefault(jnp.result_type(leaf), []).append(place)
    vectors = [
        jnp.concatenate([jnp.ravel(leaves[place]) for place in places]) for places in alike.values()
    ]
    for places, vector in zip(alike.values(), jax.lax.pmean(vectors, axes), strict=True):
        ends = np.cumsum([np.size(leaves[place]) for place in places])
        for place, part in zip(places, jnp.split(vector, ends[:-1]), strict=True):
            leaves[place] = part.reshape(np.shape(leaves[place]))
    return structure.unflatten(leaves)
