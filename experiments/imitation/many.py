"""Imitation of many experts: tasks are demonstrations of an expert that knows the task."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import rl
from metajax.learners import maml
from metajax.objectives import Scoring, adapt_to_task
from metajax.types import Array, Batch, Key, Learner, LossFn, Meta, Metrics, Objective, Task, Tree
from metajax.zoo.environments import find_environment
from metajax.zoo.learners import LEARNERS

from ..flags.settings import UsageError
from ..reports import policies
from ..runtime.progress import Score
from ..setup import environments
from ..setup.experiment import Experiment, Setup
from ..setup.learners import learner_maker
from .options import ImitationPlan

# Function (task, observation) -> action.
Expert = Callable[[Task, Tree], Array]
# Folded into the seed for the key of the cloned policy's parameters and tasks.
_CLONED = 0x434C4F4E


class DemonstrationSampler:
    """Draws tasks with demonstrations of their expert.

    Args:
      tasks: Sampler of the environment's tasks.
      draw: Function `(key, task) -> Demonstrated`.
    """

    def __init__(self, tasks: Any, draw: Callable[[Key, Task], rl.Demonstrated]):
        self.by_task = tasks.by_task
        self._tasks, self._draw = tasks, draw

    def __call__(self, data: Any, key: Key) -> rl.Demonstrated:
        """Draws a task and its demonstrations."""
        task_key, draw_key = jax.random.split(key)
        return self._draw(draw_key, self._tasks(data, task_key))

    identify = __call__


def on_many(expert: Expert) -> rl.imitation.Expert:
    """Makes the expert of several observations [N, ...] at once."""
    return jax.vmap(expert, (None, 0))


def make_experiment(plan: ImitationPlan, env: rl.Env, expert: Expert) -> Experiment:
    """Puts demonstrations, policy and learner together.

    Args:
      plan: The run.
      env: Environment.
      expert: Expert that knows the task.

    Returns:
      The experiment.
    """
    options, inner = plan.options, plan.common.inner
    model = _policy(plan, env)
    tasks, data = environments.task_samplers(
        options.env, plan.env_options, env, tests=plan.common.test.eval_episodes
    )
    loss, draw = loss_of(plan), draw_of(plan, env, expert)
    experiment = Experiment(
        name=f"imitation-{options.env}-{inner.learner}",
        make_learner=learner_maker(
            inner,
            loss,
            model=model,
            encoder=model,
            actions=env.actions,
            examples=options.demonstrations * env.horizon,
        ),
        inputs=environments.example_inputs(env),
        scoring=Scoring(loss),
        score=Score("return", higher_is_better=True),
        samplers={split: DemonstrationSampler(sampler, draw) for split, sampler in tasks.items()},
        data=data,
        fingerprint=f"{options.env} {sorted(plan.env_options.items())}",
        transductive=False,
        combine=no_combination,
        announcement=_announcement(plan, env),
        facts=_facts(plan, env),
        pictures=lambda meta, workdir: {},
        scored=functools.partial(scored, plan, env),
    )
    return experiment._replace(
        measured=functools.partial(_measure, plan, env, expert, experiment),
        pictures=functools.partial(_draw, plan, env, experiment),
    )


def draw_of(
    plan: ImitationPlan, env: rl.Env, expert: Expert
) -> Callable[[Key, Task], rl.Demonstrated]:
    """Makes the function that draws the demonstrations of a task.

    Args:
      plan: The run.
      env: Environment.
      expert: Expert that knows the task.

    Returns:
      `(key, task) -> Demonstrated`; under `--query_noise` the queries are states off the expert's way, with
      its actions there.

    Reference: Laskey et al., 2017 (https://arxiv.org/abs/1703.09327), whose noise this is.
    """
    options = plan.options
    draw = rl.demonstration_episode(
        env, on_many(expert), shots=options.demonstrations, queries=options.queries
    )
    if not options.query_noise:
        return draw
    if isinstance(env.actions, rl.Discrete):
        raise UsageError(
            f"--query_noise={options.query_noise:g} does not go with --env={options.env}, whose actions are "
            "choices; use 0."
        )

    def draw_off_the_way(key: Key, task: Task) -> rl.Demonstrated:
        def act(observation: Tree) -> rl.Normal:
            action = on_many(expert)(task, observation)
            return rl.Normal(action, jnp.full_like(action, jnp.log(options.query_noise)))

        draw_key, noise_key = jax.random.split(key)
        rows = rl.visits(rl.lived(env, act, noise_key, task, episodes=options.queries))
        right = rows._replace(targets=on_many(expert)(task, rows.inputs))
        return draw(draw_key, task)._replace(query=right)

    return draw_off_the_way


def loss_of(plan: ImitationPlan) -> LossFn:
    """Makes the loss of demonstrated actions, with the initial deviation unless it is to be learned."""
    log_std = math.log(plan.options.initial_std)

    def loss(outputs: Tree, batch: Batch) -> Array:
        policy = rl.policy_of(outputs)
        if isinstance(policy, rl.Normal) and not plan.options.learn_std:
            policy = rl.Normal(policy.mean, jnp.full_like(policy.mean, log_std))
        return rl.imitation_loss(policy, batch)

    return loss


def _policy(plan: ImitationPlan, env: rl.Env) -> Any:
    """Makes the network of the policy."""
    return rl.mlp_policy(env.actions, hidden=plan.hidden, initial_std=plan.options.initial_std)


def scored(
    plan: ImitationPlan, env: rl.Env, learner: Learner, *, calls: int | None = None
) -> Objective:
    """Makes the objective of validation and test: returns in the environment after each adaptation.

    Args:
      plan: The run.
      env: Environment.
      learner: Learner.
      calls: Number of adaptations; None is as in the options.

    Returns:
      An objective of `Demonstrated` tasks whose loss is minus the return after the last adaptation.
    """
    options = plan.options
    measure = rl.imitation_returns(
        learner,
        env,
        calls=options.test_calls if calls is None else calls,
        episodes=options.test_episodes,
        mode=not options.sampled,
    )

    def objective(meta: Meta, key: Key, task: rl.Demonstrated) -> tuple[Array, Metrics]:
        returns = measure(meta, key, task)["returns"]
        named = {f"return_{call}": value for call, value in enumerate(returns)}
        return -returns[-1], {"loss": -returns[-1], **named, "return": returns[-1]}

    return objective


def no_combination(outputs: Any) -> Any:
    """Refuses to average distributions; `plan_of` has refused ensembles before."""
    raise ValueError("Distributions of actions have no mean; use --ensemble=1.")


def _announcement(plan: ImitationPlan, env: rl.Env) -> list[tuple[str, str]]:
    """Describes what only this driver knows."""
    options, inner = plan.options, plan.common.inner
    model = f"MLP {options.hidden}" if inner.entry.inner else f"{inner.own}"
    return [
        ("environment", environments.in_words(options.env, plan.env_options, env)),
        (
            "demonstrations",
            f"{options.demonstrations} of each task to adapt to, {options.queries} more to score in training",
        ),
        ("learner", inner.learner),
        ("model", model),
    ]


def _facts(plan: ImitationPlan, env: rl.Env) -> dict[str, Any]:
    """Lists the fields of result.json that only this driver knows."""
    return {
        "environment": plan.options.env,
        "environment_options": plan.env_options,
        "learner": plan.common.inner.learner,
        "demonstrations": plan.options.demonstrations,
        "horizon": env.horizon,
    }


def cloned(plan: ImitationPlan, env: rl.Env, experiment: Experiment) -> dict[str, Any]:
    """Clones the experts of all tasks by one policy, and fine-tunes it to each test task's demonstrations.

    It is the same network, trained on the same query demonstrations, without inner steps.

    Args:
      plan: The run.
      env: Environment.
      experiment: The experiment.

    Returns:
      Fields of result.json: returns before and after fine-tuning.
    """
    options, common = plan.options, plan.common
    model = _policy(plan, env)

    def learner(steps: int, rule: optax.GradientTransformation) -> Learner:
        return maml(model, loss_of(plan), rule=rule, steps=steps)

    inner = common.inner._replace(
        learner="maml", own={}, entry=LEARNERS["maml"], estimator="backprop"
    )
    outer = common.outer._replace(estimator="backprop", multi_step=0, first_order_steps=0)
    setup = Setup(
        experiment._replace(make_learner=lambda *_, **__: learner(0, optax.sgd(1.0))),
        common._replace(inner=inner, outer=outer),
    )
    meta = policies.trained(
        setup,
        plan.clone_steps,
        key=jax.random.key(common.training.seed ^ _CLONED),
        name="cloned policy of all tasks",
    )
    tuned = learner(options.finetune_steps, optax.adam(options.finetune_lr))
    objective = scored(plan, env, tuned)
    return policies.fields("cloned", policies.on_test_tasks(common, experiment, objective, meta))


def _measure(
    plan: ImitationPlan,
    env: rl.Env,
    expert: Expert,
    experiment: Experiment,
    meta: Any,
    workdir: Path,
) -> dict[str, Any]:
    """Measures the yardsticks."""
    del meta, workdir
    common, options = plan.common, plan.options
    found = policies.untrained(
        common, experiment, lambda learner: scored(plan, env, learner, calls=0)
    )
    objective = policies.expert_returns(
        env, expert, episodes=options.test_episodes, task_of=lambda shown: shown.task
    )
    found |= policies.fields("expert", policies.on_test_tasks(common, experiment, objective, ()))
    if plan.clone_steps:
        found |= cloned(plan, env, experiment)
    return found


def _draw(
    plan: ImitationPlan, env: rl.Env, experiment: Experiment, meta: Any, workdir: Path
) -> dict[str, Any]:
    """Draws the pictures."""
    common, options = plan.common, plan.options
    policies.adaptation(
        workdir / "adaptation.png",
        curves={common.inner.learner: "test", "cloned policy, fine-tuned": "cloned"},
        lines=("random", "expert"),
        scores=json.loads((workdir / "result.json").read_text(encoding="utf-8")),
        title=f"{options.env}: new tasks, {options.demonstrations} demonstrations",
    )
    _draw_paths(plan, env, experiment, meta, workdir)
    return {}


def _draw_paths(
    plan: ImitationPlan, env: rl.Env, experiment: Experiment, meta: Any, workdir: Path
) -> None:
    """Draws demonstrations and imitations, where something moves on a plane."""
    entry = find_environment(plan.options.env)
    if not (body := entry.body) or not (goal := entry.goal):
        return
    learner = Setup(experiment, plan.common).test_learner

    def shown(meta: Meta, key: Key, task: rl.Demonstrated) -> tuple[None, Any]:
        start_key, key = jax.random.split(key)
        begin = learner.start(meta, start_key, task.support)
        draw = jax.vmap(jax.vmap(functools.partial(body, task.task)))
        places = task.support.inputs
        places = places.reshape(-1, env.horizon, *places.shape[1:])
        found = [(draw(places), task.support.weights.reshape(-1, env.horizon) > 0)]
        for fast in (begin, adapt_to_task(learner, meta, key, task)):
            act = functools.partial(learner.predict, meta, fast)
            lives = rl.lived(env, act, key, task.task, episodes=1, mode=not plan.options.sampled)
            found.append((draw(lives.observation), lives.alive))
        return None, (found, goal(task.task))

    found, goals = policies.on_test_tasks(plan.common, experiment, shown, meta)
    bodies, alive = zip(*found, strict=True)
    policies.paths(
        workdir / "rollouts.png",
        bodies=bodies,
        alive=alive,
        goals=goals,
        names=["demonstration", "before adapting", "after adapting"],
        title=f"{plan.options.env}, {plan.common.inner.learner}: new tasks",
    )
