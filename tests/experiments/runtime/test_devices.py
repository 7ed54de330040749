"""Cores and memory: counts that divide, peaks in bytes, memory given back."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.runtime import devices


@pytest.mark.parametrize(("number", "at_most", "divisor"), [(16, 3, 2), (7, 6, 1), (4, 9, 4)])
def test_the_largest_divisor_divides(number, at_most, divisor):
    assert devices.largest_divisor(number, at_most=at_most) == divisor


def test_peak_memory_is_in_bytes(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    monkeypatch.setattr(
        jax, "local_devices", lambda: [Device({"peak_bytes_in_use": b}) for b in (5, 9)]
    )
    assert devices.peak_memory_bytes() == 9
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None), Device({})])
    peak = devices.peak_memory_bytes()
    assert 2**25 < peak < 2**40
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak == pytest.approx(int(high.split()[1]) * 1024, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a peak that starts again")
def test_memory_is_given_back_and_its_peak_starts_again():
    small = [
        bytearray(b"x" * 1000) for _ in range(100_000)
    ]  # on the heap: large ones are mapped apart
    before = devices.peak_memory_bytes()
    last = small.pop()  # at the top of the heap, which keeps the rest from shrinking by itself
    del small
    devices.release_memory()
    if not devices.restart_peak():
        pytest.skip("this system does not let a peak start again")
    assert devices.peak_memory_bytes() < before - 50_000_000, last[:1]


def test_a_program_holds_arguments_results_and_temporaries_of_all_devices_that_share_memory():
    matrix = jax.ShapeDtypeStruct((64, 64), np.float32)
    array = 4 * 64 * 64

    def step(state, data):
        return state @ data @ data

    compiled = jax.jit(step, donate_argnums=0).lower(matrix, matrix).compile()
    cpu, gpu = (SimpleNamespace(platform=platform) for platform in ("cpu", "gpu"))
    one = devices.program_bytes(compiled, [cpu])
    assert 2 * array <= one < 6 * array  # the state is donated to its successor
    assert devices.program_bytes(compiled, [cpu, cpu]) == 2 * one
    assert devices.program_bytes(compiled, [gpu, gpu]) == one
    untold = SimpleNamespace(memory_analysis=lambda: None)
    assert devices.program_bytes(untold, [cpu]) is None
