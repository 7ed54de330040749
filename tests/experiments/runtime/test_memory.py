"""What a training takes is told before it runs, and made to fit a budget."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments.flags.plan import resolve
from experiments.flags.settings import UsageError
from experiments.flags.training import check_together, memory_budget
from experiments.regression import driver as regression
from experiments.regression.driver import RegressionSettings
from experiments.runtime import compiled_steps, memory
from helpers.driver_runs import drive, undrawn, unlock
from metajax.sharding import replicated

GIB = 2**30
# Inner steps, so that adjoints differ in what they keep; one task, so that the adjoint is all to choose.
REGRESSION = (
    "--hidden=8 --inner_steps=8 --meta_batch=1 --steps=20 --eval_every=10 --log_every=10 "
    "--valid_episodes=4 --eval_episodes=4"
).split()


@pytest.mark.parametrize(
    ("flag", "size"),
    [
        ("8GiB", 8 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        (" 500MB ", 500_000_000),
        ("500mib", 500 * 2**20),
        ("2e9", 2_000_000_000),
        ("1e-3TB", 10**9),
        (".5KiB", 512),
        ("1TiB", 2**40),
        ("77b", 77),
        ("", None),
    ],
)
def test_a_budget_is_a_number_of_bytes(flag, size):
    assert memory_budget(flag) == size


@pytest.mark.parametrize(
    "flag",
    ["lots", "0", "0.5", "-1GiB", "nan", "inf", "1e999", "8 G", "8ib", "GiB", "8GiB8", "1,5GiB"],
)
def test_what_is_no_size_is_refused(flag):
    with pytest.raises(UsageError, match=f"--memory_budget={flag} is not a size; .* as 8GiB"):
        check_together(RegressionSettings(memory_budget=flag))


def programs(size_of, compiled):
    """Stands in for compiling: `size_of(adjoint, tasks at once)` bytes; `compiled` records what was asked."""

    def compile_one(run):
        compiled.append((run.inner.adjoint, run.tasks_at_once))
        at_once = min(24, run.tasks_at_once)
        return memory.Program(run, None, size_of(run.inner.adjoint, at_once), 0.0, False)

    return compile_one


TASK_BYTES = {"reverse": 1000, "remat": 500, "mixed": 400, "recursive": 100, "truncated": 300}


def chosen(budget, *, adjoint="reverse", size_of=lambda adjoint, n: 50 + n * TASK_BYTES[adjoint]):
    compiled = []
    settings = RegressionSettings(adjoint=adjoint, memory_budget=budget, tasks_at_once="1000")
    choice = memory.choose(programs(size_of, compiled), resolve(settings), tasks=24)
    taken = choice.program.plan
    at_once = min(24, taken.tasks_at_once)
    assert choice.search.endswith(f"chosen: {taken.inner.adjoint}, {at_once} at once")
    return (taken.inner.adjoint, taken.tasks_at_once), compiled


@pytest.mark.parametrize(
    ("budget", "taken", "num_compiled"),
    [
        ("", ("reverse", 1000), 1),
        ("1TiB", ("reverse", 1000), 1),
        ("24050", ("reverse", 1000), 1),
        ("24049", ("reverse", 12), 3),  # all, one, and what is between by the growth
        ("12049", ("reverse", 6), 3),
        ("3050", ("reverse", 3), 3),
        ("3049", ("reverse", 1), 2),
        ("1050", ("reverse", 1), 2),
        ("1049", ("mixed", 1), 4),
        ("449", ("recursive", 3), 7),
        ("150", ("recursive", 1), 6),
    ],
)
def test_fewer_tasks_come_before_a_thriftier_adjoint(budget, taken, num_compiled):
    found, compiled = chosen(budget)
    assert found == taken
    assert len(compiled) == len(set(compiled)) == num_compiled


def test_all_tasks_at_once_are_tried_with_each_adjoint():
    def size_of(adjoint, at_once):
        return 10_000 if adjoint == "reverse" else at_once

    assert chosen("24", size_of=size_of)[0] == ("mixed", 1000)


def test_a_prediction_that_fails_goes_on_to_the_next():
    def size_of(adjoint, at_once):
        return {24: 2400, 12: 2300, 6: 700, 3: 300, 1: 100}[at_once]

    assert chosen("1300", size_of=size_of) == (
        ("reverse", 6),
        [("reverse", 1000), ("reverse", 1), ("reverse", 12), ("reverse", 6)],
    )


def test_an_adjoint_of_another_gradient_is_never_chosen_nor_replaced():
    found, _ = chosen("400", adjoint="truncated")
    assert found == ("truncated", 1)
    with pytest.raises(UsageError, match="smallest program found, truncated, 1 at once, needs 350"):
        chosen("300", adjoint="truncated")
    with pytest.raises(UsageError, match="smallest program found, remat, 1 at once, needs 550"):
        chosen("500", adjoint="remat")
    with pytest.raises(UsageError, match=r"recursive, 1 at once, needs 150 bytes\. Use a larger"):
        chosen("149", adjoint="mixed")


def block(mesh, step, state, data):
    program = memory.compile_program(
        RegressionSettings(), compiled_steps.CompiledSteps(step), state, data, mesh=mesh
    )
    assert program.seconds > 0
    return program.memory_bytes


def test_the_memory_is_that_of_all_devices_of_a_cpu():
    def step(state, data):
        return state + jnp.tanh(data @ data).sum(), {}

    sizes = []
    for num_devices in (1, 2, 4):
        mesh = metajax.task_mesh(jax.devices()[:num_devices])
        state, data = jax.device_put((np.ones(4), np.ones((300, 300))), replicated(mesh))
        sizes.append(block(mesh, step, state, data))
    assert sizes[0] > 4 * 300 * 300, "the data count"
    assert sizes == [sizes[0], 2 * sizes[0], 4 * sizes[0]]


def test_what_the_devices_share_out_is_not_counted_for_each():
    axis = jax.sharding.PartitionSpec("tasks")
    sizes = []
    for num_devices in (1, 4):
        mesh = metajax.task_mesh(jax.devices()[:num_devices])
        state = jax.device_put(np.ones(2**18), jax.sharding.NamedSharding(mesh, axis))
        sizes.append(block(mesh, lambda state, data: (jnp.sin(state), {}), state, None))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    # The state is an argument and a result, in the same memory.
    assert 4 * 2**18 <= sizes[0] < 3.5 * 4 * 2**18


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1025, "1.1 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (5 * GIB // 2, "2.5 GiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes_in_words(size, words):
    assert memory.in_words(size) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(3, "3 FLOP"), (999_400, "999 kFLOP"), (999_700, "1 MFLOP"), (1.234e12, "1.23 TFLOP")],
)
def test_operations_in_words(number, words):
    assert memory.operations_in_words(number) == words


def size_in(words):
    number, unit = re.search(r"([\d.]+) (bytes|KiB|MiB|GiB)", words).groups()
    return float(number) * 1024 ** ["bytes", "KiB", "MiB", "GiB"].index(unit)


@pytest.fixture
def regress(capsys):
    """Runs the driver on REGRESSION and further flags; returns what it printed."""

    @undrawn()
    def regress(*flags):
        flags = (*REGRESSION, *flags)
        assert drive(*flags, driver=regression, settings_class=RegressionSettings) == 0
        unlock()
        return capsys.readouterr().out

    return regress


def planned(regress, folder, *flags):
    """The rows of `--plan` by name, run where anything written would be seen."""
    found, name = {}, None
    for line in regress("--plan", f"--workdir={folder}", *flags).splitlines():
        name = line.split("  ")[0] or name
        found[name] = f"{found.get(name, '')} {line.removeprefix(name).strip()}".strip()
    return found


def test_a_plan_says_what_training_takes_and_writes_nothing(regress, tmp_path):
    folder = tmp_path / "none"
    found = planned(regress, folder)
    assert not folder.exists() and "work directory" not in found
    assert "adjoint reverse" in found["inner loop"]
    assert "on the CPU: arguments" in found["memory"]
    assert re.match(r"\d+\.\d s", found["compile time"])
    assert found["arithmetic"].endswith("FLOP per meta-step, in matrix products and convolutions")
    rate = re.fullmatch(r"(.*) ms per meta-step, (.*) tasks/s: the time of that .*", found["floor"])
    milliseconds, tasks = (float(number.replace(",", "")) for number in rate.groups())
    assert milliseconds * tasks == pytest.approx(1000, rel=0.05), "one task a step"
    again = planned(regress, folder)
    assert again["compile time"].endswith("read from the cache")
    assert again["memory"] == found["memory"]


def test_a_budget_trains_as_the_flags_it_stands_for_do(regress, tmp_path):
    roomy = planned(regress, tmp_path / "none", "--memory_budget=1TiB")
    assert roomy["memory budget"].endswith("chosen: reverse, 1 at once")
    thrifty = planned(regress, tmp_path / "none", "--adjoint=mixed")
    large, small = size_in(roomy["memory"]), size_in(thrifty["memory"])
    assert small < large

    def trained(name, *flags):
        folder = tmp_path / name
        out = regress(f"--workdir={folder}", *flags)
        result = json.loads((folder / "result.json").read_text())
        return out, result, (folder / "test_scores.csv").read_bytes()

    budget = f"--memory_budget={(large + small) / 2:.0f}"
    out, result, scores = trained("tight", budget)
    words = " ".join(out.split())
    assert "reverse, 1 at once needs" in words and "chosen: mixed, 1 at once" in words
    assert "10 x at test; adjoint mixed" in words
    assert (result["adjoint"], result["tasks_at_once"]) == ("mixed", 1)
    assert result["settings"]["adjoint"] == "reverse" and result["compile_seconds"] > 0
    _, named, same_scores = trained("named", "--adjoint=mixed")
    assert scores == same_scores and named["test_mse"] == result["test_mse"]

    out = regress(f"--workdir={tmp_path / 'tight'}", budget, "--mode=evaluate")
    assert "memory budget" not in out, "evaluating compiles no training"
    evaluated = json.loads((tmp_path / "tight" / "evaluation" / "result.json").read_text())
    assert evaluated["test_mse"] == result["test_mse"] and evaluated["adjoint"] is None
    assert evaluated["tasks_at_once"] is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--memory_budget=1KiB", "--memory_budget=1KiB is too small: the smallest program found, "),
        ("--memory_budget=lots", "--memory_budget=lots is not a size"),
        ("--plan --mode=evaluate", "--plan=true does not go with --mode=evaluate"),
    ],
)
def test_what_cannot_be_is_one_line(forked, tmp_path, flags, says):
    status, out, err = forked(
        *REGRESSION, f"--workdir={tmp_path}", *flags.split(), driver="regression"
    )
    assert status == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not out


def test_a_budget_that_nothing_fits_is_refused_in_a_plan_too(regress, capsys):
    with pytest.raises(UsageError, match=r"1KiB is too small: .* 1 at once, needs"):
        regress("--memory_budget=1KiB", "--plan")
    assert not capsys.readouterr().out
