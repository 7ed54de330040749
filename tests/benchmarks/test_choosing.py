"""The table of learners by a fake driver: budgets, what is skipped and goes on, failures, files, flags."""

import json
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from benchmarks import budgets, choosing
from benchmarks.budgets import TABLED
from benchmarks.harness.options import ROOT
from experiments.fewshot.checks import check_fewshot
from experiments.fewshot.driver import FewshotSettings, make_samplers
from experiments.fewshot.options import resolve_fewshot
from experiments.flags.settings import check_fields, define_flags, from_flags
from experiments.flags.training import check_together

# As the driver, in the blink of an eye: 100 tasks a second but in the first block; leo fails. It keeps a list
# of its runs beside what is run.
DRIVER = """
import json, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[2:])
with open(sys.argv[1], "a") as calls:
    print(json.dumps(flags), file=calls)
folder, learner = pathlib.Path(flags["workdir"]), flags["learner"]
if learner == "leo":
    sys.exit("0% done\\nerror: it | broke")
if learner == "anil" and "seed" in flags and not (folder / "begun").exists():
    def stop(number, frame):
        (folder / "saved").touch()
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    (folder / "begun").touch()
    time.sleep(60)
rates = "".join(f"{i},train,{rate}\\n" for i, rate in enumerate((1, 90, 1000, 100)))
(folder / "metrics.csv").write_text("step,split,tasks_per_second\\n" + rates)
settings = {name: int(flags.get(name, 1)) for name in ("meta_batch", "inner_steps", "test_inner_steps")}
result = dict(
    settings=settings, versions={"jax": "9", "device": "cpu x 2"}, split=flags["dataset"] + ": 128 classes",
    test_accuracy=0.5, ci95=0.0123, train_tasks_per_second=100.0, steps=int(flags["steps"]),
    meta_parameters=None if learner == "boil" else 12345,
    adapted_parameters=1234 if flags["dataset"] == "omniglot" else None, peak_memory_bytes=5 * 10**8,
    transductive=True,
)
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on a fake driver; returns the status and the flags of each of the driver's runs."""
    calls = tmp_path / "calls"
    monkeypatch.setattr(choosing, "DRIVER", (sys.executable, "-ISc", DRIVER, str(calls)))

    def run(*args):
        calls.write_text("")
        status = choosing.main([f"--workdir={tmp_path / 'work'}", *args])
        return status, [json.loads(line) for line in calls.read_text().splitlines()]

    return run


def rows(out):
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_steps_fill_the_minutes_in_whole_periods():
    assert choosing.steps_for(190, 5, 16) == 3560
    assert choosing.steps_for(190, 0.001, 16) == 10
    assert choosing.steps_for(100, 1, 6) == 1000


def test_a_learner_is_calibrated_once_and_trained_for_the_minutes(run, tmp_path):
    status, (calibration, training) = run("--learners=maml", "--datasets=omniglot", "--seed=3")
    assert status == 0
    assert "seed" not in calibration and calibration["workdir"] != training["workdir"]
    # The median of the blocks after the first, 100 tasks a second, in tasks of 16.
    periods = [training[f"{name}_every"] for name in ("log", "eval", "checkpoint")]
    assert training["steps"] == "1880" and periods == ["188"] * 3
    assert (training["seed"], training["outer_schedule"]) == ("3", "cosine")
    kept = json.loads((tmp_path / "work" / "calibration.json").read_text())["omniglot/maml"]
    assert (kept["tasks_per_second"], kept["meta_batch"]) == (100, 16)
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert left == ["calibration.json", "choosing.json", "omniglot"]
    # Another seed or budget trains by the same calibration, what is finished not at all.
    assert run("--learners=maml", "--datasets=omniglot", "--seed=3") == (0, [])
    _, (again,) = run("--learners=maml", "--datasets=omniglot")
    assert (again["steps"], again["seed"]) == ("1880", "0")
    _, (longer,) = run("--learners=maml", "--datasets=omniglot", "--minutes=10")
    assert longer["steps"] == "3750" and longer["workdir"] != again["workdir"]


def test_other_flags_of_a_learner_are_calibrated_and_trained_anew(run, monkeypatch):
    args = ("--learners=maml", "--datasets=omniglot")
    assert len(run(*args)[1]) == 2
    monkeypatch.setitem(budgets.LEARNER_FLAGS, "maml", "--inner_steps=2 --meta_batch=8")
    _, (calibration, training) = run(*args)
    assert calibration["inner_steps"] == training["inner_steps"] == "2"
    assert training["steps"] == "3750"


def test_what_reads_starts_from_an_encoder_that_has_half_of_the_minutes(run, capsys):
    args = ("--learners=mann,recurrent", "--datasets=tiny_imagenet32", "--seed=3")
    status, calls = run(*args)
    assert status == 0
    encoder = calls[1]
    assert [call["learner"] for call in calls[:2]] == [budgets.ENCODER] * 2
    assert (calls[0]["steps"], encoder["steps"], encoder["seed"]) == ("40", "940", "3")
    readers = calls[2:]
    assert {call["init_from"] for call in readers} == {encoder["workdir"]}
    assert [call["steps"] for call in readers] == ["40", "40", "940", "940"]
    assert "recurrent, mann: half of the minutes" in " ".join(capsys.readouterr().out.split())
    assert run(*args) == (0, [])
    # On Omniglot they find features of their own.
    assert run("--learners=mann", "--datasets=omniglot")[1][1]["steps"] == "1880"
    # What has the encoder's name in the table is another run, of all minutes.
    _, (whole,) = run(f"--learners={budgets.ENCODER}", *args[1:])
    assert whole["steps"] == "1880" and whole["workdir"] != encoder["workdir"]


def test_what_has_another_encoder_is_measured_anew(run, monkeypatch):
    args = ("--learners=mann", "--datasets=tiny_imagenet32")
    assert len(run(*args)[1]) == 4
    monkeypatch.setitem(budgets.LEARNER_FLAGS, budgets.ENCODER, "--norm=running --images=9")
    assert [call["learner"] for call in run(*args)[1]] == [*[budgets.ENCODER] * 2, "mann", "mann"]


def test_an_encoder_that_fails_is_why_there_is_no_result(run, capsys, monkeypatch):
    monkeypatch.setattr(budgets, "ENCODER", "leo")
    assert run("--learners=mann", "--datasets=tiny_imagenet32")[0] == 1
    assert "its encoder, tiny_imagenet32/leo, ended with status 1: it" in capsys.readouterr().err


def test_calibrating_only_ends_before_training(run, tmp_path, capsys):
    args = ("--learners=maml,leo,boil", "--datasets=omniglot")
    status, calls = run(*args, "--calibrate_only")
    assert status == 0 and [call["steps"] for call in calls] == ["40"] * 3
    assert not (tmp_path / "work" / "choosing.json").exists()
    found = capsys.readouterr()
    assert not found.out
    assert "omniglot/boil: 100.0 tasks/s, 1,880 steps in 5 minutes" in found.err.splitlines()
    # Only what failed is calibrated again.
    assert [call["learner"] for call in run(*args)[1]] == ["leo", "maml", "boil"]


def test_a_run_that_fails_is_a_row_that_says_why(run, tmp_path, capsys):
    status, _ = run("--learners=leo,maml", "--datasets=omniglot")
    assert status == 0
    _, _, maml, leo = rows(capsys.readouterr().out)
    why = "ended with status 1: it | broke"
    assert leo == ["leo", f"failed: {why}".replace("|", "\\|"), *"--------"]
    assert maml == [
        *("maml", "50.00 ± 1.23", "100", "30,080", "1", "3", "1,234", "12,345", "500", "yes")
    ]
    record = json.loads(
        (tmp_path / "work" / "choosing.json").read_text(), parse_constant=pytest.fail
    )
    assert record["settings"] == {"minutes": 5, "seed": 0}
    second, first = record["runs"]
    assert (first["error"], first["result"], first["steps"]) == (why, None, None)
    assert (second["error"], second["steps"]) == (None, 1880)
    assert second["result"]["meta_parameters"] == 12345
    assert run("--learners=leo", "--datasets=omniglot")[0] == 1


def test_what_is_recorded_is_not_run_again_elsewhere_and_stays_in_the_table(
    run, tmp_path, capsys, monkeypatch
):
    records, other = tmp_path / "records.json", f"--workdir={tmp_path / 'other'}"
    args = ("--datasets=omniglot", f"--records={records}")
    assert len(run("--learners=maml", *args)[1]) == 2
    _, calls = run("--learners=maml,boil", other, *args)
    assert [call["learner"] for call in calls] == ["boil", "boil"]
    capsys.readouterr()
    assert run("--learners=boil", other, *args) == (0, [])
    assert [row[0] for row in rows(capsys.readouterr().out)[2:]] == ["maml", "boil"]
    # Each number stands under its data set, whatever others were measured on.
    run("--learners=fomaml", "--datasets=tiny_imagenet32", f"--records={records}")
    found = {row[0]: row[1:5] for row in rows(capsys.readouterr().out)}
    assert found["maml"] == ["50.00 ± 1.23", "-", "100 / -", "30,080 / -"]
    assert found["fomaml"] == ["-", "50.00 ± 1.23", "- / 100", "- / 30,080"]
    # Other flags are measured anew, and lost by no other command.
    monkeypatch.setitem(budgets.LEARNER_FLAGS, "maml", "--inner_steps=2")
    run("--learners=boil", *args)
    kept = json.loads(records.read_text())["runs"]
    assert {entry["learner"] for entry in kept} == {"maml", "boil", "fomaml"}
    assert [call["inner_steps"] for call in run("--learners=maml", *args)[1]] == ["2", "2"]
    # Another budget would take the place of what is recorded.
    for content, says in (
        (None, "is of --minutes=5, --seed=0; name another file"),
        ("[]", "holds no records; name another file"),
        ("{", "holds no records; name another file"),
    ):
        if content:
            records.write_text(content)
        with pytest.raises(SystemExit, match="2"):
            run("--learners=maml", "--minutes=1", *args)
        assert capsys.readouterr().err.endswith(f"error: --records={records} {says}.\n")


def test_every_learner_has_a_row_and_every_data_set_a_column(run, capsys, monkeypatch):
    for name in ("anil", "leo"):  # which do not end well here
        monkeypatch.setitem(budgets.LEARNER_FLAGS, name, "--learner=maml")
    status, calls = run()
    # Two of each learner, and where readers start from an encoder one for them all.
    encoders = sum("mann" in flags for flags in budgets.DATASET_FLAGS.values())
    assert status == 0 and len(calls) == 2 * len(choosing.DATASETS) * len(TABLED) + encoders
    last = "".join(capsys.readouterr().out.rpartition("| learner")[1:])
    header, _, *found = rows(last)
    titles = ["Omniglot, %", "Tiny ImageNet 32x32, %", "the same, 5 shots, half the time, %"]
    assert header[:5] == ["learner", *titles, "tasks/s"]
    assert [row[0] for row in found] == list(TABLED)
    assert {len(row) for row in found} == {len(header)}
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in found}
    assert by_name["maml"]["adapted"] == "1,234 / - / -"
    assert by_name["maml"]["tasks seen"] == "30,080 / 30,080 / 15,040"
    assert by_name["boil"]["meta-parameters"] == "-"
    assert by_name["reptile"]["at test"] == "50"
    assert by_name["protonet"]["inner steps"] == by_name["protonet"]["at test"] == "-"
    assert "between slashes" in " ".join(last.split())


def test_the_table_takes_the_place_between_the_markers(run, tmp_path, capsys):
    page = tmp_path / "choosing.md"
    first, last = choosing.MARKERS
    page.write_text(f"# Title\n\n{first}\nold\n{last}\n\nAfter.\n")
    args = ("--learners=maml,fomaml", "--datasets=omniglot", f"--output={page}")
    assert run(*args)[0] == 0
    printed = capsys.readouterr().out
    text = page.read_text()
    table = text.removeprefix(f"# Title\n\n{first}\n\n").removesuffix(f"\n\n{last}\n\nAfter.\n")
    assert len(table) == len(text) - len(f"# Title\n\n{first}\n\n\n\n{last}\n\nAfter.\n")
    assert printed.endswith(f"{table}\n") and printed.count("| learner") == 2
    # The first time the second learner is calibrated, but not trained yet.
    assert rows(printed)[3] == ["fomaml", "-", "100", *"-------"]
    notes = " ".join(table.split())
    assert "5 minutes of training if not said otherwise, seed 0" in notes
    assert "slash" not in notes
    assert notes.endswith("omniglot: 128 classes; jax 9, device cpu x 2.")
    run(*args)
    assert page.read_text() == text


def test_an_interrupt_is_passed_on_and_the_same_command_goes_on(run, tmp_path):
    code = (
        "import json, signal, sys; from benchmarks import budgets, choosing;"
        "choosing.DRIVER = json.loads(sys.argv[1]);"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(choosing.main(sys.argv[2:]))"
    )
    args = ("--learners=anil", "--datasets=omniglot")
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", code, json.dumps(choosing.DRIVER)),
            *(f"--workdir={tmp_path / 'work'}", *args),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if begun := list(tmp_path.glob("work/omniglot/anil-*/begun")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and begun[0].with_name("saved").exists()
    assert err.splitlines()[-1] == "error: interrupted; the same command goes on."
    status, (call,) = run(*args)
    assert status == 0 and call["workdir"] == str(begun[0].parent)


@pytest.mark.parametrize(
    "args, says",
    [
        (["--learners=mamml"], "'mamml' is unknown; did you mean maml"),
        (["--datasets=imagenet"], "'imagenet' is unknown; did you mean tiny_imagenet32"),
        (["--minutes=0"], "'0' is not a number above zero."),
        (["--seed=-1"], "--seed=-1 is too small; use 0 or more."),
        (["--output=absent.md"], "--output=absent.md cannot be used (No such file or directory)."),
        (
            ["--output=page.md"],
            "--output=page.md has no <!-- table --> before <!-- end of table -->",
        ),
        (["--workdir=page.md/here"], "page.md/here cannot be used (Not a directory)."),
    ],
)
def test_wrong_options_are_one_line_and_status_2(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("<!-- end of table --> <!-- table -->")
    with pytest.raises(SystemExit, match="2"):
        choosing.parse(args)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


@pytest.mark.parametrize("dataset", choosing.DATASETS)
@pytest.mark.parametrize("learner", TABLED)
def test_the_flags_of_every_learner_are_ones_the_driver_takes(learner, dataset):
    values = flags.FlagValues()
    define_flags(FewshotSettings, values)
    run = choosing.Run(dataset, learner)
    assert values(["fewshot", *run.flags, *choosing.CALIBRATION_FLAGS]) == ["fewshot"]
    settings = from_flags(FewshotSettings, values)
    check_fields(settings)
    check_together(settings)
    check_fewshot(settings)
    make_samplers(resolve_fewshot(settings))
    assert (settings.dataset, settings.learner) == (dataset.removesuffix("_5shot"), learner)
    assert settings.shots == (5 if dataset.endswith("_5shot") else 1)
    assert settings.meta_batch % 2 == 0
