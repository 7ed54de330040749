"""One run of several processes, over sockets of this machine: the numbers of one, and how it ends."""

import json
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from experiments.completion import driver as completion
from experiments.fewshot import driver as fewshot
from experiments.fewshot.driver import FewshotSettings
from experiments.flags.settings import UsageError
from experiments.regression import driver as regression
from experiments.runtime import distributed
from experiments.runtime.checkpoints import Checkpoints
from helpers.driver_runs import drive, last_checkpoint, rows, start, undrawn, unlock

FLAGS = (
    "--dataset=folder --ways=3 --shots=1 --queries=2 --test_queries=3 --model=mlp --meta_batch=8 "
    "--log_every=10 --steps=50 --eval_every=25 --valid_episodes=10 --eval_episodes=20 --checkpoint_every=10"
).split()
# What those who are left take to notice that a process is gone, at most.
NOTICED_SECONDS = 45


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def on(devices):
    return {"JAX_NUM_CPU_DEVICES": str(devices)}


def loopback():
    """The address of this machine, of IPv6 where it has one."""
    try:
        with socket.socket(socket.AF_INET6) as server:
            server.bind(("::1", 0))
        return "[::1]"
    except OSError:
        return "127.0.0.1"


def start_two(*flags, devices=2, own=((), ()), driver="fewshot", host="127.0.0.1"):
    """Starts two processes of one run; `own` are flags of each."""
    where = [f"--coordinator={host}:{free_port()}", "--num_processes=2", "--distributed"]
    return [
        start(*flags, *where, f"--process_id={i}", *own[i], driver=driver, variables=on(devices))
        for i in range(2)
    ]


def start_two_under_slurm(*flags):
    """The same of Slurm's: each is told by variables who there is, and which it is."""
    job = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    return [
        start(
            *flags,
            "--distributed",
            variables=on(1) | job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]


def ends(processes, *, seconds=240):
    """Waits for processes; returns (status, out, err) of each."""
    deadline = time.time() + seconds
    found = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=max(1, deadline - time.time()))
        except Exception:
            for other in processes:
                other.kill()
            raise
        found.append((process.returncode, out, err))
    return found


def wait_for_step(workdir, step, reached=last_checkpoint):
    deadline = time.time() + 200
    while reached(workdir) < step:
        assert time.time() < deadline, f"{reached.__name__}: not {step} in {workdir}"
        time.sleep(0.01)


def last_row(workdir):
    """The step of the last row of metrics.csv; 0 without one."""
    path = workdir / "metrics.csv"
    found = rows(path) if path.exists() else []
    return int(found[-1]["step"] or 0) if found else 0


# The drivers and their settings.
DRIVERS = {
    "fewshot": (fewshot, FewshotSettings),
    "regression": (regression, regression.RegressionSettings),
    "completion": (completion, completion.CompletionSettings),
}


@undrawn()
def drive_alone(*flags, driver="fewshot"):
    """Runs a driver in this process, on its four devices, which takes no start of another."""
    module, settings_class = DRIVERS[driver]
    assert drive(*flags, driver=module, settings_class=settings_class) == 0
    unlock()


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    drive_alone(*FLAGS, f"--data_dir={pictures}", f"--workdir={workdir}")
    return workdir


def assert_same_run(workdir, alone):
    """The same but for the order in which numbers are summed: parameters to 1e-3 of a leaf's largest."""
    saved, expected = (
        Checkpoints(folder / "checkpoints").latest_leaves() for folder in (workdir, alone)
    )
    assert saved.step == expected.step == 50
    parameters = [name for name in expected.state if name.startswith("['state'].meta")]
    for name in parameters:
        mine, other = saved.state[name], expected.state[name]
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-3 * np.abs(other).max())
    for name in ("metrics.csv", "test_scores.csv"):
        ours, theirs = rows(workdir / name), rows(alone / name)
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            for key in mine.keys() - {"tasks_per_second", "split"}:
                if mine[key] or other[key]:
                    np.testing.assert_allclose(
                        float(mine[key]), float(other[key]), rtol=2e-3, atol=2e-4, err_msg=key
                    )
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, alone)]
    assert results[0]["episodes_sha256"] == results[1]["episodes_sha256"]
    assert results[0]["best_step"] == results[1]["best_step"]


def assert_same_bytes(workdir, other):
    saved, expected = (Checkpoints(d / "checkpoints").latest_leaves() for d in (workdir, other))
    assert saved.step == expected.step and saved.state.keys() == expected.state.keys()
    for name, leaf in expected.state.items():
        assert saved.state[name].tobytes() == leaf.tobytes(), name
    assert rows(workdir / "metrics.csv") == rows(other / "metrics.csv")
    assert rows(workdir / "test_scores.csv") == rows(other / "test_scores.csv")


DIVIDED = [*FLAGS, "--parameter_shards=2", "--resident=never", "--read_workers=0"]


@pytest.fixture(scope="module")
def of_two(pictures, tmp_path_factory):
    """The run of two processes, parameters divided and images on disk, without a fault."""
    folder = tmp_path_factory.mktemp("of_two")
    # The second has a work directory of its own, which it does not make.
    own = [[f"--workdir={folder / name}"] for name in ("first", "second")]
    (first, out, err), (second, silent, _) = ends(
        start_two(*DIVIDED, f"--data_dir={pictures}", devices=4, own=own)
    )
    assert (first, second) == (0, 0), err
    assert "8 in use by 2 processes; parameters divided over 2" in " ".join(out.split())
    assert silent == ""
    assert not (folder / "second").exists()
    return folder / "first"


def test_two_processes_give_the_run_of_one(alone, of_two):
    assert_same_run(of_two, alone)


def assert_last_line(err, *parts):
    """The last line is ours, and neither a traceback nor a stack of C++ comes before it."""
    lines = err.splitlines()
    for part in ("error: ", *parts):
        assert part in lines[-1], err
    assert not [line for line in lines if "Traceback" in line or "***" in line], err


def test_a_peer_is_killed_then_another_asked_to_stop_and_the_run_is_the_same(
    pictures, alone, of_two, tmp_path, capsys
):
    workdir = tmp_path / "run"
    flags = [*DIVIDED, f"--data_dir={pictures}", f"--workdir={workdir}"]

    processes = start_two(*flags, devices=4)
    wait_for_step(workdir, 10)
    processes[1].kill()
    killed = time.time()
    (status, _, err), _ = ends(processes)
    assert time.time() - killed < NOTICED_SECONDS
    assert status == 1, err
    reached = last_checkpoint(workdir)
    assert_last_line(
        err, "Process 1 is gone", f"with the same command: they continue from step {reached}."
    )
    copy = shutil.copytree(workdir, tmp_path / "copy")

    processes = start_two(*flags, devices=4)
    if reached < 40:
        wait_for_step(workdir, reached + 10)
    processes[1].send_signal(signal.SIGTERM)
    (first, out, err), (second, _, said) = ends(processes)
    assert first == second and first in (0, 130), (
        err
    )  # 0 if all steps were done before the signal came
    assert f"Resuming from step {reached}" in out
    if second == 130:
        step = last_checkpoint(workdir)
        assert f"Saved at step {step}" in out
        assert (
            f"Saved at step {step}. The same command in every process goes on from there:" in said
        )

    for status, _, err in ends(start_two(*flags, devices=4)):
        assert status == 0, err
    assert_same_bytes(workdir, of_two)

    drive_alone(*flags, f"--workdir={copy}")
    assert "Resuming from step" in capsys.readouterr().out
    assert_same_run(copy, alone)


def test_what_is_remembered_of_tasks_comes_back_to_the_process_that_has_them(pictures, tmp_path):
    flags = [*FLAGS, f"--data_dir={pictures}", f"--workdir={tmp_path}", "--outer=pes"]
    flags += ["--steps=4", "--eval_every=0"]
    for _ in range(2):  # the second time from the last checkpoint
        (first, out, err), (second, _, _) = ends(start_two_under_slurm(*flags))
        assert (first, second) == (0, 0), err
    assert "Resuming from step 4 of 4" in out


# Parts of the drivers besides training, each in a run of one process and in one of two.
RUNS = {
    "evaluation on images that another process reads from disk": (
        "fewshot",
        "--mode=evaluate --eval_episodes=12 --resident=never --read_workers=1",
    ),
    "a frozen encoder, a memory budget, a mean of checkpoints, and images that another process reads": (
        "fewshot",
        "--learner=anil --init_from={alone} --freeze --memory_budget=1GB --ensemble=2 --steps=4 "
        "--eval_every=2 --log_every=2 --resident=never --read_workers=1",
    ),
    "regression": (
        "regression",
        "--hidden=8,8 --steps=4 --eval_every=2 --log_every=2 --eval_episodes=10 --valid_episodes=4 "
        "--meta_batch=4",
    ),
    "completion": (
        "completion",
        "--dataset=folder --data_dir={pictures} --learner=cnp --hidden=8,8 --points=10 --queries=8 --steps=4 "
        "--eval_every=2 --log_every=2 --meta_batch=4 --valid_episodes=4 --eval_episodes=10",
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_two_processes_have_the_table_of_one(kind, pictures, alone, tmp_path):
    driver, text = RUNS[kind]
    flags = text.format(alone=alone, pictures=pictures).split()
    if driver == "fewshot":
        flags = [*FLAGS, f"--data_dir={pictures}", *flags]
    one, two = tmp_path / "one", tmp_path / "two"
    if "--mode=evaluate" in flags:
        for copy in (one, two):
            shutil.copytree(alone, copy)
    processes = start_two(*flags, f"--workdir={two}", devices=1, driver=driver)
    for status, _, err in ends(processes):
        assert status == 0, err
    drive_alone(*flags, f"--workdir={one}", driver=driver)

    folder = "evaluation" if "--mode=evaluate" in flags else "."
    mine, other = (json.loads((d / folder / "result.json").read_text()) for d in (two, one))
    assert mine.keys() == other.keys()
    assert mine["episodes_sha256"] == other["episodes_sha256"]
    measured = [name for name in mine if name.startswith(("test_", "ci95"))]
    measured = [name for name in measured if isinstance(mine[name], float)]
    assert len(measured) >= 2
    for name in set(measured) - {"test_seconds"}:
        np.testing.assert_allclose(mine[name], other[name], rtol=2e-3, atol=1e-3, err_msg=name)


def test_one_is_preempted_and_all_save_then_the_first_is_killed_and_the_other_says_so(
    pictures, tmp_path
):
    flags = [*FLAGS, f"--data_dir={pictures}", f"--workdir={tmp_path}"]
    flags += ["--steps=50000", "--checkpoint_every=0", "--eval_every=0", "--log_every=10"]
    processes = start_two(*flags, host=loopback())
    wait_for_step(tmp_path, 10, last_row)
    processes[1].send_signal(signal.SIGINT)
    (first, out, err), (second, _, said) = ends(processes)
    assert (first, second) == (130, 130), err
    saved = last_checkpoint(tmp_path)
    assert saved > 0 and f"Saved at step {saved:,} in {tmp_path}. The same command in every" in out
    assert f"Saved at step {saved:,}. The same command in every process" in said

    processes = start_two(*flags, host=loopback())
    wait_for_step(tmp_path, saved + 10, last_row)
    processes[0].kill()
    killed = time.time()
    _, (status, out, err) = ends(processes)
    assert time.time() - killed < NOTICED_SECONDS
    assert status == 1 and out == "", err
    assert_last_line(err, "Process 0 is gone", f"they continue from step {saved:,}.")


def test_images_that_are_others_in_one_process_are_refused(pictures, tmp_path):
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    image = sorted(other.rglob("*.png"))[0]
    shutil.copy(sorted(other.rglob("*.png"))[-1], image)
    own = [[f"--data_dir={data}"] for data in (pictures, other)]
    for status, _, err in ends(start_two(*FLAGS, f"--workdir={tmp_path / 'run'}", own=own)):
        assert status == 2
        assert "in process 1; start all of them alike" in err and len(err) < 200, "no digests"


def test_a_process_that_does_not_come_and_a_port_that_is_taken_are_one_line():
    flags = ["--distributed", "--num_processes=2", "--join_seconds=3"]
    waiting = [
        start(
            *flags, f"--coordinator=127.0.0.1:{free_port()}", f"--process_id={i}", variables=on(1)
        )
        for i in range(2)
    ]
    with socket.socket() as server:
        server.bind(("", 0))
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"port of --coordinator={taken} cannot be opened"):
            distributed.join(
                FewshotSettings(distributed=True, num_processes=2, coordinator=taken, process_id=0)
            )
    for status, _, err in ends(waiting):
        (line,) = err.splitlines()
        assert status == 1
        assert line.startswith("error: Not all processes came within --join_seconds=3 (DEADLINE")


def test_data_that_one_process_lacks_stops_all(pictures, tmp_path):
    flags = [*FLAGS, f"--workdir={tmp_path}"]
    own = [[f"--data_dir={pictures}"], [f"--data_dir={tmp_path / 'nowhere'}"]]
    (first, _, heard), (second, _, said) = ends(start_two(*flags, own=own))
    assert (first, second) == (1, 1)
    assert "does not exist" in said
    assert "process 1: " in heard and "does not exist" in heard
