"""Results of worker processes, in order and ahead of time, through Grain.

Workers are fresh processes that import what they need. Their JAX knows the CPU alone, whatever accelerator
this process has, and they outlive neither it nor the results that are read of them.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from metajax.data.images import DataError

T = TypeVar("T")

# What a worker's JAX has in common with this process's: what decides which numbers a key draws, and where
# compiled programs are kept.
_CONFIGURATION = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


class Results(Iterator[T], Generic[T]):
    """What a function makes of 0, 1, 2, ..., in this order.

    Close it after use, best by `with`: nothing else ends the workers before the last result. What the
    function raises is raised here when its turn comes.

    Args:
      function: number -> arrays; can be pickled (by cloudpickle).
      count: how many numbers.
      workers: how many processes work ahead, each by up to three results; with 0 this process works, when
        it is asked for one.

    Raises:
      DataError: when a worker ends before its time.
      ImportError: there are to be workers, and Grain is not installed.
    """

    def __init__(self, function: Callable[[int], T], count: int, *, workers: int):
        workers = min(workers, count)
        self._here = iter(()) if workers else map(function, range(count))
        # In a list of its own, which can be emptied when this is dropped, and at the end of the process.
        self._elsewhere = [_start(function, count, workers)] if workers else []
        self._end = weakref.finalize(self, _close, self._elsewhere)

    def __next__(self) -> T:
        if not self._elsewhere:
            return next(self._here)
        try:
            # Copied, for the shared memory that it came in may be little, and is given back then.
            return jax.tree.map(np.array, next(self._elsewhere[0]))
        except Exception as error:
            failure = _explained(error)
        self.close()
        raise failure

    def close(self) -> None:
        """Ends the workers; again does nothing."""
        self._end()
        self._here = iter(())

    def __enter__(self) -> "Results[T]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _close(iterators: list) -> None:
    while iterators:
        iterators.pop().close()
        # Grain's last results hang in circles of references, and their shared memory with them.
        gc.collect()


def _explained(error: Exception) -> Exception:
    """A worker's error, without this process's frames, which would keep what Grain holds from being freed."""
    if type(error) is RuntimeError:  # Grain's own; what functions raise is of other kinds.
        return DataError(
            f"a process that reads ahead is gone: {error} It may have been killed for want of memory, or of "
            "room in /dev/shm (docker run --shm-size=2g): use fewer workers, or 0, which reads in this "
            "process. A script that starts workers must do so under `if __name__ == '__main__':`."
        )
    if not isinstance(error, DataError | StopIteration):
        error.add_note("".join(traceback.format_exception(error)))
    return error.with_traceback(None)


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _start(function: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    grain = _grain()
    configuration = {name: getattr(jax.config, name) for name in _CONFIGURATION}
    results = (
        grain.MapDataset.range(count)
        .map(function)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=functools.partial(_begin, configuration),
        )
    )
    with _signals_held_back():
        iterator = iter(results)
        # Only iterators that were asked for their state exist yet and can start.
        iterator.get_state()
        iterator.start_prefetch()
    return iterator


def _grain():
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise ImportError(
            "reading images in worker processes needs Grain: pip install 'metajax[stream]'; with 0 workers "
            "this process reads them"
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for its flags even in programs that have none.
    return grain


@contextlib.contextmanager
def _signals_held_back():
    """Lets processes that are started meanwhile never see Ctrl-C, nor a SIGTERM to a whole group.

    This process is to decide what happens then, such as to finish a step first. Processes and threads inherit
    what is held back from the thread that starts them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Python starts it with the first process otherwise, and lets the signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(configuration: dict[str, Any], index: int, count: int) -> None:
    """Prepares a worker, before anything of its work is unpickled."""
    del index, count
    jax.config.update("jax_platforms", "cpu")
    for name, value in configuration.items():
        jax.config.update(name, value)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
