"""Four CPU devices for the sharding tests, set before JAX starts, and caches that leave the user's alone."""

import gc
import os

# Before JAX loads LAPACK: its threads would wait for the ones of the other workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

from helpers import lanes

jax.config.update("jax_num_cpu_devices", 4)
# Most of the time is the compiler's, and programs run once or twice: without optimizations of its last stage,
# and with the older of its two ways to write a loop, it takes about half of the time. The drivers that tests
# start read the variables; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests the programs that users run.
OPTIMIZE_LITTLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ.setdefault(OPTIMIZE_LITTLE, "1")
jax.config.update("jax_disable_most_optimizations", os.environ[OPTIMIZE_LITTLE] == "1")
# Only for versions that know the flag: XLA ends the process of who gives it one that it does not.
OLD_LOOPS, flags = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
if os.environ[OPTIMIZE_LITTLE] == "1" and jax.__version_info__ < (0, 11) and OLD_LOOPS not in flags:
    os.environ["XLA_FLAGS"] = f"{OLD_LOOPS} {flags}"
# Tracing makes many objects that live on: collecting after each 700 of them is a tenth of the time.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _programs_of_the_session(tmp_path_factory):
    """Programs that several tests, or both workers, compile are compiled once."""
    folder = tmp_path_factory.getbasetemp().parent / "metajax-programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    """The folder of images that tests of a session decode once, also real ones."""
    return tmp_path_factory.getbasetemp().parent / "metajax-cache"


@pytest.fixture(autouse=True)
def _own_cache(session_cache, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(session_cache))


@pytest.fixture
def float64():
    """Computes in float64, for comparisons with finite differences."""
    with jax.enable_x64(True):
        yield


def pytest_ignore_collect(collection_path, config):
    """Imports only the files of the quick lane where nothing else is asked for."""
    other = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if config.getoption("markexpr") == "quick" and other:
        return lanes.pattern_of(collection_path) is None or None
    return None


@pytest.hookimpl(tryfirst=True)  # Before the markers select.
def pytest_collection_modifyitems(config, items):
    """Marks the tests of the lanes, and lets slow files start first."""
    items.sort(key=lambda item: lanes.rank(item.path))
    selected = config.stash[lanes.SELECTED] = {}
    left_out = config.stash[lanes.LEFT_OUT] = {}
    for item in items:
        if (name := lanes.relative(item.path)) in lanes.THOROUGH:
            thorough = lanes.is_thorough(item.path, item.name)
            left_out[name] = left_out.get(name, 0) + thorough
            if thorough:
                item.add_marker(pytest.mark.thorough)
        if lanes.pattern_of(item.path) is not None:
            name, quick = lanes.relative(item.path), lanes.is_quick(item.path, item.name)
            selected[name] = selected.get(name, 0) + quick
            if quick:
                item.add_marker(pytest.mark.quick)
