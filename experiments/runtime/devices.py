"""The devices of this machine, and the memory that this process takes of them.

JAX is imported where it is used: processes that measure another framework read this file too.
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
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_every_core(num_tasks: int) -> None:
    """Gives XLA one CPU device a core, as many as divide the tasks; call it before anything else uses JAX.

    XLA's CPU backend runs many element-wise kernels on one thread, so a device a core beats one device of
    many threads.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", largest_divisor(num_tasks, at_most=cores()))


def largest_divisor(number: int, *, at_most: int) -> int:
    """The largest divisor of a positive number that is no more than `at_most`."""
    return max(n for n in range(1, at_most + 1) if number % n == 0)


def peak_memory_bytes() -> int:
    """The most memory used so far: of one device if the backend counts it, else of this process."""
    import jax

    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
    if max(peaks) > 0:
        return int(max(peaks))
    return process_peak_bytes()


def device_bytes() -> int | None:
    """The memory of the smallest device of this process; None where it is the machine's."""
    import jax

    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min(limits) if all(limits) else None


def process_peak_bytes() -> int:
    """The most memory this process has used."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB on Linux.
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def program_bytes(compiled: Any, devices: Collection[Any]) -> int | None:
    """What a compiled program holds while it runs: arguments, results and temporaries.

    Args:
      compiled: the program.
      devices: JAX's, which it runs on.

    Returns:
      Bytes: of all devices together on a CPU, whose devices share a memory, elsewhere of one. None where
      the backend does not tell.
    """
    sizes = compiled.memory_analysis()  # of one device, however many run the program
    if sizes is None:
        return None
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    sharing = len(devices) if next(iter(devices)).platform == "cpu" else 1
    return sharing * (held - sizes.alias_size_in_bytes)


def release_memory() -> None:
    """Gives back what compiling took: JAX's caches of traces, and with glibc what its memory pools hold free.

    Both would stand beside the memory of the program: some 50 MB, and hundreds that XLA's compiler left.
    Programs compiled ahead of time stay; functions under `jax.jit` are compiled again when next called.
    """
    import jax

    jax.clear_caches()
    gc.collect()  # traces refer to each other in circles
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # with another C library
            ctypes.CDLL(None).malloc_trim(0)


def restart_peak() -> bool:
    """Starts the peak of this process's memory again from what it uses now; False where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
