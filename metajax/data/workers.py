"""Results of worker processes, computed ahead and returned in order, through Grain.

Workers are fresh processes that import the modules of their function. Their JAX has the CPU alone, whatever
accelerator this process has. They end with this process, or with the `Results` they serve.
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

from metajax.errors import DataError

T = TypeVar("T")

# JAX options that workers copy from this process: they decide which numbers a key draws, and where compiled
# programs are cached.
_CONFIGURATION = (
    "jax_enable_x64",
    "jax_threefry_partitionable",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


class Results(Iterator[T], Generic[T]):
    """Iterates over function(0), function(1), ..., computed ahead by worker processes.

    Close it after use, best by `with`: otherwise workers run until the last result. An exception of the
    function is raised here when its turn comes.

    Args:
      function: Function number -> tree of arrays, which cloudpickle can pickle.
      count: Number of results.
      workers: Number of processes, each of which works up to three results ahead; with 0 this process
        computes a result when it is asked for.

    Raises:
      DataError: If a worker dies.
      ImportError: If `workers` is positive and Grain is not installed.

    Example:
      >>> from metajax.data.workers import Results
      >>> with Results(lambda number: number**2, 4, workers=0) as results:
      ...     print(list(results))
      [0, 1, 4, 9]
    """

    def __init__(self, function: Callable[[int], T], count: int, *, workers: int):
        workers = min(workers, count)
        self._here = iter(()) if workers else map(function, range(count))
        # A list, which the finalizer can empty when this object is collected, and when the process ends.
        self._elsewhere = [_start(function, count, workers)] if workers else []
        self._end = weakref.finalize(self, _close, self._elsewhere)

    def __next__(self) -> T:
        """Returns the next result, or raises the exception of the function."""
        if not self._elsewhere:
            return next(self._here)
        try:
            # Copied, so that the shared memory of the result, which may be scarce, is freed.
            return jax.tree.map(np.array, next(self._elsewhere[0]))
        except Exception as error:
            failure = _explained(error)
        self.close()
        raise failure

    def close(self) -> None:
        """Ends the workers; a second call does nothing."""
        self._end()
        self._here = iter(())

    def __enter__(self) -> "Results[T]":
        """Returns these results, which the end of `with` closes."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the workers."""
        self.close()


def _close(iterators: list) -> None:
    """Closes Grain's iterators and empties the list."""
    while iterators:
        iterators.pop().close()
        # Reference cycles keep Grain's last results, and their shared memory, until they are collected.
        gc.collect()


def _explained(error: Exception) -> Exception:
    """Explains a worker's exception, and drops its frames, which would keep Grain's memory alive."""
    # Grain raises plain RuntimeErrors; the exceptions of functions are of other types.
    if type(error) is RuntimeError:
        return DataError(
            f"a process that reads ahead is gone: {error} It may have been killed for lack of memory, or of "
            "space in /dev/shm (docker run --shm-size=2g): use fewer workers, or 0, which reads in this "
            "process. A script that starts workers must do so under `if __name__ == '__main__':`."
        )
    if not isinstance(error, DataError | StopIteration):
        error.add_note("".join(traceback.format_exception(error)))
    return error.with_traceback(None)


def cores() -> int:
    """Counts the cores that this process may use.

    Returns:
      A number of at least 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _start(function: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """Starts Grain's workers, and returns their iterator of results."""
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
        # Grain makes the inner iterator lazily: only after its state was asked for can it start.
        iterator.get_state()
        iterator.start_prefetch()
    return iterator


def _grain() -> Any:
    """Imports Grain, for which the flags of absl must have been parsed."""
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise ImportError(
            "reading images in worker processes needs Grain: pip install 'metajax[stream]'; with 0 workers "
            "this process reads them"
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags even in programs without flags
    return grain


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM in processes that are started meanwhile.

    This process decides how to react to them, such as finishing a step first. Processes and threads inherit
    the blocked signals of the thread that starts them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Otherwise Python starts it with the first process, and unblocks the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(configuration: dict[str, Any], index: int, count: int) -> None:
    """Configures JAX in a worker, before its function is unpickled."""
    del index, count
    jax.config.update("jax_platforms", "cpu")
    for name, value in configuration.items():
        jax.config.update(name, value)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent ends."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
