"""The comparison's own arithmetic, and its way with workers that answer, fail, hang or die."""

import contextlib
import json
import math
import sys

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.harness import outcomes, processes
from benchmarks.harness.cases import CASES, make_parameters, make_tasks

CASE = CASES["maml_1"]._replace(tasks=8)
PREPARED = {
    "device": "cpu",
    "compile_seconds": 1.5,
    "program_bytes": 4_000_000,
    "step_seconds": 0.1,
}

# Speaks the protocol; what it does at "round" is filled in.
WORKER = """
import json, sys, time
for line in sys.stdin:
    if line.strip() == "prepare":
        print(json.dumps({prepared}), flush=True)
    else:
        {round}
"""


def rounds(*seconds, steps=2):
    return [
        {"seconds": s, "steps": steps, "peak_bytes": 3 * 10**9, "step_peak_bytes": peak}
        for peak, s in enumerate(seconds, 2 * 10**9)
    ]


def fake_start(behaviour, allowance=30.0):
    """Starts workers that do as `behaviour[peer]` says when asked for a round."""

    def start(case, peer):
        prepared = {**PREPARED, **behaviour[peer].get("prepared", {})}
        code = WORKER.format(prepared=prepared, round=behaviour[peer]["round"])
        return processes.Worker([sys.executable, "-c", code], allowance=allowance)

    return start


def answering(seconds):
    answer = {"seconds": seconds, "steps": 2, "peak_bytes": 5, "step_peak_bytes": 3}
    return f"print(json.dumps({answer}), flush=True)"


def test_an_outcome_is_the_median_of_its_rounds_per_step():
    found = outcomes.summarize(CASE, "metajax", PREPARED, rounds(0.2, 0.8, 0.4), None)
    assert found.rounds_ms == pytest.approx((100, 400, 200))
    assert found.median_ms == pytest.approx(200)
    assert found.tasks_per_second == pytest.approx(8 / 0.2)
    assert (found.peak_bytes, found.step_peak_bytes) == (3 * 10**9, 2 * 10**9 + 2)
    assert found.program_bytes == 4_000_000
    assert (found.compile_seconds, found.steps_per_round) == (1.5, 2)


def test_ratios_are_of_tasks_a_second_to_the_baseline():
    found = outcomes.with_ratios(
        [
            outcomes.summarize(CASE, "metajax", PREPARED, rounds(0.2), None),
            outcomes.summarize(CASE, "higher", PREPARED, rounds(0.6), None),
            outcomes.summarize(CASE, "naive", None, [], "is not installed"),
        ]
    )
    assert [o.ratio for o in found] == [pytest.approx(3), pytest.approx(1), None]
    assert outcomes.with_ratios(found[:1])[0].tasks_per_second == pytest.approx(80)


def test_without_the_baseline_there_is_no_ratio():
    one = outcomes.summarize(CASE, "metajax", PREPARED, rounds(0.2), None)
    assert outcomes.with_ratios([one])[0].ratio is None


def test_the_table_has_a_row_each_and_says_why_one_failed():
    good = outcomes.summarize(CASE, "metajax", PREPARED, rounds(2.5), None)
    bad = outcomes.summarize(CASE, "higher", None, [], "higher is not installed")
    header, first, second = outcomes.table([good, bad]).splitlines()
    assert header.split() == "case peer ms tasks/s ratio peak MB step MB compile s".split()
    assert first.split() == "maml_1 metajax 1,250.0 6.4 - 3,000 2,000 1.5".split()
    assert second.split() == "maml_1 higher - - - - - - higher is not installed".split()
    assert header.index("ms") + 2 == first.index("1,250.0") + len("1,250.0")


def test_the_record_is_strict_json_with_versions_and_machine(tmp_path, monkeypatch, capsys):
    start = fake_start({"metajax": {"round": answering(0.5)}, "higher": {"round": "sys.exit(3)"}})
    monkeypatch.setattr(compare, "start_worker", lambda case, peer, **options: start(case, peer))
    args = ["--cases=maml_1", "--peers=metajax,higher", "--rounds=2", f"--output={tmp_path}"]
    assert compare.main([*args, "--tasks=8"]) == 0
    record = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    ours, theirs = record["outcomes"]
    assert ours["rounds_ms"] == [250, 250]
    assert (ours["median_ms"], ours["tasks_per_second"], ours["ratio"]) == (250, 32, None)
    assert theirs["error"] == "ended with status 3"
    assert record["cases"]["maml_1"]["tasks"] == 8
    assert record["versions"]["python"] == sys.version.split()[0]
    assert set(record["machine"]) == {"cpu", "cores", "gpu"}
    assert "ended with status 3" in capsys.readouterr().out


def test_peers_take_turns_and_a_failure_ends_only_its_own_peer():
    said = []
    found = processes.measure(
        CASE,
        ["metajax", "higher", "naive"],
        rounds=2,
        start=fake_start(
            {
                "metajax": {"round": answering(0.5)},
                "higher": {"round": "raise MemoryError('out of it')"},
                "naive": {"round": answering(30), "prepared": {"step_seconds": 15.0}},
            }
        ),
        log=said.append,
    )
    assert [line.split(": ")[1].split(",")[0].split()[0] for line in said] == [
        *("metajax", "higher", "naive"),
        *("metajax", "higher", "naive"),
        "metajax",  # higher has failed, and naive is too slow for a second round
    ]
    metajax, higher, naive = found
    assert len(metajax.rounds_ms) == 2 and metajax.error is None
    assert higher.error == "ended with status 1: MemoryError: out of it"
    assert naive.rounds_ms == (15_000,)


def test_a_worker_that_hangs_is_stopped_and_reported_with_what_it_did():
    code = WORKER.format(prepared=PREPARED, round="time.sleep(60)")
    hanging = processes.Worker([sys.executable, "-c", code], allowance=2.0)
    assert hanging.ask("prepare")["compile_seconds"] == 1.5
    with pytest.raises(processes.WorkerError, match=r"stopped after the 2 s of --timeout"):
        hanging.ask("round")
    assert hanging._process.poll() is not None


def test_a_worker_that_chatters_is_reported():
    with (
        contextlib.closing(
            processes.Worker([sys.executable, "-c", "print('hello')"], allowance=30)
        ) as chatting,
        pytest.raises(processes.WorkerError, match="'hello', which is not JSON"),
    ):
        chatting.ask("prepare")


def test_a_worker_is_started_at_the_case_s_own_sizes(monkeypatch):
    started = []
    monkeypatch.setattr(processes, "Worker", lambda command, **_: started.append(command[3:]))
    for case, peer in [("maml_5", "metajax"), ("maml_5", "higher"), ("supervised", "naive")]:
        sized = CASES[case]._replace(tasks=3)
        processes.start_worker(sized, peer, adjoint="mixed", allowance=1.0)
    assert started == [
        ["metajax", "maml_5", "--tasks=3", "--steps=5", "--adjoint=mixed"],
        ["higher", "maml_5", "--tasks=3", "--steps=5"],
        ["naive", "supervised", "--tasks=3"],
    ]


def test_a_worker_that_the_system_kills_is_said_to_be():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with (
        contextlib.closing(processes.Worker([sys.executable, "-c", code], allowance=30)) as killed,
        pytest.raises(processes.WorkerError, match="was killed, probably because memory"),
    ):
        killed.ask("prepare")


@pytest.mark.parametrize(
    "values, agree",
    [((1.0, 1.0005), True), ((1.0, 1.002), False), ((1.0, math.nan), False), ((0.0, 0.0), True)],
)
def test_a_check_fails_beyond_its_tolerance(values, agree):
    records = [
        {"case": "maml_1", "peer": peer, "loss": 1.0, "gradient_norm": value}
        for peer, value in zip(("metajax", "higher"), values, strict=True)
    ]
    lines = outcomes.disagreements(records)
    assert (lines == []) == agree
    assert agree or lines[0].startswith("maml_1: gradient_norm differs: metajax 1, higher ")


def test_a_peer_that_cannot_be_checked_is_a_disagreement():
    records = [
        {"case": "maml_1", "peer": "metajax", "loss": 1.0, "gradient_norm": 1.0},
        {"case": "maml_1", "peer": "higher", "error": "is not installed"},
    ]
    assert outcomes.disagreements(records) == ["maml_1: higher is not installed"]


def test_cases_and_peers_are_selected_by_name(tmp_path):
    options = compare.parse(["--cases=anil_5,maml_1", "--peers=higher", f"--output={tmp_path}"])
    assert options.cases == ("anil_5", "maml_1")
    assert options.peers == ("higher",)
    assert compare.parse([f"--output={tmp_path}"]).cases == tuple(CASES)
    assert compare.parse([f"--output={tmp_path}", "--check"]).cases == ("maml_1", "maml_5")


@pytest.mark.parametrize(
    "args, says",
    [
        (["--cases=mamml_1"], "'mamml_1' is unknown; did you mean maml_1"),
        (["--cases="], "no name is given"),
        (["--peers=torch"], "'torch' is unknown; use one of metajax, higher, naive."),
        (["--rounds=0"], "'0' is not a whole number above zero."),
        (["--tasks=two"], "'two' is not a whole number above zero."),
        (["--timeout=nan"], "'nan' is not a number above zero."),
        (["--adjoint=mixd"], "adjoint 'mixd' is unknown; did you mean mixed"),
        (["--round=3"], "unrecognized arguments: --round=3"),
        (["--check", "--cases=transformer_adam"], "cannot be checked"),
        (["--check", "--peers=naive"], "is a single peer; name at least two"),
        (["--output=/dev/null/here"], "--output=/dev/null/here cannot be made"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        compare.main(args)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]


def test_the_list_names_every_case_and_peer(capsys, tmp_path):
    assert compare.main(["--list", f"--output={tmp_path}"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [*CASES, *compare.PEERS]


@pytest.mark.parametrize("name", CASES)
def test_every_peer_is_given_the_same_numbers(name):
    case = CASES[name]._replace(tasks=2)
    tasks, again = make_tasks(case), make_tasks(case)
    for first, second in zip(tasks, again, strict=True):
        np.testing.assert_array_equal(first, second)
    ways, count = case.ways, case.ways * case.queries
    assert tasks.support.shape == (2, ways * case.shots, *case.shape)
    assert tasks.query.shape == (2, count, *case.shape)
    assert np.bincount(tasks.query_labels).tolist() == [case.queries] * ways
    # An example is its class's pattern and a quarter as much noise: nearest to its own class.
    support = tasks.support[0].reshape(ways, case.shots, -1).mean(1)
    distances = np.square(tasks.query[0].reshape(count, 1, -1) - support).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), tasks.query_labels)
    assert str(make_parameters(case)) == str(make_parameters(case))


def test_the_head_fits_what_pooling_leaves():
    assert make_parameters(CASES["maml_84"])["head"]["kernel"].shape == (5 * 5 * 32, 5)
    assert make_parameters(CASES["maml_1"])["head"]["kernel"].shape == (64, 5)
    assert "head" not in make_parameters(CASES["supervised"])
