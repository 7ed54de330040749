"""What several tests of the drivers start from."""

import numpy as np
import pytest
from PIL import Image

from experiments.fewshot import bundles
from experiments.fewshot.calibrate import calibrate
from experiments.runtime import compiled_steps
from experiments.runtime.devices import release_memory
from experiments.setup import experiment
from helpers.fork_server import ForkServer
from helpers.undrawn import leave_out_calibration


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory):
    # Fixtures of a session start runs before the cache of a single test is set.
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp().parent / "metajax-cache"
        patch.setenv("METAJAX_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def _uncalibrated():
    """Leaves out the calibration of bundles, for what does not look at it."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_calibration(patch.setattr)
        yield


@pytest.fixture(scope="module", autouse=True)
def _traces_of_a_file():
    """Keeps the traces that a run gives back: the next run of a file compiles the same small programs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled_steps, experiment):
            patch.setattr(module, "release_memory", lambda: None)
        yield
    release_memory()


@pytest.fixture
def calibrated(monkeypatch):
    """Calibrates bundles, as runs of a user do."""
    monkeypatch.setattr(bundles, "calibrate", calibrate)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Twenty classes of eight 16 x 16 pictures: a class is a pattern, a picture that pattern and noise."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in range(20):
        pattern = rng.integers(0, 256, (4, 4)).repeat(4, 0).repeat(4, 1)
        (root / f"class{name:02}").mkdir()
        for number in range(8):
            noisy = np.clip(pattern + rng.normal(0, 60, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class{name:02}" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """Runs a driver on flags as a command, in a fork of one process: (status, stdout, stderr)."""
    base = tmp_path_factory.getbasetemp().parent
    server = ForkServer(
        {
            "METAJAX_CACHE_DIR": str(base / "metajax-cache"),
            "JAX_COMPILATION_CACHE_DIR": str(base / "metajax-cache" / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )
    yield server.run
    server.close()
