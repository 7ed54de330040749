"""Tasks whose images stay on disk: worker processes read their pixels ahead, the device makes the episodes.

Which images a task has is a function of (key, step, task), as for images in memory. Workers draw it too, read
those images and nothing else, and hand over their raw pixels; turning, augmenting and normalising is left to
the device. So the episodes are those of images in memory bit for bit, any host reads its own share of a step,
and a stream begins anywhere: its position is the step.

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
import numpy as np

from metajax.data.streamed import StreamedImages
from metajax.data.workers import Results
from metajax.episodes.rows import Rows
from metajax.episodes.store import class_store
from metajax.train import SampleFn, draw_tasks
from metajax.types import Array, Episode, Key

WORKERS = 2
_IMPL = "threefry2x32"


class Sampler(Protocol):
    """Draws tasks of images: `EpisodeSampler`, `BatchSampler`, `PixelSampler`."""

    def identify(self, store: Rows, key: Key) -> Any:
        """Chooses images; those are the rows [...] in the attribute `rows` of what is returned."""

    def __call__(self, store: Rows, key: Key, pixels: Array | None = None) -> Episode:
        """Makes the episode of a key of its images [..., H, W, C]."""


class Streamed(NamedTuple):
    """What a step reads.

    Attributes:
      store: the class store, without pixels.
      pixels: [T, ..., H, W, C] uint8, the images of each task, in the order of its draw.
    """

    store: Rows
    pixels: Array


# The leaves with an axis of tasks, as `train.draw_tasks` takes it.
BY_TASK = Streamed(store=None, pixels=0)


def sampler(base: Sampler) -> SampleFn:
    """Makes the sampler `(streamed, key) -> task` that takes a task's pixels from `Streamed`."""
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
    """Reads the images of the tasks of many steps.

    Args:
      sampler: of the training tasks.
      images: what it draws from.
      key: Random key of the training tasks, as in `TrainState.key`; one of JAX's default kind.
      steps: which steps; to go on from a checkpoint, those from its own on.
      tasks: the tasks of a step that are wanted here: all of them, or `share` of several hosts.
      workers: how many processes read ahead; 0 reads when asked.

    Returns:
      An iterator of a step's pixels [T, ..., H, W, C] uint8, to be used in `with`. It raises DataError for an
      image that cannot be read, and when a worker ends before its time.
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
    """Reads the images of numbered tasks, those that `train.make_evaluate` scores, some at a time.

    Args:
      sampler: of the tasks.
      images: what it draws from.
      key: of the tasks.
      chunks: numbers of tasks; those of one chunk are read together.
      workers: as of `training_pixels`.

    Returns:
      An iterator of a chunk's pixels, as of `training_pixels`.
    """
    return _read(sampler, images, key, range(1), chunks, workers)


def share(sharding: jax.sharding.Sharding, num_tasks: int) -> list[int]:
    """The tasks that this process is to read, in order, where arrays [T, ...] have this sharding."""
    parts = sharding.addressable_devices_indices_map((num_tasks,)).values()
    return sorted({task for (part,) in parts for task in range(num_tasks)[part]})


def ahead(
    arrays: Iterable[np.ndarray], place: Callable[[np.ndarray], Array], *, size: int = 2
) -> Iterator[Array]:
    """Places arrays on the device before they are needed, so that copies go on while it computes.

    Args:
      arrays: of this process's tasks [T, ...].
      place: puts one on the device and returns at once, such as
        `lambda pixels: jax.make_array_from_process_local_data(sharding, pixels)`.
      size: how many are placed beside the one in use.
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
    if str(jax.random.key_impl(key)) != _IMPL:
        # Others draw other numbers on other devices, so that workers would read the wrong images.
        raise ValueError(
            f"The key is of kind {jax.random.key_impl(key)}; use {_IMPL}, JAX's default, where images stay "
            "on disk."
        )
    data = np.asarray(jax.random.key_data(key))
    threads = 1 if workers else None
    reader = _Reader(sampler, images, data, steps, chunks, threads)
    return Results(reader, len(steps) * len(chunks), workers=workers)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Draws tasks and reads their images: chunk after chunk of a step, and step after step."""

    sampler: Sampler
    images: StreamedImages
    key_data: np.ndarray
    steps: Sequence[int]
    chunks: Sequence[Sequence[int]]
    threads: int | None

    def __call__(self, index: int) -> np.ndarray:
        step, chunk = divmod(index, len(self.chunks))
        with _on_cpu():
            rows = self._rows(self.steps[step], np.asarray(self.chunks[chunk], np.int32))
            return self.images.read(np.asarray(rows), threads=self.threads)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _rows(self) -> Callable[[int, np.ndarray], Array]:
        """(step, tasks [T]) -> rows [T, ...], compiled."""
        channels = self.images.shape[-1]
        store = class_store(self.images, statistics=(np.zeros(channels), np.ones(channels)))

        def identify(store: Rows, key: Key) -> Array:
            return self.sampler.identify(store, key).rows

        def rows(step: int, tasks: Array) -> Array:
            key = jax.random.wrap_key_data(self.key_data, impl=_IMPL)
            return draw_tasks(identify, store, key, step, tasks)[1]

        # Optimized, it would take longer to compile than to run for a thousand steps.
        return jax.jit(rows, compiler_options={"xla_backend_optimization_level": 0})


def _on_cpu() -> contextlib.AbstractContextManager:
    """Computes on the CPU where JAX has it beside an accelerator."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out.
        return contextlib.nullcontext()
