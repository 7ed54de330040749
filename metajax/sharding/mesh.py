"""The mesh of devices, its two axes, and the shardings over them."""

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TASKS = "tasks"
SHARDS = "shards"

# Tasks are divided over both axes: a device that holds a part of the parameters has its own tasks too.
BOTH = (TASKS, SHARDS)


def task_mesh(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # a class
    *,
    shards: int = 1,
) -> Mesh:
    """Makes a mesh for tasks, and for parameters that are too large for one device.

    Args:
      devices: Devices of the mesh; None takes all devices of all processes.
      shards: Number of devices over which parameters and the state of the outer optimizer are divided. Each
        device stores one part and gathers the others to compute: stage 3 of ZeRO, also known as FSDP.

    Returns:
      A mesh with the axis `tasks`; with several shards, the axes `tasks` (devices / shards) and `shards`.

    Raises:
      ValueError: If the devices do not divide into groups of `shards`.

    Example:
      >>> metajax.task_mesh(jax.devices()[:1]).axis_names
      ('tasks',)

    Reference: Rajbhandari et al., 2020 (https://arxiv.org/abs/1910.02054), section 5.
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
    # Several TPU slices have a slower network between them: parameters are gathered within each slice.
    inside, between = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    grid = mesh_utils.create_hybrid_device_mesh(
        inside, between, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, axes, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Makes the sharding of data that every device holds whole, such as a class store.

    Args:
      mesh: Mesh from `task_mesh`.

    Returns:
      A sharding without divided axes.

    Example:
      >>> metajax.sharding.replicated(metajax.task_mesh()).is_fully_replicated
      True
    """
    return NamedSharding(mesh, P())


def divided(mesh: Mesh) -> NamedSharding:
    """Makes the sharding of data with a leading axis of tasks, divided over all devices.

    Args:
      mesh: Mesh from `task_mesh`.

    Returns:
      A sharding whose first axis is divided over the axes of the mesh.

    Example:
      >>> metajax.sharding.divided(metajax.task_mesh(jax.devices()[:1])).shard_shape((8, 3))
      (8, 3)
    """
    return NamedSharding(mesh, P(task_axes(mesh)))


def task_axes(mesh: Mesh) -> tuple[str, ...]:
    """Lists the axes of the mesh over which tasks are divided: `tasks`, and `shards` if there are any."""
    return tuple(name for name in BOTH if name in mesh.shape)


def check_divides(num_tasks: int, mesh: Mesh) -> None:
    """Raises a ValueError if tasks do not divide evenly over the devices of the mesh."""
    if num_tasks % mesh.size:
        raise ValueError(
            f"{num_tasks} tasks do not divide over {mesh.size} devices; use a multiple of {mesh.size}."
        )
