"""A worker: its protocol, how it times and measures memory, and what it says of failures."""

import subprocess
import sys

import pytest

from benchmarks.harness import worker
from benchmarks.harness.options import ROOT


class FakePeer:
    device = "cpu"

    def __init__(self):
        self.taken = []

    def prepare(self):
        return 0.25

    def steps(self, count):
        self.taken.append(count)

    def check(self):
        return 2.0, 3.0

    def device_bytes(self):
        return 7

    def program_bytes(self):
        return 5


class HeavyPeer(FakePeer):
    """Holds 300 MB for a moment to prepare, and 60 MB to take steps; no other device holds it."""

    def prepare(self):
        bytearray(b"x" * 150_000_000)  # there are two of them until the first is gone
        return super().prepare()

    def steps(self, count):
        bytearray(b"x" * 30_000_000)
        super().steps(count)

    def device_bytes(self):
        return 0


def test_the_protocol_of_a_worker(monkeypatch):
    peer, answers = FakePeer(), []
    monkeypatch.setattr(worker, "ROUND_SECONDS", 0.0)
    commands = ["check\n", "prepare\n", "round\n", "stop\n", "round\n"]
    assert worker.serve(lambda: peer, commands, answers.append) == 0
    checked, prepared, taken = answers
    assert checked == {"device": "cpu", "loss": 2.0, "gradient_norm": 3.0}
    assert (prepared["compile_seconds"], prepared["program_bytes"]) == (0.25, 5)
    assert taken["steps"] == 1 and taken["seconds"] >= 0
    assert taken["peak_bytes"] == taken["step_peak_bytes"] == 7  # of the device
    assert peer.taken == [1, 1, 1]  # two to warm up


def test_a_round_takes_as_many_steps_as_fit(monkeypatch):
    peer, clock = FakePeer(), iter([0.0, 3.0, 3.0, 3.125, 4.0, 4.5])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    answers = []
    assert worker.serve(lambda: peer, ["prepare", "round"], answers.append) == 0
    assert answers[0]["step_seconds"] == 0.125
    assert (answers[1]["steps"], answers[1]["seconds"]) == (4, 0.5)


def test_a_slow_step_is_warmed_up_once(monkeypatch):
    peer, clock = FakePeer(), iter([0.0, 11.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    worker.serve(lambda: peer, ["prepare"], lambda answer: None)
    assert peer.taken == [1]


def heavy_round():
    answers = []
    assert worker.serve(HeavyPeer, ["prepare", "round"], answers.append) == 0
    return answers[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a peak that starts again")
def test_the_peak_of_steps_leaves_out_what_only_compiling_took(monkeypatch):
    monkeypatch.setattr(worker, "ROUND_SECONDS", 0.0)
    taken = heavy_round()
    assert 60_000_000 < taken["step_peak_bytes"] < taken["peak_bytes"] - 200_000_000


def test_a_system_that_cannot_restart_a_peak_has_none_of_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(worker, "restart_peak", lambda: False)
    taken = heavy_round()
    assert taken["step_peak_bytes"] is None and taken["peak_bytes"] > 300_000_000


def test_a_round_before_a_prepare_is_an_error():
    answers = []
    assert worker.serve(FakePeer, ["round"], answers.append) == 1
    assert answers == [{"error": "ValueError: a round needs a prepare before it"}]


def test_a_worker_without_jax_for_its_peer_loads_none():
    code = "import sys, benchmarks.harness.worker; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr


@pytest.mark.parametrize(
    "args, says",
    [
        (["higher", "supervised", "--steps=3"], "--steps=3 has no effect on supervised"),
        (["higher", "maml_1", "--steps=0"], "'0' is not a whole number above zero."),
        (["higher", "mamml_1"], "invalid choice: 'mamml_1'"),
    ],
)
def test_wrong_options_of_a_worker_are_one_line(args, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        worker.parse(args)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_what_a_peer_raises_is_its_answer():
    def missing():
        raise ModuleNotFoundError("No module named 'higher'", name="higher")

    answers = []
    assert worker.serve(missing, ["prepare", "round"], answers.append) == 1
    assert answers == [{"error": "higher is not installed; pip install -e '.[bench]'"}]
    assert worker.serve(FakePeer, ["dance"], answers.append) == 1
    assert answers[1] == {
        "error": "ValueError: 'dance' is not a command; use prepare, round, check"
    }
