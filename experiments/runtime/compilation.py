"""Compiled programs kept on disk, so that the same command does not compile twice."""

import os
import sys
import tempfile
from pathlib import Path

import jax

from metajax.data.cache import cache_dir
from metajax.names import shown

# Programs that compile faster than this are not kept: reading one from disk takes about as long.
LEAST_SECONDS = 0.5


def keep_programs(asked: str) -> None:
    """Configures JAX's persistent compilation cache; call it before anything compiles.

    The folder may be deleted at any time. If it cannot be written, a warning goes to stderr and programs are
    compiled in every run. JAX's own environment variables for the cache's limits take precedence.

    Args:
      asked: Folder of the cache, a path or the URL of a bucket; "off" keeps no programs; "" is the folder
        that JAX is configured with, by JAX_COMPILATION_CACHE_DIR for instance, else `programs` in the cache
        of decoded images.
    """
    if asked == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    folder = asked or jax.config.jax_compilation_cache_dir or str(cache_dir() / "programs")
    if "://" not in folder:  # JAX itself opens buckets
        folder = os.path.expanduser(folder)
        if error := _unwritable(Path(folder)):
            print(
                f"warning: compiled programs cannot be kept in {shown(folder)} ({error}); use "
                "--compilation_cache=DIR with a writable folder, or --compilation_cache=off.",
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
    """Tries to make a file in a folder, made if absent; returns the error's text, None on success."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
