"""Growth over steps and tasks: order, relative memory, what is written, and a worker that is real."""

import contextlib
import json
import sys

import pytest

from benchmarks import growth
from benchmarks.harness import processes
from benchmarks.harness.cases import CASES
from benchmarks.harness.outcomes import Outcome

# Answers as the case says: memory and time grow with its inner steps; "recursive" fails at two.
WORKER = """
import json, sys
line, steps, tasks = {line!r}, {steps}, {tasks}
for command in sys.stdin:
    if line == "recursive" and steps == 2:
        raise MemoryError("out of it")
    if command.strip() == "prepare":
        found = dict(device="cpu", compile_seconds=1.0, step_seconds=0.1, program_bytes=None)
        if line != "higher":
            found["program_bytes"] = 10**6 * (steps + 1)
    else:
        found = dict(seconds=0.2 * steps * tasks, steps=2, peak_bytes=10**9, step_peak_bytes=10**8 * steps)
    print(json.dumps(found), flush=True)
"""


def fake_worker(case, peer, *, adjoint, allowance):
    code = WORKER.format(line=adjoint or peer, steps=case.inner_steps, tasks=case.tasks)
    return processes.Worker([sys.executable, "-c", code], allowance=allowance)


def point(line, count, program=None, step=None):
    case = CASES["maml_1"]._replace(inner_steps=count, tasks=2)
    made = Outcome("maml_1", line, program_bytes=program, step_peak_bytes=step)
    return growth.Point(count, case, made)


def run(monkeypatch, tmp_path, *args):
    monkeypatch.setattr(growth, "start_worker", fake_worker)
    status = growth.main([*args, "--rounds=1", f"--output={tmp_path}"])
    read = json.loads((tmp_path / "growth.json").read_text(), parse_constant=pytest.fail)
    return status, read


def test_memory_is_relative_to_the_smallest_count_of_the_same_line():
    found = growth.with_growth(
        [
            point("mixed", 1, 10, 40),
            point("higher", 1),
            point("mixed", 4, 15, 80),
            point("higher", 4),
        ]
    )
    assert [p.program_growth for p in found] == [1, None, 1.5, None]
    assert [p.step_growth for p in found] == [1, None, 2, None]


def test_where_the_smallest_count_failed_nothing_is_relative():
    found = growth.with_growth([point("reverse", 1), point("reverse", 2, 9, 9)])
    assert [p.program_growth for p in found] == [None, None]


@pytest.mark.parametrize("name, steps, each", [("maml_5", 4, 10), ("supervised", 0, 40)])
def test_time_is_told_an_inner_step_and_task(name, steps, each):
    case = CASES[name]._replace(tasks=3, inner_steps=steps)
    assert growth.Point(3, case, Outcome(name, "metajax", median_ms=120.0)).ms_each == each
    assert growth.Point(3, case, Outcome(name, "metajax")).ms_each is None


def test_a_sweep_over_steps_goes_on_where_a_point_fails(monkeypatch, tmp_path, capsys):
    args = ["--case=maml_1", "--over=steps", "--counts=4,1,2,2", "--tasks=2"]
    status, record = run(monkeypatch, tmp_path, *args, "--adjoints=reverse,recursive")
    assert status == 0
    points = record["points"]
    named = [(p["inner_steps"], p["peer"]) for p in points]
    assert named == [(n, line) for n in (1, 2, 4) for line in ("reverse", "recursive")]
    assert points[3]["error"] == "ended with status 1: MemoryError: out of it"
    assert points[3]["median_ms"] is None and points[3]["program_growth"] is None
    last = points[-1]
    assert (last["program_growth"], last["step_growth"]) == (2.5, 4)
    assert last["median_ms"] == pytest.approx(800) and last["ms_each"] == pytest.approx(100)
    assert {p["tasks"] for p in points} == {2}
    assert record["settings"] == {"case": "maml_1", "over": "steps", "rounds": 1}
    assert set(record["machine"]) == {"cpu", "cores", "gpu"} and "python" in record["versions"]
    header, *rows, _ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "case" and header.count(" x") == 2
    assert [row.split()[1:3] for row in rows] == [
        [line, count] for line in ("reverse", "recursive") for count in ("1", "2", "4")
    ]
    assert rows[2].split()[3:] == "800.0 100.00 2.5 1.0 5.0 2.50 400 4.00".split()
    assert rows[4].split(maxsplit=11)[3:] == [*"--------", points[3]["error"]]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_over_tasks_may_set_peers_side_by_side(monkeypatch, tmp_path):
    args = ["--case=maml_1", "--over=tasks", "--counts=1,8", "--peers=higher,metajax"]
    status, record = run(monkeypatch, tmp_path, *args)
    assert status == 0
    assert [(p["tasks"], p["peer"]) for p in record["points"]] == [
        (count, peer) for count in (1, 8) for peer in ("higher", "metajax")
    ]
    assert [p["program_bytes"] for p in record["points"]] == [None, 2 * 10**6] * 2
    assert [p["tasks_per_second"] for p in record["points"]] == [pytest.approx(10)] * 4
    assert {p["inner_steps"] for p in record["points"]} == {1}


def test_points_are_written_after_every_count(monkeypatch, tmp_path, capsys):
    def interrupted(case, peer, **options):
        if case.inner_steps > 1:
            raise KeyboardInterrupt
        return fake_worker(case, peer, **options)

    monkeypatch.setattr(growth, "start_worker", interrupted)
    args = ["--case=maml_1", "--over=steps", "--counts=1,3", "--rounds=1", f"--output={tmp_path}"]
    assert growth.main(args) == 130
    (one,) = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert (one["inner_steps"], one["peer"]) == (1, "metajax")
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted."


def test_nothing_measured_is_status_1_and_no_picture(monkeypatch, tmp_path):
    args = ["--case=maml_1", "--over=steps", "--counts=2", "--adjoints=recursive"]
    assert run(monkeypatch, tmp_path, *args)[0] == 1
    assert not (tmp_path / "growth.png").exists()


@pytest.mark.parametrize(
    "memory, label",
    [
        (dict(program_bytes=5, step_peak_bytes=6), "memory of the compiled meta-step (MB)"),
        (dict(step_peak_bytes=6), "peak memory while stepping (MB)"),
        (dict(), "peak memory, compiling included (MB)"),
    ],
)
def test_the_memory_that_is_drawn_is_one_that_all_points_have(memory, label, monkeypatch, tmp_path):
    labels = []
    panel = growth._panel
    monkeypatch.setattr(growth, "_panel", lambda *args: (labels.append(args[-1]), panel(*args)))
    case = CASES["maml_1"]
    made = Outcome(case.name, "higher", "cpu", median_ms=5.0, peak_bytes=7)
    full = made._replace(peer="metajax", program_bytes=9, step_peak_bytes=9)
    outcomes = [full, made._replace(**memory), Outcome(case.name, "naive", error="failed")]
    growth.draw(
        [growth.Point(1, case, outcome) for outcome in outcomes], tmp_path / "a.png", over="tasks"
    )
    assert labels == [label, "time of a meta-step (ms)"]


@pytest.mark.parametrize(
    "args, says",
    [
        ([], "the following arguments are required: --case, --over, --counts"),
        (["--case=mamml_1"], "invalid choice: 'mamml_1'"),
        (["--counts=1,two"], "'two' is not a whole number above zero."),
        (["--counts="], "'' is not a whole number above zero."),
        (["--case=supervised"], "--case=supervised has no inner loop; use --over=tasks."),
        (["--over=tasks", "--tasks=3"], "--tasks=3 is what --over=tasks varies; use --counts."),
        (["--peers=higher", "--adjoints=mixed"], "--adjoints are metajax's; name it in --peers."),
        (["--adjoints=mixd"], "adjoint 'mixd' is unknown; did you mean mixed"),
        (["--output=/dev/null/here"], "--output=/dev/null/here cannot be made"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = ["--case=maml_1", "--over=steps", "--counts=1"] if args else []
    with pytest.raises(SystemExit, match="2"):
        growth.main([*whole, *args])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_without_matplotlib_it_says_so_before_it_measures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(growth.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        growth.parse(["--case=maml_1", "--over=steps", "--counts=1", f"--output={tmp_path}"])
    says = "error: matplotlib is not installed; pip install -e '.[bench]'"
    assert capsys.readouterr().err.splitlines() == [says]


def test_lines_are_adjoints_in_the_place_of_their_peer():
    assert growth._lines(["higher", "metajax"], ["mixed", "remat"]) == {
        "higher": ("higher", None),
        "mixed": ("metajax", "mixed"),
        "remat": ("metajax", "remat"),
    }
    assert growth._lines(["metajax"], []) == {"metajax": ("metajax", None)}


def test_a_real_worker_measures_steps_that_the_case_does_not_have():
    case = CASES["anil_5"]._replace(tasks=1, inner_steps=2)
    start = processes.start_worker
    with contextlib.closing(start(case, "metajax", adjoint="mixed", allowance=240.0)) as worker:
        prepared = worker.ask("prepare")
        taken = worker.ask("round")
    assert prepared["compile_seconds"] > 0 and prepared["program_bytes"] > 10**6
    assert taken["steps"] >= 1 and taken["seconds"] > 0
    if sys.platform == "linux":
        assert prepared["program_bytes"] < taken["step_peak_bytes"] <= taken["peak_bytes"]
