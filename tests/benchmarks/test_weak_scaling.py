"""The scaling benchmark measures the driver itself, and says what is wrong in one line."""

import os

import pytest

from benchmarks import weak_scaling

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="two cores are needed",
)
TINY = "--learner=protonet --filters=4 --queries=2 --valid_episodes=2 --eval_episodes=2".split()


def test_medians_are_compared_with_those_of_one_process(monkeypatch, capsys):
    rates = {(1, True): iter([10.0, 12.0, 90.0]), (2, True): iter([20.0, 1.0, 18.0])}
    rates[2, False] = iter([24.0, 24.0, 24.0])
    monkeypatch.setattr(
        weak_scaling,
        "tasks_per_second",
        lambda options, cores, *, joined: next(rates[len(cores), joined]),
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1, 2}, raising=False)
    assert weak_scaling.main(["--rounds=3"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "one process 12.0 tasks/s, 1.00 of one" in table
    assert "2 processes, one run 18.0 tasks/s, 1.50 of one" in table
    assert "2 separate runs 24.0 tasks/s, 2.00 of one" in table


@needs_cores
def test_one_run_of_two_processes_has_tasks_a_second():
    options = weak_scaling.parse(["--blocks=1", "--tasks=2", "--timeout=200", "--", *TINY])
    assert weak_scaling.tasks_per_second(options, options.cores, joined=True) > 0


@needs_cores
def test_what_is_wrong_is_one_line(capsys):
    for flag in ("--processes=9999", "--tasks=0"):
        with pytest.raises(SystemExit, match="2"):
            weak_scaling.parse([flag])
        assert "Traceback" not in capsys.readouterr().err
    assert weak_scaling.main(["--blocks=1", "--", "--learner=nothing_like_it"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.count("error: ") == 1 and "nothing_like_it" in error
