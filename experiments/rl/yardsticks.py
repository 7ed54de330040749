"""Returns to compare with: of the untrained policy, of a policy of all tasks, and of one that knows the task.

All are measured on the test tasks of the run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.reports import policies
from experiments.rl import living
from experiments.rl.options import RlPlan
from experiments.setup.estimators import outer_optimizer
from experiments.setup.experiment import Experiment, Setup
from metajax import rl
from metajax.train import init_state, skip_nonfinite, steps_up_to
from metajax.types import Array, Learner, Task, Tree

# Steps of the policy of all tasks between two moves of its progress bar.
_BLOCK = 10
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


def oracle(
    plan: RlPlan,
    env: rl.Env,
    experiment: Experiment,
    expert: Callable[[Task, Tree], Array],
) -> dict[str, Any]:
    """Measures a policy that knows the task.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.
      expert: Function `(task, observation) -> action`.

    Returns:
      Fields of result.json.
    """
    episodes = plan.options.trial_episodes if plan.reads else living.episodes_of(plan, testing=True)
    objective = policies.expert_returns(env, expert, episodes=episodes, total=plan.reads)
    metrics = policies.on_test_tasks(plan.common, experiment, objective, ())
    return policies.fields("oracle", metrics)


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
            outer_step=experiment.outer_step and functools.partial(living.outer_step, without, env),
        ),
        without.common,
    )
    init_key, train_key = jax.random.split(jax.random.key(plan.common.training.seed ^ _MULTITASK))
    meta = jax.jit(setup.learner.init)(init_key, experiment.inputs)
    state = init_state(meta, outer_optimizer(without.common.outer, supervised=False), train_key)
    steps = plan.options.multitask_steps
    block = jax.jit(steps_up_to(skip_nonfinite(setup.meta_step()), _BLOCK))
    with tqdm(total=steps, desc="policy of all tasks", unit="step") as bar:
        for begun in range(0, steps, _BLOCK):
            number = min(_BLOCK, steps - begun)
            state, _ = block(state, None, jnp.int32(number))
            jax.block_until_ready(state)
            bar.update(number)
    learner: Learner = setup.test_learner
    objective = living.scored(plan, env, learner)
    metrics = policies.on_test_tasks(plan.common, experiment, objective, state.meta)
    return policies.fields("multitask", metrics)
