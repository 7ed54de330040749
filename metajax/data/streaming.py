"""Tasks of images on disk: worker processes read pixels ahead, and the device makes episodes of them.

The images of a task are a function of (key, step, task), as for images in memory. Workers compute the same
draws, read those images alone and return raw pixels; turning, augmentation and normalization happen on the
device. The episodes equal the episodes of images in memory bit for bit, each host reads its own share of a
step, and a stream can begin at any step.

    store = class_store(images, statistics=statistics)  # without pixels
    sample = streaming.sampler(sampler)
    step = jax.jit(train.make_step(..., sample, by_task=streaming.BY_TASK))
    tasks = streaming.share(sharding, num_tasks)
    steps = range(int(state.step), stop)
    with streaming.training_pixels(sampler, images, key=state.key, steps=steps, tasks=tasks) as pixels:
        for raw in streaming.ahead(pixels, place):
            state, metrics = step(state, streaming.Streamed(store, raw))
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from metajax.data.streamed import StreamedImages
from metajax.data.workers import Results
from metajax.episodes.rows import Rows
from metajax.episodes.store import class_store
from metajax.train import SampleFn, draw_tasks
from metajax.types import Array, Episode, Key

WORKERS = 2
"""Default number of worker processes."""
_IMPL = "threefry2x32"  # the kind of random key that draws the same numbers on every device


class Sampler(Protocol):
    """A sampler of tasks of images: `EpisodeSampler`, `BatchSampler` or `PixelSampler`."""

    def identify(self, store: Rows, key: Key) -> Any:
        """Draws images; the attribute `rows` of the result holds their numbers, int32 [...]."""
        ...

    def __call__(self, store: Rows, key: Key, pixels: Array | None = None) -> Episode:
        """Makes the episode of a key; `pixels` are the drawn images [..., H, W, C] uint8."""
        ...


class Streamed(NamedTuple):
    """The data of a step whose images come from disk.

    Attributes:
      store: Class store without pixels.
      pixels: Images of each task in the order of its draw, [T, ..., H, W, C] uint8.
    """

    store: Rows
    pixels: Array


# A prefix of `Streamed`, as `train.draw_tasks` reads it: only pixels have an axis of tasks.
BY_TASK = Streamed._make((None, 0))


def sampler(base: Sampler) -> SampleFn:
    """Makes a sampler that takes the pixels of a task from `Streamed`.

    Args:
      base: Sampler of the tasks.

    Returns:
      A function (streamed, key) -> task; `draw_tasks` and `make_step` map it with `by_task=BY_TASK`.

    Example:
      >>> from metajax.data import streaming
      >>> sample = streaming.sampler(metajax.episodes.EpisodeSampler(ways=5, shots=1, queries=15))
    """
    return lambda data, key: base(data.store, key, data.pixels)


def training_pixels(
    sampler: Sampler,
    images: StreamedImages,
    *,
    key: Key,
    steps: range,
    tasks: Sequence[int],
    workers: int = WORKERS,
) -> Results[np.ndarray]:
    """Reads the images of the training tasks of many steps.

    Args:
      sampler: Sampler of the training tasks.
      images: Images on disk.
      key: Random key of the training tasks, `TrainState.key`, of JAX's default kind.
      steps: Numbers of the steps; a run that continues from a checkpoint starts at the checkpoint's step.
      tasks: Numbers of the tasks of each step to read: all, or the `share` of this host.
      workers: Number of processes that read ahead; 0 reads when asked.

    Returns:
      An iterator over the pixels of each step, [T, ..., H, W, C] uint8, to use in `with`. It raises DataError
      if an image cannot be read or a worker dies.

    Raises:
      ValueError: If the key is not of JAX's default kind.
    """
    return _read(sampler, images, key, steps, [tasks], workers)


def numbered_pixels(
    sampler: Sampler,
    images: StreamedImages,
    *,
    key: Key,
    chunks: Sequence[Sequence[int]],
    workers: int = WORKERS,
) -> Results[np.ndarray]:
    """Reads the images of numbered tasks in chunks, such as the tasks that `metajax.make_evaluate` scores.

    Args:
      sampler: Sampler of the tasks.
      images: Images on disk.
      key: Random key of the tasks, of JAX's default kind.
      chunks: Numbers of tasks; the tasks of a chunk are read together.
      workers: Number of processes that read ahead; 0 reads when asked.

    Returns:
      An iterator over the pixels of each chunk, [T, ..., H, W, C] uint8, to use in `with`.

    Raises:
      ValueError: If the key is not of JAX's default kind.
    """
    return _read(sampler, images, key, range(1), chunks, workers)


def share(sharding: jax.sharding.Sharding, num_tasks: int) -> list[int]:
    """Finds the tasks of a step whose images this process reads.

    Args:
      sharding: Sharding of arrays [T, ...] over the devices of all processes.
      num_tasks: Number of tasks T.

    Returns:
      Numbers of the tasks on the devices of this process, in ascending order.

    Example:
      >>> from metajax.data import streaming
      >>> streaming.share(jax.sharding.SingleDeviceSharding(jax.devices()[0]), 3)
      [0, 1, 2]
    """
    parts = sharding.addressable_devices_indices_map((num_tasks,)).values()
    return sorted({task for part in parts if part for task in range(num_tasks)[part[0]]})


def ahead(
    arrays: Iterable[np.ndarray], place: Callable[[np.ndarray], Array], *, size: int = 2
) -> Iterator[Array]:
    """Places arrays on the device before they are needed, so that copies overlap with computation.

    Args:
      arrays: Arrays [T, ...] of the tasks of this process.
      place: Function that puts an array on the device and returns at once, such as
        `lambda pixels: jax.make_array_from_process_local_data(sharding, pixels)`.
      size: Number of arrays on the device ahead of the current one.

    Yields:
      The placed arrays, in order.

    Example:
      >>> from metajax.data import streaming
      >>> [int(array.sum()) for array in streaming.ahead([np.ones(2), np.zeros(2)], jnp.asarray)]
      [2, 0]
    """
    placed = collections.deque()
    for array in arrays:
        placed.append(place(array))
        if len(placed) > size:
            yield placed.popleft()
    yield from placed


def _read(
    sampler: Sampler,
    images: StreamedImages,
    key: Key,
    steps: Sequence[int],
    chunks: Sequence[Sequence[int]],
    workers: int,
) -> Results[np.ndarray]:
    """Starts the workers that read each chunk of each step."""
    if str(jax.random.key_impl(key)) != _IMPL:
        # Other kinds may draw other numbers on other devices: workers would read the wrong images.
        raise ValueError(
            f"The key is of kind {jax.random.key_impl(key)}, and images on disk need {_IMPL}; use JAX's "
            "default, jax.random.key(seed)."
        )
    data = np.asarray(jax.random.key_data(key))
    threads = 1 if workers else None
    reader = _Reader(sampler, images, data, steps, chunks, threads)
    return Results(reader, len(steps) * len(chunks), workers=workers)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Draws tasks and reads their images; call it with a number that counts the chunks of all steps.

    Attributes:
      sampler: Sampler of the tasks.
      images: Images on disk.
      key_data: Data of the random key.
      steps: Numbers of the steps.
      chunks: Numbers of tasks that are read together, the same in every step.
      threads: Number of threads that decode; None is one per core, at most eight.
    """

    sampler: Sampler
    images: StreamedImages
    key_data: np.ndarray
    steps: Sequence[int]
    chunks: Sequence[Sequence[int]]
    threads: int | None

    def __call__(self, index: int) -> np.ndarray:
        """Reads the pixels [T, ..., H, W, C] uint8 of a chunk."""
        step, chunk = divmod(index, len(self.chunks))
        with _on_cpu():
            rows = self._rows(self.steps[step], np.asarray(self.chunks[chunk], np.int32))
            return self.images.read(np.asarray(rows), threads=self.threads)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields alone, because a compiled function cannot be pickled."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _rows(self) -> Callable[[int, np.ndarray], Array]:
        """Compiled function (step, tasks [T]) -> rows [T, ...]."""
        channels = self.images.shape[-1]
        store = class_store(self.images, statistics=(np.zeros(channels), np.ones(channels)))

        def identify(store: Rows, key: Key) -> Array:
            return self.sampler.identify(store, key).rows

        def rows(step: Array, tasks: Array) -> Array:
            key = jax.random.wrap_key_data(jnp.asarray(self.key_data), impl=_IMPL)
            return draw_tasks(identify, store, key, step, tasks)[1]

        # Optimization would take longer than a thousand steps of the unoptimized program.
        return jax.jit(rows, compiler_options={"xla_backend_optimization_level": 0})


def _on_cpu() -> contextlib.AbstractContextManager:
    """Makes the CPU the default device, if JAX has it besides an accelerator."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return contextlib.nullcontext()
