"""Spreading tasks and parameters over devices; the only file that names mesh axes and collectives."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metajax.train import DrawFn, EvaluateFn, SampleFn, TrainState, draw_tasks, map_by_task
from metajax.types import Array, Key, Meta, MetaGrad, Metrics, StatefulMetaGrad, Task

TASKS = "tasks"
SHARDS = "shards"

# Tasks are divided by both axes: what holds a part of the parameters has tasks of its own as well.
BOTH = (TASKS, SHARDS)

# A leaf of fewer numbers is held whole: to gather it costs more than it takes.
LEAST_DIVIDED = 2**12

AnyMetaGrad = TypeVar("AnyMetaGrad", MetaGrad, StatefulMetaGrad)


def task_mesh(devices: Sequence[jax.Device] | None = None, *, shards: int = 1) -> Mesh:
    """Makes a mesh for tasks, and for parameters where they are too large for a device.

    Args:
      devices: all of them, of all processes, by default.
      shards: over how many devices parameters and the state of the outer optimizer are divided. Each holds a
        part, and gathers the others' when it computes: stage 3 of Rajbhandari et al., 2020
        (https://arxiv.org/abs/1910.02054), also known as FSDP.

    Returns:
      A mesh of the axis `tasks`; with several shards, of `tasks`, of devices / shards, and `shards`.

    Raises:
      ValueError: if the devices do not divide into groups of `shards`.
    """
    devices = jax.devices() if devices is None else devices
    if shards < 1 or len(devices) % shards:
        raise ValueError(
            f"{len(devices)} devices do not divide into groups of {shards}; use a divisor of "
            f"{len(devices)}."
        )
    shape, axes = (len(devices) // shards, shards), BOTH
    if shards == 1:
        shape, axes = shape[:1], (TASKS,)
    types = (AxisType.Auto,) * len(axes)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return jax.make_mesh(shape, axes, types, devices=devices)
    # Several slices of TPUs, with a slower network between them: parameters are gathered within each.
    inside, between = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    laid_out = mesh_utils.create_hybrid_device_mesh(
        inside, between, devices, allow_split_physical_axes=True
    )
    return Mesh(laid_out, axes, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Names the sharding of what every device holds whole, such as the class store."""
    return NamedSharding(mesh, P())


def divided(mesh: Mesh) -> NamedSharding:
    """Names the sharding of what has a leading axis of tasks and is divided by it: a task's memory."""
    return NamedSharding(mesh, P(_axes(mesh)))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Names where `place` puts each leaf of a tree, of arrays or of their shapes: a tree like it.

    Of a `TrainState`, a leaf of the parameters or the optimizer's is divided along its longest axis that
    divides over the mesh's `shards`; where none does, and where it is small, it is held whole. That depends
    on its shape alone, so that an average of gradients lies as the parameter does. What is remembered of
    tasks is divided by task. All else, such as data, is held whole by every device.
    """
    if not isinstance(tree, TrainState):
        return jax.tree.map(lambda leaf: replicated(mesh), tree)
    memory = jax.tree.map(lambda leaf: divided(mesh), tree.memory)
    rest = jax.tree.map(
        lambda leaf: NamedSharding(mesh, _spec(mesh, leaf)), tree._replace(memory=())
    )
    return rest._replace(memory=memory)


def place(mesh: Mesh, tree: Any) -> Any:
    """Puts a tree on the devices of a mesh, as `shardings` says; in every process alike.

    Args:
      mesh: as `task_mesh` makes it.
      tree: arrays that every process has whole.
    """
    return jax.tree.map(_put, tree, shardings(mesh, tree))


def fetch(tree: Any) -> Any:
    """Copies a tree from the devices to the host, as numpy arrays and random keys, each leaf whole.

    Where several processes hold parts, all of them have to call it, and each gets the whole.
    """

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = whole(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated and jax.process_count() > 1:
            leaf = jax.jit(lambda x: x, out_shardings=replicated(leaf.sharding.mesh))(leaf)
        # A copy, and not a view: a step is given the state's own buffers to write to.
        return np.array(jax.device_get(leaf))

    return jax.tree.map(whole, tree)


def over_tasks(mesh: Mesh, meta_grad: AnyMetaGrad) -> AnyMetaGrad:
    """Spreads a meta-gradient's tasks over a mesh, and averages what the devices find.

    Args:
      mesh: a mesh with the axis `tasks`, and `shards` if parameters are divided, of JAX's `Auto` type (as
        `task_mesh` makes it).
      meta_grad: any meta-gradient; each device calls it on its own T / devices tasks, and keeps their memory
        if it is a stateful one.

    Returns:
      The same function of the same arguments, equal up to the order of summation. It raises ValueError where
      the tasks do not divide over the devices.
    """
    if isinstance(meta_grad, StatefulMetaGrad):
        return _stateful_over_tasks(mesh, meta_grad)

    def over_devices(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        _check_divides(keys.shape[0], mesh)
        specs = _specs(mesh, meta)

        def local(meta, keys, tasks, step):
            grads, metrics = meta_grad(_gathered(mesh, specs, meta), keys, tasks, step)
            return _averaged(mesh, specs, grads, metrics)

        own = P(_axes(mesh))
        spread = _shard_map(local, mesh, (specs, own, own, P()), (specs, P()))
        return spread(meta, keys, tasks, step)

    return over_devices


def _stateful_over_tasks(mesh: Mesh, meta_grad: StatefulMetaGrad) -> StatefulMetaGrad:
    own = P(_axes(mesh))

    def init(meta: Meta, keys: Key, tasks: Task) -> Any:
        _check_divides(keys.shape[0], mesh)
        # As a whole: what a task is given by its number must not depend on how many devices there are.
        memory = meta_grad.init(meta, keys, tasks)
        return jax.lax.with_sharding_constraint(memory, divided(mesh))

    def update(meta: Meta, memory: Any, keys: Key, tasks: Task) -> tuple[Meta, Any, Metrics]:
        specs = _specs(mesh, meta)

        def local(meta, memory, keys, tasks):
            whole = _gathered(mesh, specs, meta)
            grads, memory, metrics = meta_grad.update(whole, memory, keys, tasks)
            grads, metrics = _averaged(mesh, specs, grads, metrics)
            return grads, memory, metrics

        into, out = (specs, own, own, own), (specs, own, P())
        return _shard_map(local, mesh, into, out)(meta, memory, keys, tasks)

    return StatefulMetaGrad(init, update)


def draw_over_tasks(mesh: Mesh) -> DrawFn:
    """Makes the `draw` of `make_step` that draws each device's tasks on that device.

    Args:
      mesh: Mesh with the axis `tasks`.

    Returns:
      A function like `draw_tasks`, of equal result, divided by task over the mesh, as are the leaves of the
      data that `by_task` marks. It raises ValueError where the tasks do not divide over the devices.
    """
    own = P(_axes(mesh))

    def over_devices(
        sample: SampleFn, data: Any, key: Key, step: Array, tasks: Array, *, by_task: Any = None
    ) -> tuple[Key, Task]:
        _check_divides(len(tasks), mesh)

        def local(data, key, step, tasks):
            return draw_tasks(sample, data, key, step, tasks, by_task=by_task)

        into = (_data_specs(mesh, by_task), P(), P(), own)
        return _shard_map(local, mesh, into, own)(data, key, step, tasks)

    return over_devices


def over_episodes(mesh: Mesh, evaluate: EvaluateFn, *, by_task: Any = None) -> EvaluateFn:
    """Spreads an evaluation's tasks over a mesh.

    Args:
      mesh: Mesh with the axis `tasks`.
      evaluate: Evaluation as `train.make_evaluate` makes it.
      by_task: Leaves of the data with a leading axis of tasks, as in `make_evaluate`.

    Returns:
      The same function of the same arguments; what it returns lies whole on every device. Tasks need not
      divide over the devices: the last one is scored again to fill up, and left out of what is returned.
    """
    own = P(_axes(mesh))
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


def _data_specs(mesh: Mesh, by_task: Any) -> Any:
    """How data is divided: by task where it has an axis of tasks, else not at all."""
    own = P(_axes(mesh))
    return jax.tree.map(
        lambda axis: P() if axis is None else own, by_task, is_leaf=lambda axis: axis is None
    )


def _shard_map(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    # With check_vma, gradients with respect to the replicated `meta` would arrive summed already.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(name for name in BOTH if name in mesh.shape)


def _check_divides(num_tasks: int, mesh: Mesh) -> None:
    if num_tasks % mesh.size:
        raise ValueError(
            f"{num_tasks} tasks do not divide over {mesh.size} devices; use a multiple of {mesh.size}."
        )


def _specs(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _spec(mesh, leaf), tree)


def _spec(mesh: Mesh, leaf: Any) -> P:
    """How a leaf of the parameters is divided."""
    parts, shape = mesh.shape.get(SHARDS, 1), np.shape(leaf)
    fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < LEAST_DIVIDED or not fitting:
        return P()
    axis = max(fitting, key=lambda axis: shape[axis])
    return P(*[None] * axis, SHARDS)


def _gathered(mesh: Mesh, specs: Any, tree: Any) -> Any:
    """Makes whole what a device holds a part of."""

    def gather(leaf, spec):
        if not spec:
            return leaf
        return jax.lax.all_gather(leaf, SHARDS, axis=len(spec) - 1, tiled=True)

    return jax.tree.map(gather, tree, specs)


def _averaged(mesh: Mesh, specs: Any, grads: Any, metrics: Metrics) -> tuple[Any, Metrics]:
    """Averages over devices: of what is divided each gets its part, of all else the whole."""
    leaves, structure = jax.tree.flatten(grads)
    specs = structure.flatten_up_to(specs)
    whole = [leaf for leaf, spec in zip(leaves, specs, strict=True) if not spec]
    whole, metrics = _mean(_axes(mesh), (whole, metrics))

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
    """Averages over devices in one message, of which between slices of TPUs there would be one a leaf."""
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


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """Puts what every process has whole on all devices."""
    lies_there = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if lies_there or jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Not `device_put`, which compares the values of all processes: the store of classes is large.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])
