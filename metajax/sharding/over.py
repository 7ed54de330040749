"""Wrappers that spread a computation over the tasks of a mesh."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from metajax.evaluate import EvaluateFn
from metajax.sharding.averaging import average, gather
from metajax.sharding.layout import spec_of
from metajax.sharding.mesh import check_divides, divided, replicated, task_axes
from metajax.train import DrawFn, SampleFn, draw_tasks, map_by_task
from metajax.types import Array, Key, Meta, MetaGrad, Metrics, StatefulMetaGrad, Task

AnyMetaGrad = TypeVar("AnyMetaGrad", MetaGrad, StatefulMetaGrad)


def over_tasks(mesh: Mesh, meta_grad: AnyMetaGrad) -> AnyMetaGrad:
    """Spreads the tasks of a meta-gradient over a mesh and averages the results of the devices.

    Args:
      mesh: Mesh from `task_mesh`, with the axis `tasks`, and `shards` if parameters are divided; its axes are
        of JAX's `Auto` type.
      meta_grad: Meta-gradient. Each device calls it with its own T / devices tasks, and keeps their memory if
        the meta-gradient is stateful.

    Returns:
      A meta-gradient with the same arguments and results, equal up to the order of summation. It raises a
      ValueError if the tasks do not divide over the devices.

    Example:
      >>> objective = lambda meta, key, task: ((meta - task) ** 2, {"loss": (meta - task) ** 2})
      >>> mesh = metajax.task_mesh(jax.devices()[:1])
      >>> meta_grad = metajax.over_tasks(mesh, metajax.backprop(objective))
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> jax.jit(meta_grad)(jnp.array(1.0), keys, jnp.array([0.0, 4.0]))[0].item()
      -2.0
    """
    if isinstance(meta_grad, StatefulMetaGrad):
        return _stateful_over_tasks(mesh, meta_grad)
    whole = cast(MetaGrad, meta_grad)

    def over_devices(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        check_divides(keys.shape[0], mesh)
        specs = _specs(mesh, meta)

        def local(meta, keys, tasks, step):
            grads, metrics = whole(gather(specs, meta), keys, tasks, step)
            return average(mesh, specs, grads, metrics)

        own = P(task_axes(mesh))
        spread = _shard_map(local, mesh, (specs, own, own, P()), (specs, P()))
        return spread(meta, keys, tasks, step)

    return over_devices


def _stateful_over_tasks(mesh: Mesh, meta_grad: StatefulMetaGrad) -> StatefulMetaGrad:
    """Spreads a meta-gradient with a memory of tasks; each device stores its part of it."""
    own = P(task_axes(mesh))

    def init(meta: Meta, keys: Key, tasks: Task) -> Any:
        check_divides(keys.shape[0], mesh)
        # Not under `shard_map`: values that depend on a task's number must not depend on the devices.
        memory = meta_grad.init(meta, keys, tasks)
        return jax.lax.with_sharding_constraint(memory, divided(mesh))

    def update(meta: Meta, memory: Any, keys: Key, tasks: Task) -> tuple[Meta, Any, Metrics]:
        specs = _specs(mesh, meta)

        def local(meta, memory, keys, tasks):
            whole = gather(specs, meta)
            grads, memory, metrics = meta_grad.update(whole, memory, keys, tasks)
            grads, metrics = average(mesh, specs, grads, metrics)
            return grads, memory, metrics

        into, out = (specs, own, own, own), (specs, own, P())
        return _shard_map(local, mesh, into, out)(meta, memory, keys, tasks)

    return StatefulMetaGrad(init, update)


def draw_over_tasks(mesh: Mesh) -> DrawFn:
    """Makes a `draw` function for `make_step` that draws each device's tasks on that device.

    Args:
      mesh: Mesh from `task_mesh`.

    Returns:
      A function with the arguments and results of `draw_tasks`; the results, and the leaves of the data that
      `by_task` marks, are divided by task over the mesh. It raises a ValueError if the tasks do not divide
      over the devices.

    Example:
      >>> draw = metajax.sharding.draw_over_tasks(metajax.task_mesh(jax.devices()[:1]))
      >>> sample = lambda data, key: jax.random.normal(key, (3,))
      >>> draw(sample, None, jax.random.key(0), 7, jnp.arange(4))[1].shape
      (4, 3)
    """
    own = P(task_axes(mesh))

    def over_devices(
        sample: SampleFn, data: Any, key: Key, step: Array, tasks: Array, *, by_task: Any = None
    ) -> tuple[Key, Task]:
        check_divides(len(tasks), mesh)

        def local(data, key, step, tasks):
            return draw_tasks(sample, data, key, step, tasks, by_task=by_task)

        into = (_data_specs(mesh, by_task), P(), P(), own)
        return _shard_map(local, mesh, into, own)(data, key, step, tasks)

    return over_devices


def over_episodes(mesh: Mesh, evaluate: EvaluateFn, *, by_task: Any = None) -> EvaluateFn:
    """Spreads the tasks of an evaluation over a mesh.

    Args:
      mesh: Mesh from `task_mesh`.
      evaluate: Evaluation from `make_evaluate`.
      by_task: Leaves of the data with a leading axis of tasks, as in `make_evaluate`.

    Returns:
      An evaluation with the same arguments and results; the results are replicated. Tasks need not divide
      over the devices: the last one is scored again to fill up, and the copies are dropped.

    Example:
      >>> objective = lambda meta, key, task: (None, meta * task)
      >>> evaluate = metajax.make_evaluate(objective, lambda data, key: data)
      >>> spread = metajax.sharding.over_episodes(metajax.task_mesh(), evaluate)
      >>> jax.jit(spread)(2.0, 3.0, jax.random.key(0), jnp.arange(5)).tolist()
      [6.0, 6.0, 6.0, 6.0, 6.0]
    """
    own = P(task_axes(mesh))
    spread = _shard_map(evaluate, mesh, (P(), _data_specs(mesh, by_task), P(), own), own)

    def over_devices(meta: Meta, data: Any, key: Key, tasks: Array) -> Any:
        num_tasks = len(tasks)

        def pad(leaf):
            return jnp.pad(
                leaf, [(0, -num_tasks % mesh.size), *[(0, 0)] * (leaf.ndim - 1)], mode="edge"
            )

        scores = spread(meta, map_by_task(pad, by_task, data), key, pad(tasks))
        return jax.lax.with_sharding_constraint(
            jax.tree.map(lambda scores: scores[:num_tasks], scores), replicated(mesh)
        )

    return over_devices


def _specs(mesh: Mesh, tree: Any) -> Any:
    """Chooses the partition spec of every parameter leaf."""
    return jax.tree.map(lambda leaf: spec_of(mesh, leaf), tree)


def _data_specs(mesh: Mesh, by_task: Any) -> Any:
    """Chooses the partition specs of data: divided by task if it has a task axis, else replicated."""
    own = P(task_axes(mesh))
    return jax.tree.map(
        lambda axis: P() if axis is None else own, by_task, is_leaf=lambda axis: axis is None
    )


def _shard_map(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """Maps a function over the devices of a mesh, without JAX's check of varying axes."""
    # With check_vma, gradients with respect to the replicated `meta` would arrive summed already.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
