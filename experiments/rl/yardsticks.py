"""Returns to compare with: of the untrained policy, of a policy of all tasks, and of one that knows the task.

All are measured on the test tasks of the run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.rl import living
from experiments.rl.options import RlPlan
from experiments.setup.estimators import outer_optimizer
from experiments.setup.experiment import Experiment, Setup, evaluation_key
from metajax import rl
from metajax.evaluate import make_evaluate
from metajax.metrics import confidence_interval
from metajax.train import init_state, skip_nonfinite, steps_up_to
from metajax.types import Array, Key, Learner, Meta, Metrics, Objective, Task, Tree

# Steps of the policy of all tasks between two moves of its progress bar.
_BLOCK = 10
# Folded into the seed for the key of its parameters and its tasks.
_MULTITASK = 0x4D554C54


def on_test_tasks(plan: RlPlan, experiment: Experiment, objective: Objective, meta: Any) -> Any:
    """Computes an objective's metrics for all test tasks.

    Args:
      plan: The run.
      experiment: The experiment, with the sampler and the list of test tasks.
      objective: Objective of one task.
      meta: Meta-parameters.

    Returns:
      Metrics, NumPy arrays [E, ...].
    """
    sampler, data = experiment.samplers["test"], experiment.data["test"]
    test = plan.common.test
    evaluate = make_evaluate(
        objective, sampler, tasks_at_once=min(test.eval_episodes, 64), by_task=sampler.by_task
    )
    key = evaluation_key(test.eval_seed, "test")
    found = jax.jit(evaluate)(meta, data, key, jnp.arange(test.eval_episodes))
    return jax.tree.map(np.asarray, found)


def fields(prefix: str, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Lists the returns among metrics as fields of result.json, with their intervals.

    Args:
      prefix: Name of the yardstick.
      metrics: Values [E] by metric.

    Returns:
      Means over tasks of the metrics `return...`, and half the widths of their 95% intervals.
    """
    found = {}
    for name, values in metrics.items():
        if name.startswith("return"):
            mean, width = confidence_interval(values)
            found |= {f"{prefix}_{name}": mean, f"{prefix}_{name}_ci95": width}
    return found


def untrained(plan: RlPlan, env: rl.Env, experiment: Experiment) -> dict[str, Any]:
    """Measures the policy before any training, without adaptation: random actions for most networks.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.

    Returns:
      Fields of result.json.
    """
    learner = experiment.make_learner(0, living.adjoint_of(plan), testing=True)
    key = jax.random.split(jax.random.key(plan.common.training.seed))[0]
    meta = jax.jit(learner.init)(key, experiment.inputs)
    objective = living.scored(plan, env, learner, calls=0)
    metrics = on_test_tasks(plan, experiment, objective, meta)
    return fields("random", {"return": metrics["return"]})


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

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        del meta

        def act(observation: Tree) -> rl.Categorical | rl.Normal:
            action = jax.vmap(expert, (None, 0))(task, observation)
            if isinstance(env.actions, rl.Discrete):
                return rl.Categorical(jax.nn.one_hot(action, env.actions.n))
            return rl.Normal(action, jnp.zeros_like(action))

        lives = rl.lived(env, act, key, task, episodes=episodes, mode=True)
        total = jnp.sum(lives.reward) / (1 if plan.reads else episodes)
        return -total, {"return": total}

    return fields("oracle", on_test_tasks(plan, experiment, objective, ()))


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
    metrics = on_test_tasks(plan, experiment, living.scored(plan, env, learner), state.meta)
    return fields("multitask", metrics)
