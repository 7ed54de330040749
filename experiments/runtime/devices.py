"""The devices of this machine, and the memory that this process uses on them.

Functions import JAX where they need it: processes that measure another framework import this module too.
"""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any


def cores() -> int:
    """Counts the CPU cores that this process may use.

    Returns:
      Number of cores in the process's affinity mask, or of the machine where the system has no masks.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_every_core(num_tasks: int) -> None:
    """Configures one CPU device per core, as many as divide the tasks; call it before anything else uses JAX.

    XLA's CPU backend runs many element-wise kernels on one thread, so one device per core beats one device of
    many threads. A number of devices set in XLA_FLAGS or JAX_NUM_CPU_DEVICES is left as it is.

    Args:
      num_tasks: Number of tasks per meta-step T; the number of devices divides it.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", largest_divisor(num_tasks, at_most=cores()))


def largest_divisor(number: int, *, at_most: int) -> int:
    """Finds the largest divisor of a number that is at most `at_most`.

    Args:
      number: Positive integer.
      at_most: Upper limit, at least 1.

    Returns:
      Divisor of `number` in [1, at_most].
    """
    return max(n for n in range(1, at_most + 1) if number % n == 0)


def peak_memory_bytes() -> int:
    """Measures the peak memory so far.

    Returns:
      Bytes in use at the peak: of the fullest device if the backend counts them, else of this process.
    """
    import jax

    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
    if max(peaks) > 0:
        return int(max(peaks))
    return process_peak_bytes()


def device_bytes() -> int | None:
    """Finds the memory of this process's smallest device.

    Returns:
      Bytes that the allocator may use; None for devices without a limit, such as CPUs, which use the
      machine's memory.
    """
    import jax

    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min(limits) if all(limits) else None


def process_peak_bytes() -> int:
    """Measures the peak resident memory of this process.

    Returns:
      Bytes.
    """
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB on Linux.
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def program_bytes(compiled: Any, devices: Collection[Any]) -> int | None:
    """Computes the memory that a compiled program holds while it runs: arguments, results and temporaries.

    Args:
      compiled: Compiled program, a `jax.stages.Compiled`.
      devices: JAX devices that run it.

    Returns:
      Bytes, as an int: of all devices together on a CPU, whose devices share one memory, elsewhere of one
      device. None if the backend does not report sizes.
    """
    sizes = compiled.memory_analysis()  # sizes per device, however many run the program
    if sizes is None:
        return None
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    sharing = len(devices) if next(iter(devices)).platform == "cpu" else 1
    # A donated argument and its result share one buffer, which both sizes contain.
    return sharing * (held - sizes.alias_size_in_bytes)


def release_memory() -> None:
    """Frees the memory that compilation left: JAX's caches of traces, and free pages of glibc's allocator.

    Both would add to the program's memory: some 50 MB of traces, and hundreds that XLA's compiler left.
    Programs compiled ahead of time stay; functions under `jax.jit` are compiled again at their next call.
    """
    import jax

    jax.clear_caches()
    gc.collect()  # traces refer to each other in cycles
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries have no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def restart_peak() -> bool:
    """Resets the peak resident memory of this process to its current use (Linux only).

    Returns:
      Whether it was reset.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
