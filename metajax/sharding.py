"""Spreading tasks over devices; the only file that names mesh axes and collectives."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.train import EvaluateFn
from metajax.types import Array, Episode, Key, Meta, MetaGrad, Metrics, StatefulMetaGrad

TASKS = "tasks"

AnyMetaGrad = TypeVar("AnyMetaGrad", MetaGrad, StatefulMetaGrad)


def task_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of one axis, `tasks`, over these devices (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (TASKS,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Names the sharding of what every device holds whole: parameters, optimizer state, the class store."""
    return NamedSharding(mesh, P())


def divided(mesh: Mesh) -> NamedSharding:
    """Names the sharding of what has a leading axis of tasks and is divided by it: a task's memory."""
    return NamedSharding(mesh, P(TASKS))


def over_tasks(mesh: Mesh, meta_grad: AnyMetaGrad) -> AnyMetaGrad:
    """Spreads a meta-gradient's tasks over a mesh, and averages what the devices find.

    Args:
      mesh: a mesh with the axis `tasks`, of JAX's `Auto` type (as `task_mesh` makes it).
      meta_grad: any meta-gradient; each device calls it on its own T / devices tasks, and keeps their memory
        if it is a stateful one.

    Returns:
      The same function of the same arguments, equal up to the order of summation. It raises ValueError where
      the tasks do not divide over the devices.
    """

    # With check_vma, gradients with respect to the replicated `meta` would arrive summed already.
    def spread(function: Callable, in_specs: tuple, out_specs: Any) -> Callable:
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    if isinstance(meta_grad, StatefulMetaGrad):
        return _stateful_over_tasks(spread, meta_grad, mesh)

    def local(meta, keys, episodes, step):
        return jax.lax.pmean(meta_grad(meta, keys, episodes, step), TASKS)

    sharded = spread(local, (P(), P(TASKS), P(TASKS), P()), P())

    def over_devices(
        meta: Meta, keys: Key, episodes: Episode, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        _check_divides(keys.shape[0], mesh.shape[TASKS])
        return sharded(meta, keys, episodes, step)

    return over_devices


def _stateful_over_tasks(
    spread: Callable, meta_grad: StatefulMetaGrad, mesh: Mesh
) -> StatefulMetaGrad:
    def local(meta, memory, keys, episodes):
        grads, memory, metrics = meta_grad.update(meta, memory, keys, episodes)
        grads, metrics = jax.lax.pmean((grads, metrics), TASKS)
        return grads, memory, metrics

    sharded = spread(local, (P(), P(TASKS), P(TASKS), P(TASKS)), (P(), P(TASKS), P()))

    def init(meta: Meta, keys: Key, episodes: Episode) -> Any:
        _check_divides(keys.shape[0], mesh.shape[TASKS])
        # As a whole: what a task is given by its number must not depend on how many devices there are.
        memory = meta_grad.init(meta, keys, episodes)
        return jax.lax.with_sharding_constraint(memory, divided(mesh))

    return StatefulMetaGrad(init, sharded)


def _check_divides(num_tasks: int, num_devices: int) -> None:
    if num_tasks % num_devices:
        raise ValueError(
            f"{num_tasks} tasks do not divide over {num_devices} devices; "
            f"use a multiple of {num_devices}."
        )


def over_episodes(mesh: Mesh, evaluate: EvaluateFn) -> EvaluateFn:
    """Spreads an evaluation's episodes over a mesh.

    Args:
      mesh: a mesh with the axis `tasks`.
      evaluate: as `train.make_evaluate` makes it.

    Returns:
      The same function of the same arguments. Episodes need not divide over the devices: the last ones are
      scored again to fill up, and left out of what is returned.
    """
    num_devices = mesh.shape[TASKS]
    sharded = jax.shard_map(
        evaluate,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(TASKS)),
        out_specs=P(TASKS),
        check_vma=False,
    )

    def spread(meta: Meta, data: Any, key: Key, tasks: Array) -> Metrics:
        num_tasks = len(tasks)
        padded = jnp.pad(tasks, (0, -num_tasks % num_devices), mode="edge")
        return jax.tree.map(lambda scores: scores[:num_tasks], sharded(meta, data, key, padded))

    return spread
