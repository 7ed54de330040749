"""What the driver of meta-reinforcement learning says of bad environments and numbers: one line each."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import conduct
from experiments.flags.settings import TrainingError, UsageError
from experiments.reports import results
from experiments.rl import driver as rl
from experiments.rl import living
from experiments.rl.options import RlSettings, plan_of
from helpers.driver_runs import drive, rows, unlock
from metajax import Batch, Episode
from metajax.rl import Decisions, Step
from metajax.zoo import environments

SMALL = (
    "--env=bandit --arms=2 --pulls=3 --meta_batch=4 --steps=8 --eval_every=8 --checkpoint_every=8 "
    "--valid_episodes=4 --eval_episodes=4 --log_every=1"
).split()
ADAPTING = [*SMALL, "--episodes=2", "--hidden=4", "--test_calls=0", "--baseline=none"]


def run(*flags):
    status = drive(*flags, driver=rl, settings_class=RlSettings)
    unlock()
    return status


def broken_bandit(monkeypatch, **changes):
    """Registers a bandit with other functions under the name of the usual one."""
    entry = environments.ENVIRONMENTS["bandit"]
    usual = environments.make_environment("bandit", {"arms": 2, "pulls": 3})
    changed = usual._replace(**{name: change(usual) for name, change in changes.items()})
    module = types.SimpleNamespace(bandit=lambda **options: changed)
    # Its name alone, not the function of all: matplotlib imports by it too.
    monkeypatch.setattr(
        environments, "importlib", types.SimpleNamespace(import_module=lambda name: module)
    )
    monkeypatch.setitem(environments.ENVIRONMENTS, "bandit", entry._replace(expert=None))


def unpaid(usual):
    """Gives no number as the reward of tasks whose first arm is bad: of about half of the meta-steps."""

    def step(key, task, state, action):
        after = usual.step(key, task, state, action)
        return after._replace(reward=jnp.where(task[0] < 0.2, jnp.nan, after.reward))

    return step


def experience(shape, *, action=jnp.int32):
    """Batches of experience of zeros, of rows with two features."""
    zeros = jnp.zeros(shape)
    return Batch(jnp.zeros((*shape, 2)), Decisions(zeros.astype(action), *[zeros] * 6), zeros)


def test_the_first_number_that_is_not_finite_is_found():
    life = Episode(experience((4, 2, 6)), experience((4, 6)))
    assert living.first_not_finite(life).tolist() == [-1, -1, -1]
    reward = life.query.targets.reward.at[3, 4].set(jnp.nan)
    late = life.query._replace(targets=life.query.targets._replace(reward=reward))
    assert living.first_not_finite(life._replace(query=late)).tolist() == [3, 2 * 6 + 4, 2]
    seen = life.support.inputs.at[3, 1, 5, 1].set(jnp.inf)
    both = Episode(life.support._replace(inputs=seen), late)
    assert living.first_not_finite(both).tolist() == [3, 6 + 5, 0]
    trials = experience((4, 6), action=float)
    moved = trials.targets._replace(action=trials.targets.action.at[1, 2].set(jnp.nan))
    assert living.first_not_finite(trials._replace(targets=moved)).tolist() == [1, 2, 1]


def test_the_place_of_such_a_number_is_said_in_words():
    env = types.SimpleNamespace(horizon=3)
    plan = plan_of(RlSettings(env="bandit", episodes=2))
    said = living.where_not_finite(plan, env, {"nonfinite_at": np.array([3, 10, 2])})
    assert said.startswith(
        "First the reward at step 1 of episode 1 after 1 adaptation, in task 3 of the meta-step"
    )
    assert "check_env" in said
    reading = plan_of(RlSettings(env="bandit", learner="rl2"))
    said = living.where_not_finite(reading, env, {"nonfinite_at": np.array([0, 4, 1])})
    assert "action at step 1 of episode 1, in task 0" in said and "the policy" in said
    assert not living.where_not_finite(plan, env, {"nonfinite_at": np.full(3, -1)})
    assert not living.where_not_finite(plan, env, {"loss": np.float32(np.nan)})


@pytest.mark.parametrize("outer", ["promp", "es"])
def test_a_reward_that_is_not_finite_stops_the_run_and_names_its_task(outer, tmp_path, monkeypatch):
    broken_bandit(monkeypatch, step=unpaid)
    with pytest.raises(TrainingError, match="not finite at step") as error:
        run(*ADAPTING, f"--outer={outer}", f"--workdir={tmp_path}")
    unlock()
    said = str(error.value)
    assert "\n" not in said
    assert "Not finite: " in said and "loss" in said and "return" in said
    assert "First the reward at step 0 of episode 0 after 0 adaptations, in task " in said


def test_steps_with_such_rewards_are_skipped_where_asked(tmp_path, monkeypatch):
    broken_bandit(monkeypatch, step=unpaid)
    monkeypatch.setattr(results, "test", lambda *args: None)
    assert run(*ADAPTING, "--skip_nonfinite", f"--workdir={tmp_path}") == 0
    trained = [row for row in rows(tmp_path / "metrics.csv") if row["split"] == "train"]
    assert 0 < sum(float(row["nonfinite"]) for row in trained) < 8
    assert not any(name.startswith("nonfinite_at") for name in trained[0])


def test_a_plan_shows_the_memory_where_the_arithmetic_is_unknown(monkeypatch, capsys):
    def flops(*args):
        raise ValueError("A while_loop holds a matrix product")

    broken_bandit(monkeypatch, step=unpaid)
    monkeypatch.setattr(conduct, "flops", flops)
    assert run(*ADAPTING, "--workdir=", "--plan") == 0
    said = capsys.readouterr().out
    assert "memory" in said and "not known before it runs" in said and "floor" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reset": lambda usual: lambda key, task: (jnp.zeros(()), jnp.zeros(4))},
            r"observation of env.step is float32\[1\], of env.reset float32\[4\]",
        ),
        (
            {"step": lambda usual: lambda *args: Step(*usual.step(*args)[:2], jnp.zeros(2), False)},
            r"reward of env.step is float32\[2\]; use a float scalar",
        ),
        ({"horizon": lambda usual: 0}, "env.horizon is 0; use an int of 1 or more"),
        (
            {
                "reset": lambda usual: (
                    lambda key, task: (jax.random.uniform(key, (2,)), jnp.zeros(1))
                ),
                "step": lambda usual: (
                    lambda key, task, paid, arm: Step(
                        paid, jnp.zeros(1), paid[arm], jnp.array(False)
                    )
                ),
            },
            "env.reset draws state, which no step changes and which changes the reward: it belongs",
        ),
    ],
)
def test_an_environment_that_breaks_the_contract_is_one_line(monkeypatch, changes, message):
    broken_bandit(monkeypatch, **changes)
    with pytest.raises(UsageError, match=message) as error:
        rl.build(RlSettings(env="bandit", arms=2, pulls=3))
    assert str(error.value).startswith("--env=bandit breaks the contract: ")


@pytest.mark.parametrize(
    "flag", ["--episodes=0", "--calls=0", "--pulls=0", "--test_calls=-1", "--updates=0"]
)
def test_a_number_of_zero_is_refused(flag):
    with pytest.raises(UsageError, match=r"is too small; use [01] or more") as error:
        run(*SMALL, flag)
    assert str(error.value).startswith(flag)


def test_a_number_of_test_tasks_that_no_list_has_is_refused():
    with pytest.raises(
        UsageError, match=r"--eval_episodes=3 does not go with --env=corners: .*3"
    ) as error:
        rl.build(RlSettings(env="corners", eval_episodes=3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("learner", ["maml", "rl2"])
def test_more_experience_than_memory_is_refused_before_compiling(learner, monkeypatch, capsys):
    monkeypatch.setattr(living, "memory", lambda: 2**20)
    flags = {"maml": ["--episodes=30000"], "rl2": ["--learner=rl2", "--trial_episodes=60000"]}
    with pytest.raises(UsageError, match=r"GiB of experience.*1\.0 MiB of memory; use fewer"):
        run("--env=bandit", "--plan", *flags[learner])
    assert "plan" not in capsys.readouterr().out
