"""Compiled programs kept on disk, so that the same command does not compile twice."""

import os
import sys
import tempfile
from pathlib import Path

import jax

from metajax.data.cache import cache_dir
from metajax.names import shown

LEAST_SECONDS = 0.5  # what compiles faster than this is hardly read faster


def keep_programs(asked: str) -> None:
    """Lets JAX keep and find its compiled programs; call it before anything compiles.

    The folder may be deleted at any time. Where it cannot be written, a line on stderr says so and programs
    are compiled in every run.

    Args:
      asked: the folder; "off" keeps none; "" is the one that JAX is configured with, by
        JAX_COMPILATION_CACHE_DIR for instance, else `programs` in the cache of decoded images.
    """
    if asked == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    folder = asked or jax.config.jax_compilation_cache_dir or str(cache_dir() / "programs")
    if "://" not in folder:  # a bucket is JAX's to reach
        folder = os.path.expanduser(folder)
        if error := _unwritable(Path(folder)):
            print(
                f"warning: compiled programs cannot be kept in {shown(folder)} ({error}); name a folder that "
                "can be written with --compilation_cache, or off.",
                file=sys.stderr,
            )
            jax.config.update("jax_enable_compilation_cache", False)
            return
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which is made if need be; None if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
