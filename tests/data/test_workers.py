"""Worker processes: results in order, and no process left at any kind of end."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from metajax.data.workers import Results
from metajax.errors import DataError

pytest.importorskip("grain")

ROOT = Path(__file__).parents[2]


def run(body, *, interrupt=False):
    """Runs a script in a new process group; `interrupt` presses Ctrl-C once it prints `ready`."""
    script = "import os, signal, time, numpy as np\nfrom metajax.data.workers import Results\n"
    script += "if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        if interrupt:
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, signal.SIGINT)
        # Ends when everybody has who may still write there: the program and all its workers.
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    def work(number):
        return np.full(3, number), np.array([os.getpid(), jax.config.jax_enable_x64])

    with jax.enable_x64(True), Results(work, 7, workers=workers) as results:
        numbers, processes = zip(*results, strict=True)
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(7), 3).reshape(7, 3))
    pids, x64 = zip(*processes, strict=True)
    assert len(set(pids)) == max(workers, 1) and (os.getpid() in pids) == (workers == 0)
    assert all(x64)
    assert not multiprocessing.active_children()


def test_no_numbers_no_workers():
    assert list(Results(None, 0, workers=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_raised_when_their_turn_comes(workers):
    def work(number):
        if number == 3:
            raise DataError("number 3 is broken")
        return np.array(number)

    results = Results(work, 100, workers=workers)
    assert [int(next(results)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="number 3 is broken"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error():
    def work(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array(number)

    results = Results(work, 100, workers=2)
    with pytest.raises(DataError, match=r"reads ahead is gone.*code -9.*--shm-size"):
        list(results)
    assert not multiprocessing.active_children()
    results.close()
    assert list(results) == []


def test_other_errors_tell_where_they_come_from():
    def work(number):
        raise KeyError(number)

    with pytest.raises(KeyError) as error, Results(work, 1, workers=1) as results:
        next(results)
    assert re.search(r"line \d+, in work\n", "".join(error.value.__notes__))


def test_a_program_that_forgets_its_workers_ends():
    code, output = run("""
        results = Results(lambda number: np.zeros(100_000), 10**6, workers=2)
        next(results)
        print("ready")
    """)
    assert (code, output) == (0, "ready\n")


def test_ctrl_c_is_for_the_program_alone():
    code, output = run(
        """
        stopped = []
        signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
        with Results(lambda number: np.zeros(100_000), 10**6, workers=2) as results:
            print("ready", flush=True)  # the workers have hardly begun
            while not stopped:
                time.sleep(0.01)
            print(len([next(results) for _ in range(10)]))
        """,
        interrupt=True,
    )
    assert (code, output) == (0, "10\n")


def test_workers_do_not_outlive_a_program_that_is_killed():
    code, _ = run("""
        results = Results(lambda number: np.zeros(100_000), 10**6, workers=2)
        next(results)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert code == -signal.SIGKILL


def test_without_grain_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[stream\]'; with 0 workers"):
        Results(np.array, 3, workers=2)
    assert len(list(Results(np.array, 3, workers=0))) == 3
