"""The driver of imitation: what it writes, resumes to, and refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.flags.settings import UsageError
from experiments.imitation import driver as imitation
from experiments.imitation.options import ImitationSettings, plan_of
from experiments.setup import demonstrations
from helpers.driver_runs import drive, rows, unlock
from metajax import rl
from metajax.errors import DataError

SMALL = (
    "--env=navigation --horizon=5 --hidden=4 --steps=2 --valid_episodes=2 --eval_episodes=4 --log_every=1"
).split()
MANY = [*SMALL, "--meta_batch=2", "--eval_every=1", "--checkpoint_every=1", "--test_episodes=1"]
MANY += ["--inner_steps=1", "--finetune_steps=2"]
GAIL = [*SMALL, "--learner=gail", "--demonstrations=2", "--episodes=3", "--checkpoint_every=1"]
GAIL += ["--discriminator_hidden=4", "--clone_steps=2"]


def run(*flags):
    status = drive(*flags, driver=imitation, settings_class=ImitationSettings)
    unlock()
    return status


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def again(workdir, copy):
    """Copies a finished run without what its last step wrote."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    for name in ("result.json", "test_scores.csv"):
        (copy / name).unlink()
    return copy


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out pictures and yardsticks, most of the time of a run, for what does not look at them."""
    monkeypatch.setattr("experiments.reports.results.drawn", lambda draw: None)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A run of a learner that imitates after one demonstration."""
    workdir = tmp_path_factory.mktemp("many")
    assert run(*MANY, f"--workdir={workdir}") == 0
    return workdir


def test_an_imitator_is_scored_beside_the_expert_and_a_cloned_policy(many):
    result = result_of(many)
    scores = rows(many / "test_scores.csv")
    for name in ("return", "return_0", "return_1"):
        mean = np.mean([float(row[name]) for row in scores])
        assert result[f"test_{name}"] == pytest.approx(mean, abs=1e-6)
    assert result["test_return"] == result["test_return_1"] != result["test_return_0"]
    # Without adapting, the cloned policy and the learner are hardly trained: the expert is better than all.
    for name in ("test_return", "random_return", "cloned_return_0", "cloned_return_1"):
        assert -5 < result[name] < result["expert_return"] < 0
    for name in ("adaptation.png", "rollouts.png", "curves.png"):
        assert (many / name).stat().st_size > 1000


def test_a_run_resumes_to_the_same_numbers(many, undrawn, tmp_path):
    copy = again(many, tmp_path / "again")
    assert run(*MANY, f"--workdir={copy}") == 0
    assert (copy / "test_scores.csv").read_text() == (many / "test_scores.csv").read_text()
    assert rows(copy / "metrics.csv") == rows(many / "metrics.csv")


def test_queries_off_the_way_have_the_experts_actions_there():
    options = {"horizon": 5, "learner": "rl2", "units": 4, "query_noise": 0.5, "queries": 2}
    experiment = imitation.build(ImitationSettings(env="navigation", **options))
    draw = jax.jit(experiment.samplers["train"])
    shown = draw(None, jax.random.key(0))
    wanted = np.clip((np.asarray(shown.task) - shown.query.inputs) / 0.1, -1, 1)
    np.testing.assert_allclose(shown.query.targets, wanted, atol=1e-5)
    assert len(shown.query.inputs) == 10 and len(shown.support.inputs) == 5
    assert np.abs(shown.query.inputs[:5] - shown.support.inputs).max() > 1e-3
    learner = experiment.make_learner(0, None)
    meta = jax.eval_shape(learner.init, jax.random.key(0), experiment.inputs)
    _, scores = jax.eval_shape(experiment.scored(learner), meta, jax.random.key(1), shown)
    assert sorted(scores) == ["loss", "return", "return_0", "return_1"]


@pytest.fixture(scope="module")
def adversarial(tmp_path_factory):
    """A run of adversarial imitation of the environment's own expert."""
    workdir = tmp_path_factory.mktemp("gail")
    assert run(*GAIL, "--absorbing", f"--workdir={workdir}") == 0
    return workdir


def test_gail_is_tested_as_it_is_at_the_end(adversarial):
    result = result_of(adversarial)
    assert result["best_step"] == 2 and result["settings"]["eval_every"] == 0
    assert result["demonstrated_steps"] == 10 and result["settings"]["meta_batch"] == 1
    for name in ("test_return", "random_return", "clone_return"):
        assert -5 < result[name] < result["expert_return"] < 0
    trained = [row for row in rows(adversarial / "metrics.csv") if row["split"] == "train"]
    assert all(np.isfinite(float(row["discriminator_loss"])) for row in trained)


def test_gail_resumes_to_the_same_numbers(adversarial, undrawn, tmp_path):
    copy = again(adversarial, tmp_path / "again")
    assert run(*GAIL, "--absorbing", f"--workdir={copy}") == 0
    assert (copy / "test_scores.csv").read_text() == (adversarial / "test_scores.csv").read_text()
    assert rows(copy / "metrics.csv") == rows(adversarial / "metrics.csv")


def archive(path, **changes):
    """Writes two episodes, of 3 and 2 steps, on the plane."""
    arrays = {
        "observations": np.arange(10.0).reshape(5, 2),
        "actions": np.zeros((5, 2), np.float32),
        "ends": np.array([0, 0, 1, 0, 1], bool),
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_episodes_of_a_file_are_padded_to_the_horizon(tmp_path):
    env = rl.envs.navigation(horizon=4)
    found = demonstrations.read(archive(tmp_path / "a.npz"), env, episodes=2)
    np.testing.assert_array_equal(found.batch.weights, [1, 1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.batch.inputs[[0, 2, 4, 5], 0], [0, 4, 6, 8])
    assert found.task is None and found.returns is None


def test_demonstrations_survive_a_file(tmp_path):
    env, task = rl.envs.navigation(horizon=3), jnp.array([0.2, 0.1])
    act = rl.solve.straight_to(task)
    lives = rl.lived(env, act, jax.random.key(0), task, episodes=2, mode=True)
    demonstrations.write(tmp_path / "a.npz", lives, task)
    found = demonstrations.read(tmp_path / "a.npz", env, episodes=2)
    np.testing.assert_array_equal(found.task, task)
    np.testing.assert_allclose(found.returns, lives.reward.sum(axis=1))
    np.testing.assert_array_equal(found.batch.weights.reshape(2, 3), lives.alive)
    alive = np.asarray(lives.alive)
    np.testing.assert_array_equal(
        found.batch.inputs.reshape(2, 3, 2)[alive], lives.observation[alive]
    )
    np.testing.assert_array_equal(found.batch.targets.reshape(2, 3, 2)[alive], lives.action[alive])


def test_an_expert_of_a_file_is_cloned_as_far_as_held_out_steps_tell(tmp_path):
    file = archive(tmp_path / "a.npz", returns=np.array([-1.0, -2.0]))
    flags = [*SMALL, "--learner=clone", "--demonstrations=2", f"--expert_file={file}"]
    assert run(*flags, "--eval_every=1", f"--workdir={tmp_path / 'run'}") == 0
    result = result_of(tmp_path / "run")
    assert result["expert_return"] == -1.5 and result["demonstrated_steps"] == 5
    held_out = [row["held_out_loss"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert result["test_held_out_loss"] == pytest.approx(min(float(x) for x in held_out if x))
    assert -5 < result["test_return"] < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": None}, "ends is missing"),
        ({"actions": np.zeros((4, 2))}, r"actions has shape \(4, 2\) for 5 observations"),
        ({"actions": np.zeros((5, 3))}, r"actions have shape \(3,\)"),
        ({"observations": np.zeros((5, 3))}, r"observations have shape \(3,\)"),
        ({"observations": np.full((5, 2), np.nan)}, "observation of row 0 is not finite"),
        ({"observations": np.full((5, 2), None)}, "no .npz archive of plain arrays"),
        ({"ends": np.zeros(5, bool)}, "its last row is no end"),
        ({"ends": np.ones(5)}, "make it boolean"),
        ({"ends": np.array([0, 0, 0, 0, 1], bool)}, "has 1 episodes; use --demonstrations=1"),
        ({"ends": np.array([1, 0, 0, 0, 1], bool)}, "an episode of 4 steps.*use --horizon=4"),
        ({"task_0": np.zeros(3)}, "its task is not one of this environment"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(changes, message, tmp_path):
    path = archive(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        demonstrations.read(path, rl.envs.navigation(horizon=3), episodes=2)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_missing_or_no_archive_is_one_line(tmp_path):
    env = rl.envs.navigation(horizon=3)
    with pytest.raises(DataError, match="is not there"):
        demonstrations.read(tmp_path / "none.npz", env, episodes=1)
    (tmp_path / "text.npz").write_text("observations")
    with pytest.raises(DataError, match=r"no \.npz archive"):
        demonstrations.read(tmp_path / "text.npz", env, episodes=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learner": "gail", "meta_batch": 4}, "--meta_batch=4 does not go with --learner=gail"),
        ({"learner": "gail", "eval_every": 5}, "--eval_every=5 does not go with --learner=gail"),
        (
            {"learner": "gail", "outer_lr": 0.5},
            "--outer_lr=0.5 does not go with --policy_step=trpo",
        ),
        ({"learner": "gail", "queries": 2}, "--queries=2 does not go with --learner=gail"),
        ({"learner": "gail", "outer": "es"}, "--outer=es does not go with --learner=gail"),
        ({"sign": "negative"}, "--sign=negative does not go with --learner=maml; it is for gail"),
        ({"expert_file": "a.npz"}, "it is for gail, clone"),
        ({"learner": "gail", "max_kl": 0.1, "policy_step": "ppo"}, "it is for trpo"),
        ({"ensemble": 2}, "not for policies"),
    ],
)
def test_what_does_not_go_together_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(ImitationSettings(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "corners"}, "use one of bandit, navigation, reacher"),
        ({"env": "corners", "learner": "gail"}, "give the --expert_file"),
        ({"learner": "gail", "horizon": 5, "subsample": 2}, "--subsample=2 does not work here"),
        ({"env": "bandit", "query_noise": 1.0}, "--query_noise=1 does not go with --env=bandit"),
    ],
)
def test_what_does_not_fit_the_environment_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        imitation.build(ImitationSettings(**options))
    assert "\n" not in str(caught.value)
