"""One of several processes ends with one line of its own: in processes that JAX does not slow."""

import signal
import subprocess
import sys
import time

import pytest

from helpers.driver_runs import ROOT

# What the runtime of JAX 0.10 prints where another process is gone, before it aborts.
OF_OTHERS = (
    "E1129 22:44:22.068 7885 coordination_service_agent.cc:289] Polled an error from coordination service.\n"
    "F1129 22:44:22.069 7885 client.h:80] Terminating process because the JAX distributed service detected "
    "fatal errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy:\n1\n"
    "*** Check failure stack trace: ***\n    @     0x7f82cae40634  absl::LogMessage::SendToLog()\n"
)
ABORTED = "error: JAX's runtime ended this process; its message is above."
# `stuck` waits in C for ever, and so do Python's handlers of signals.
PRELUDE = """
import ctypes, faulthandler, os, signal, sys
faulthandler.enable()
stuck = lambda: [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]
mutex = ctypes.create_string_buffer(64)
from experiments.runtime.parting import Parting
parting = Parting(lambda said: "of others" if "UNAVAILABLE" in said else said)
cpp = lambda text: os.write(2, text.encode())
"""


def begun(code):
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(code):
    process = begun(code)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    "code, status, err",
    [
        ("cpp('W00 slow\\n'); parting.end(3, 'error: ours')", 3, "W00 slow\nerror: ours\n"),
        (f"cpp({OF_OTHERS!r}); os.abort()", 1, "error: of others\n"),
        (f"cpp('W00 slow\\n' + {OF_OTHERS!r}); os.abort()", 1, "W00 slow\nerror: of others\n"),
        ("cpp('F00 hlo.cc:1] Check failed'); os.abort()", 1, f"F00 hlo.cc:1] Check failed\n{ABORTED}\n"),
        (f"parting.over(0); cpp({OF_OTHERS!r}); os.abort()", 0, ""),
        (f"cpp({OF_OTHERS!r}); parting.end(2, 'error: ours')", 2, "error: ours\n"),
    ],
)  # fmt: skip
def test_the_last_line_is_ours_and_what_else_the_runtime_printed_comes_before(code, status, err):
    assert ended(code) == (status, err)


def test_a_crash_shows_where_it_was():
    status, err = ended("ctypes.string_at(0)")
    assert status == -signal.SIGSEGV
    assert "Segmentation fault" in err and "string_at" in err


def test_a_second_signal_ends_a_process_that_waits_in_the_runtime():
    process = begun(
        "signal.signal(signal.SIGTERM, lambda *_: None)\nparting.signals = 2\n"
        "print('stuck', flush=True); stuck()"
    )
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1].startswith("error: interrupted; the same command in every process")
