"""Returns to compare with: of the untrained policy, of a policy of all tasks, and of one that knows the task.

All are measured on the test tasks of the run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from metajax import rl
from metajax.types import Array, Key, Learner, Meta, Metrics, Task
from metajax.zoo.environments import expert_of, value_in

from ..reports import policies
from ..setup.experiment import Experiment, Setup
from . import living
from .options import RlPlan

# Folded into the seed for the key of its parameters and its tasks.
_MULTITASK = 0x4D554C54


def untrained(plan: RlPlan, env: rl.Env, experiment: Experiment) -> dict[str, Any]:
    """Measures the policy before any training, without adaptation.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.

    Returns:
      Fields of result.json.
    """
    return policies.untrained(
        plan.common, experiment, lambda learner: living.scored(plan, env, learner, calls=0)
    )


def oracle(plan: RlPlan, env: rl.Env, experiment: Experiment) -> dict[str, Any]:
    """Measures a policy that knows the task: exactly where its value is known, else by its episodes.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.

    Returns:
      Fields of result.json; none for environments without such a policy.
    """
    name, own = plan.options.env, plan.env_options
    added = living.episodes_of_life(plan, testing=True)
    total = plan.reads or plan.options.whole_life
    if value := value_in(name, env, own):
        objective = functools.partial(_valued, value, added)
    elif expert := expert_of(name, env, own):
        episodes = added if total else living.episodes_of(plan, testing=True)
        objective = policies.expert_returns(env, expert, episodes=episodes, total=total)
    else:
        return {}
    metrics = policies.on_test_tasks(plan.common, experiment, objective, ())
    return policies.fields("oracle", metrics)


def _valued(
    value: Callable[[Task], Array], episodes: int, meta: Meta, key: Key, task: Task
) -> tuple[Array, Metrics]:
    """Scores a task by the largest expected return there is."""
    del meta, key
    found = episodes * value(task)
    return -found, {"return": found}


def multitask(plan: RlPlan, env: rl.Env, experiment: Experiment) -> dict[str, Any]:
    """Trains one policy on all tasks, without adaptation, and fine-tunes it to each test task.

    It is trained like the learner, with `--multitask_steps` outer steps and no inner ones, and adapts like
    it in the test: the baseline "pretrained" of MAML.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.

    Returns:
      Fields of result.json.
    """
    inner = plan.common.inner._replace(steps=0)
    options = dataclasses.replace(plan.options, calls=1)
    without = plan._replace(common=plan.common._replace(inner=inner), options=options)
    setup = Setup(
        experiment._replace(
            trained=functools.partial(living.trained, without, env),
            outer_step=functools.partial(living.outer_step, without, env),
        ),
        without.common,
    )
    meta = policies.trained(
        setup,
        plan.options.multitask_steps,
        key=jax.random.key(plan.common.training.seed ^ _MULTITASK),
        name="policy of all tasks",
    )
    learner: Learner = setup.test_learner
    objective = living.scored(plan, env, learner)
    metrics = policies.on_test_tasks(plan.common, experiment, objective, meta)
    return policies.fields("multitask", metrics)
