"""The driver of meta-reinforcement learning: what it writes, resumes to, and refuses."""

import json
import shutil

import numpy as np
import pytest

from experiments import conduct
from experiments.flags.settings import UsageError
from experiments.rl import driver as rl
from experiments.rl.options import RlSettings, plan_of
from experiments.setup import demonstrations
from helpers.driver_runs import drive, rows, unlock
from metajax.rl import envs

BANDIT = (
    "--env=bandit --arms=2 --pulls=3 --meta_batch=4 --steps=4 --eval_every=2 --checkpoint_every=2 "
    "--valid_episodes=4 --eval_episodes=6 --log_every=1"
).split()
READING = [*BANDIT, "--learner=rl2", "--trial_episodes=2", "--units=4", "--minibatches=2"]
WALKING = (
    "--env=navigation --horizon=5 --episodes=3 --hidden=4 --meta_batch=4 --steps=2 --eval_every=2 "
    "--valid_episodes=4 --eval_episodes=6 --test_calls=2 --multitask_steps=2 --baseline=none"
).split()


def run(*flags):
    status = drive(*flags, driver=rl, settings_class=RlSettings)
    unlock()
    return status


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A run of a policy that reads its history."""
    workdir = tmp_path_factory.mktemp("rl2")
    assert run(*READING, f"--workdir={workdir}") == 0
    return workdir


def test_a_trial_is_scored_beside_random_and_the_best_arm(read):
    result = json.loads((read / "result.json").read_text())
    scores = [float(row["return"]) for row in rows(read / "test_scores.csv")]
    assert result["test_return"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert 0 <= result["test_return"] <= 6 and result["learner"] == "rl2"
    each = [result[f"test_return_{episode}"] for episode in range(2)]
    assert sum(each) == pytest.approx(result["test_return"], abs=1e-6)
    assert (read / "adaptation.png").stat().st_size > 1000
    assert result["random_return"] <= result["oracle_return"] <= 6
    assert result["environment_options"] == {"arms": 2, "pulls": 3}


def test_a_run_resumes_to_the_same_numbers(read, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(read, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    for name in ("result.json", "test_scores.csv"):
        (workdir / name).unlink()
    assert run(*READING, f"--workdir={workdir}") == 0
    assert (workdir / "test_scores.csv").read_text() == (read / "test_scores.csv").read_text()
    assert rows(workdir / "metrics.csv") == rows(read / "metrics.csv")


def test_greedy_actions_are_a_choice_of_the_test(read, tmp_path):
    workdir = tmp_path / "greedy"
    shutil.copytree(read, workdir)
    assert run("--mode=evaluate", "--greedy", f"--workdir={workdir}") == 0
    result = json.loads((workdir / "evaluation" / "result.json").read_text())
    assert result["settings"]["greedy"] and result["settings"]["env"] == "bandit"


def test_a_policy_may_start_from_that_of_other_tasks(read, tmp_path, capsys, monkeypatch):
    class Begun(Exception):
        """Raised where training would begin."""

    def begin(*_):
        raise Begun

    monkeypatch.setattr(conduct, "_train", begin)
    with pytest.raises(Begun):
        run(*READING, "--pulls=4", f"--init_from={read}", "--init_head", f"--workdir={tmp_path}")
    unlock()
    assert "starts from" in capsys.readouterr().out


def test_a_policy_that_adapts_is_scored_after_each_adaptation(tmp_path):
    file = tmp_path / "walker.npz"
    export = [f"--export_demonstrations={file}", "--export_episodes=2"]
    assert run(*WALKING, *export, f"--workdir={tmp_path}") == 0
    shown = demonstrations.read(file, envs.navigation(horizon=5), episodes=2)
    assert shown.batch.inputs.shape == (10, 2) and (shown.returns < 0).all()
    np.testing.assert_array_equal(shown.task, envs.navigation_tasks(1)[0])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test_return"] == result["test_return_2"]
    for name in ("test_return_0", "test_return_1", "multitask_return_0", "multitask_return_2"):
        assert -5 * 2 < result[name] < 0
    assert result["random_return"] < result["oracle_return"] < 0
    for name in ("adaptation.png", "rollouts.png", "curves.png"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("outer", ["vpg", "trpo", "es"])
def test_every_outer_step_learns_something(outer, tmp_path):
    flags = [*BANDIT, "--episodes=4", "--hidden=4", "--test_calls=1", f"--outer={outer}"]
    assert run(*flags, f"--workdir={tmp_path}") == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "metrics.csv") if row["loss"]]
    assert np.isfinite(losses).all()
    assert json.loads((tmp_path / "result.json").read_text())["outer"] == outer


def test_the_schedule_runs_over_all_steps_of_the_optimizer():
    promp = RlSettings(env="bandit", steps=10, updates=3, minibatches=2, meta_batch=4)
    assert plan_of(promp).common.outer.steps == 60
    assert plan_of(RlSettings(env="bandit", steps=10, outer="vpg")).common.outer.steps == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "bandit", "learner": "protonet"}, "use one of maml, fomaml"),
        ({"env": "bandit", "learner": "rl2", "episodes": 3}, "does not go with --learner=rl2"),
        ({"env": "bandit", "reward": "sparse"}, "--reward=sparse does not go with --env=bandit"),
        ({"env": "bandit", "outer": "trpo", "adjoint": "mixed"}, "use reverse or remat"),
        ({"env": "bandit", "outer": "vpg", "updates": 2}, "does not go with --outer=vpg"),
        ({"env": "bandit", "meta_batch": 6, "minibatches": 4}, "does not divide --meta_batch=6"),
        ({"env": "bandit", "ensemble": 2}, "not for policies"),
        ({"env": "bandit", "trial_episodes": 3}, "it is for rl2"),
        ({"export_demonstrations": "/no/such/a.npz"}, "make /no/such first"),
        ({"export_episodes": 3}, "needs --export_demonstrations"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(RlSettings(**options))
    assert "\n" not in str(caught.value)
