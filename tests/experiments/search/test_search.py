"""Searches of a pretended driver, in real processes: joined, interrupted, killed, pruned and failed."""

import csv
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from absl import flags

from experiments.flags.settings import UsageError, define_flags, help_text
from experiments.runtime.files import SettingsMismatch
from experiments.runtime.flag_sources import read_flags
from experiments.search import driver, processes
from experiments.search.driver import main, run_search
from experiments.search.options import search_settings
from metajax.errors import DataError

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[3]
PRETENDED = ROOT / "tests" / "helpers" / "pretend_driver.py"
FLAGS = (
    "--search=inner_lr=log:0.01..1",
    *("--trials=4", "--steps=4", "--trial_steps=2", "--eval_every=1", "--prune=none"),
)


class Pretended(processes.Run):
    """A run of the pretended driver in place of a real one's."""

    def __init__(self, name, *args, **options):
        super().__init__("pretended", *args, **options)


@pytest.fixture(autouse=True)
def pretended(tmp_path, monkeypatch):
    package = tmp_path / "path" / "pretend"
    package.mkdir(parents=True)
    (package / "pretended.py").write_text(PRETENDED.read_text())
    monkeypatch.setattr(processes, "PACKAGE", "pretend")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def search(folder, *given):
    made, values = search_settings("regression"), flags.FlagValues()
    define_flags(made, values)
    settings = read_flags(made, ["search", f"--workdir={folder}", *FLAGS, *given], values)
    return run_search("regression", settings, start=Pretended)


def rows(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def starts(folder):
    return {
        path.parent.name: path.read_text().split() for path in folder.glob("trials/*/starts.txt")
    }


def test_the_best_runs_again_at_full_length_and_is_tested(tmp_path, capsys):
    folder = tmp_path / "search"
    assert search(folder, "--inner_lr=0.5", "--finalists=2", "--final_seeds=2") == 0
    found = rows(folder)
    assert [row["state"] for row in found] == ["complete"] * 4
    assert float(found[0]["inner_lr"]) == 0.5  # the first trial has the command's own values
    for row in found:
        expected = math.log10(float(row["inner_lr"])) ** 2 + 1 / 2
        assert float(row["valid_mse"]) == pytest.approx(expected)
        best = min(float(row["valid_mse"]) for row in found)
        # All episodes of two trials differ by the same, so their differences have no width.
        assert float(row["difference"]) == pytest.approx(expected - best)
        assert float(row["difference_ci95"]) == pytest.approx(0, abs=1e-9)
    order = sorted(found, key=lambda row: float(row["valid_mse"]))
    tested = {path.parent.name for path in folder.glob("finals/*/result.json")}
    assert tested == {
        f"{int(row['trial']):04}-seed{seed}" for row in order[:2] for seed in range(2)
    }
    assert not [*folder.glob("trials/*/result.json"), *folder.glob("trials/*/test_scores.csv")]
    text = (folder / "best.flags").read_text()
    assert f"--inner_lr={order[0]['inner_lr']}\n" in text
    assert "--steps=4\n" in text and "--seed=0\n" in text
    error = math.log10(float(order[0]["inner_lr"])) ** 2 + 1 / 4
    assert f"# Measured: {error:.4g} +- 0.02 (mse of 8 test episodes, seed 0)" in text
    assert (folder / "search.png").stat().st_size > 1000
    assert "4 complete of 4 trials" in capsys.readouterr().out
    # The same command has nothing left to run, and prints the same.
    assert search(folder, "--inner_lr=0.5", "--finalists=2", "--final_seeds=2") == 0
    assert all(len(runs) == 1 for runs in starts(folder).values())
    assert "4 complete of 4 trials" in capsys.readouterr().out


def test_two_commands_share_trials_and_none_runs_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETEND_PAUSE", "0.05")
    folder, ended = tmp_path / "search", []
    both = [
        threading.Thread(target=lambda: ended.append(search(folder, "--trials=8", "--workers=2")))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert ended == [0, 0]
    assert sorted(starts(folder)) == [f"{i:04}" for i in range(8)]
    assert all(len(runs) == 1 for runs in starts(folder).values())
    assert all(len(path.read_text().split()) == 1 for path in folder.glob("finals/*/starts.txt"))


def test_values_do_not_depend_on_interruptions(tmp_path):
    assert search(tmp_path / "once", "--finalists=0") == 0
    for trials in (1, 3, 4):
        assert search(tmp_path / "often", f"--trials={trials}", "--finalists=0") == 0
    values = [[row["inner_lr"] for row in rows(tmp_path / name)] for name in ("once", "often")]
    assert values[0] == values[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_goes_on_with_the_trial_that_it_ran(tmp_path, number):
    folder = tmp_path / "search"
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from tests.experiments.search import test_search as t\n"
        "from pathlib import Path; t.processes.PACKAGE = 'pretend'\n"
        "sys.exit(t.search(Path(sys.argv[3]), '--finalists=0', '--trial_steps=4'))"
    )
    environment = {**os.environ, "PRETEND_PAUSE": "0.5"}
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    table = folder / "trials" / "0000" / "metrics.csv"
    while not table.exists() or len(table.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    out = process.communicate(timeout=60)[0]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "The same command goes on" in out
    # A killed search leaves its run, which holds its trial until it ends.
    assert search(folder, "--finalists=0", "--trial_steps=4") == 0
    assert [row["state"] for row in rows(folder)] == ["complete"] * 4
    steps = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert steps == ["1", "2", "3", "4"]  # none is lost, and none is taken twice
    assert len(starts(folder)["0000"]) == 2


def test_a_trial_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    folder = tmp_path / "search"
    wide = ("--search=inner_lr=0.5,1.0,2.0", "--trials=5", "--finalists=0")
    assert search(folder, *wide) == 0
    for row in rows(folder):
        failed = float(row["inner_lr"]) > 1.5
        assert row["state"] == ("failed" if failed else "complete")
        assert ("not finite" in row["reason"]) == failed
    assert "failed: The loss or its gradient is not finite at step 1." in capsys.readouterr().out
    assert (
        "# Measured: 0.5 +- 0.01 (mse of 8 validation episodes, seed 0)"
        in (folder / "best.flags").read_text()
    )


def test_a_search_whose_trials_all_fail_alike_ends(tmp_path):
    with pytest.raises(DataError, match="the first 3 trials all failed: shots=7 are more"):
        search(tmp_path / "search", "--shots=7")
    assert len(starts(tmp_path / "search")) == 3


def test_a_search_in_which_all_diverge_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no trial ended with a score \(4 failed\).*not finite"):
        search(tmp_path / "search", "--search=inner_lr=2..3")


@pytest.mark.parametrize("prune", ["median", "hyperband"])
def test_hopeless_trials_end_early(tmp_path, monkeypatch, prune):
    monkeypatch.setenv("PRETEND_PAUSE", "0.3")
    folder = tmp_path / "search"
    # Five trials of the best value first, so that the median is known when worse ones come.
    made = optuna.samplers.TPESampler
    order = iter([1.0] * 5 + [0.01] * 3)
    monkeypatch.setattr(
        made, "sample_independent", lambda self, study, trial, name, values: next(order)
    )
    flags_of = ("--search=inner_lr=log:0.0099..1", "--trials=8", "--trial_steps=9", "--steps=9")
    assert search(folder, *flags_of, "--inner_lr=0.005", f"--prune={prune}", "--finalists=0") == 0
    found = rows(folder)
    pruned = [row for row in found if row["state"] == "pruned"]
    assert {float(row["inner_lr"]) for row in pruned} == {0.01}
    assert all(int(row["steps"]) < 9 for row in pruned)
    best = [row for row in found if row["state"] == "complete"]
    assert float(best[0]["valid_mse"]) == pytest.approx(1 / 9)


def test_time_ends_a_search_and_the_next_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETEND_PAUSE", "0.4")
    folder = tmp_path / "search"
    with pytest.raises(DataError, match=r"no trial ended with a score \(1 stopped\)"):
        search(folder, "--minutes=0.01", "--trial_steps=4")
    assert search(folder, "--trial_steps=4", "--trials=1", "--finalists=0") == 0
    assert [row["state"] for row in rows(folder)] == ["complete"]


def test_episodes_that_differ_are_refused(tmp_path, capsys):
    folder = tmp_path / "search"
    search(folder, "--search=queries=5,6,7", "--trials=6", "--finalists=0")
    states = {(row["queries"], row["state"]) for row in rows(folder)}
    first = rows(folder)[0]["queries"]
    assert all((state == "complete") == (queries == first) for queries, state in states)
    assert "other ones than those of the first trial" in capsys.readouterr().out or len(states) == 1


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    assert search(tmp_path / "search", "--trials=1", "--finalists=0") == 0
    with pytest.raises(SettingsMismatch, match=r"--search: was inner_lr=log:0\.01"):
        search(tmp_path / "search", "--search=inner_lr=0.1,0.2")


def test_without_optuna_the_command_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[search\]'"):
        search(tmp_path / "search")


@pytest.mark.parametrize(
    ("words", "status", "printed"),
    [
        ("fewshoot --search=inner_lr=1..2", 2, "fewshoot is no driver; did you mean fewshot?"),
        ("--search=inner_lr=1..2", 2, "name a driver first, one of fewshot, regression"),
    ],
)
def test_the_first_word_is_a_driver(monkeypatch, capfd, words, status, printed):
    monkeypatch.setattr(sys, "argv", ["search", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    out = "".join(capfd.readouterr())
    assert printed in out
    assert out.count("\n") == 1


def test_help_shows_the_options_of_both(monkeypatch, capsys):
    def show(settings_class, docstring, run):
        print(help_text(settings_class, docstring), sys.argv)

    monkeypatch.setattr(driver, "launch", show)
    for words in ("--help", "fewshot --help"):
        monkeypatch.setattr(sys, "argv", ["search", *words.split()])
        main()
        out = capsys.readouterr().out
        assert "Drivers: fewshot, regression" in out
        assert "--trial_steps" in out
    assert "--ways" in out and "['search', '--help']" in out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--trials=0", "--trials=0 is too small"),
        ("--prune=medain", "--prune=medain is unknown; did you mean median"),
        ("--trial_steps=9", "--trial_steps=9 is more than --steps=4"),
        ("--mode=evaluate", "--mode=evaluate does not go with a search"),
        ("--plan", "--plan does not go with a search"),
        ("--workdir=", "A search needs --workdir"),
    ],
)
def test_wrong_commands_are_one_line(tmp_path, flag, words):
    with pytest.raises(UsageError, match=words):
        search(tmp_path, flag)
    assert not [*tmp_path.glob("trials")]
