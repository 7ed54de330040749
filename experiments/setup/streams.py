"""Training and scoring on images that stay on disk."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from metajax.data import streaming
from metajax.data.streamed import StreamedImages
from metajax.data.workers import Results
from metajax.episodes.rows import Rows
from metajax.sharding import divided, fetch
from metajax.train import SampleFn, StepFn, TrainState, many_steps
from metajax.types import Array, Key, Metrics

from ..runtime.compiled_steps import CompiledSteps

# Bytes of raw pixels that an evaluation holds at once, over all devices.
CHUNK_BYTES = 2**26


def drawing(sampler: Any, images: StreamedImages | None) -> tuple[SampleFn, Any]:
    """Returns `sample` and `by_task` for `draw_tasks`; `images` is None where they are in memory.

    A sampler that takes tasks from a list has an attribute `by_task`.
    """
    if images is None:
        return sampler, getattr(sampler, "by_task", None)
    return streaming.sampler(sampler), streaming.BY_TASK


def first_data(
    sampler: Any, data: Any, images: StreamedImages | None, key: Key, num_tasks: int
) -> Any:
    """Returns the data of the first tasks of a key, with the pixels [T, ...] of images on disk."""
    if images is None:
        return data
    pixels = next(read_here(sampler, images, key, [range(num_tasks)]))
    return streaming.Streamed(data, pixels)


def read_here(sampler: Any, images: StreamedImages, key: Key, chunks: Any) -> Iterator[np.ndarray]:
    """Reads the images of numbered tasks in threads of this process: few tasks, soon needed."""
    return streaming.numbered_pixels(sampler, images, key=key, chunks=chunks, workers=0)


def task_shape(sampler: Any, data: Rows) -> tuple[int, ...]:
    """Returns the shape [..., H, W, C] of a task's pixels."""
    drawn = jax.eval_shape(sampler.identify, data, jax.random.key(0))
    return (*drawn.rows.shape, *data.features.shape[1:])


class StreamedSteps(CompiledSteps):
    """Compiled steps whose images are read ahead; a single step is compiled, and dispatched in turn.

    Args:
      step: Meta-step that reads `streaming.Streamed`.
      read: Function (key=, steps=range) -> this process's pixels of each of these steps, as
        `streaming.training_pixels`.
      pixels: Shape and sharding of a step's pixels [T, ..., H, W, C].
      steps: Meta-steps of the whole training.
    """

    def __init__(
        self,
        step: StepFn,
        read: Callable[..., Results[np.ndarray]],
        pixels: jax.ShapeDtypeStruct,
        *,
        steps: int,
    ):
        super().__init__(step)
        self._read, self._like, self._steps = read, pixels, steps
        self._pixels = self._first = self._source = None
        self._seconds = self._waited = 0.0
        self._images = 0

    def compile(self, state: TrainState, data: Rows) -> Callable:
        """Compiles a step; `(state, store, number) -> (state, metrics)` takes `number` of them."""
        # A block of one, so that its metrics have an axis of steps.
        one = self._once(many_steps(self._step, 1), state, streaming.Streamed(data, self._like))

        def run(state: TrainState, data: Rows, number: int) -> tuple[TrainState, Metrics]:
            begun, found = time.perf_counter(), []
            for _ in range(number):
                # One step at a time: the images of steps to come would pile up on the device, and what is
                # spent on waiting for them could not be separated from its work.
                jax.block_until_ready(found[-1:])
                start = time.perf_counter()
                pixels, self._first = self._first, None
                pixels = next(self._pixels) if pixels is None else pixels
                self._waited += time.perf_counter() - start
                self._images += math.prod(self._like.shape[:-3])
                state, metrics = one(state, streaming.Streamed(data, pixels))
                found.append(metrics)
            metrics = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(found))
            self._seconds += time.perf_counter() - begun
            return state, metrics

        run.memory_analysis = one.memory_analysis
        return run

    def prepare(self, state: TrainState) -> None:
        """Opens the files and reads the first images, which may take one process longer than another."""
        if self._source is None:
            steps = range(int(state.step), self._steps)
            self._source = self._read(key=fetch(state.key), steps=steps)
            self._pixels = streaming.ahead(self._source, self._place)
            self._first = next(self._pixels)

    def close(self) -> None:
        """Ends the processes that read."""
        if self._source is not None:
            self._source.close()

    def facts(self) -> dict[str, Any]:
        """Reports images per second of steps and the share of time spent waiting for images.

        Both count the steps since this process started; without any there is nothing to report.
        """
        if not self._images:
            return {}
        return {
            "streamed_images_per_second": self._images / self._seconds,
            "waited_for_images": self._waited / self._seconds,
        }

    def _place(self, pixels: np.ndarray) -> Array:
        like = self._like
        return jax.make_array_from_process_local_data(like.sharding, pixels, like.shape)


def chunked_scores(
    evaluate: Callable[[Any, streaming.Streamed, Array], Any],
    meta: Any,
    data: Rows,
    *,
    sampler: Any,
    images: StreamedImages,
    key: Key,
    mesh: Mesh,
    num_episodes: int,
) -> dict[str, Any]:
    """Scores numbered episodes some at a time, as their images are read.

    Args:
      evaluate: Function (meta, data with pixels [n, ...], numbers [n]) -> metrics [n, ...]; n is always the
        same.
      meta: Meta-parameters.
      data: Class store without pixels.
      sampler: Sampler of the episodes.
      images: Images on disk that the sampler draws from.
      key: Random key of the episodes.
      mesh: Mesh of the devices.
      num_episodes: Number of episodes.

    Returns:
      The metrics, each [num_episodes, ...].
    """
    sharding, task_bytes = divided(mesh), math.prod(task_shape(sampler, data))
    size = mesh.size * max(1, min(CHUNK_BYTES // task_bytes, num_episodes) // mesh.size)
    share = streaming.share(sharding, size)
    starts = range(0, num_episodes, size)
    # The last episode fills the last chunk up, and is left out then.
    own = [[min(start + i, num_episodes - 1) for i in share] for start in starts]
    found, place = [], jax.make_array_from_process_local_data
    for numbers, pixels in zip(own, read_here(sampler, images, key, own), strict=True):
        tasks = place(sharding, np.asarray(numbers, np.int32), (size,))
        pixels = place(sharding, pixels, (size, *pixels.shape[1:]))
        found.append(jax.device_get(evaluate(meta, streaming.Streamed(data, pixels), tasks)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_episodes], *found)
