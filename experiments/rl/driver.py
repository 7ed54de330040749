"""Learns to act in new tasks from a few episodes.

Trains a meta-learner on a family of environments, such as points that walk to hidden goals, bandits or robot
arms, and tests it on new tasks: what it earns before it has seen a task, and after each adaptation to its own
experience.

  python -m experiments.rl
  python -m experiments.rl --env=bandit --learner=rl2 --trial_episodes=1
  python -m experiments.rl --env=navigation --outer=trpo
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax import rl
from metajax.objectives.scoring import Scoring
from metajax.train import draw_task
from metajax.zoo.environments import find_environment

from .. import conduct
from ..flags.settings import UsageError
from ..reports import films, policies
from ..runtime.launch import launch
from ..runtime.observers import Observer
from ..runtime.progress import Score
from ..setup import demonstrations, environments
from ..setup.experiment import Experiment, Setup, evaluation_key
from ..setup.learners import halved_after_first, learner_maker
from . import living, yardsticks
from .options import RlPlan, RlSettings, plan_of


def start(settings: RlSettings, *, observers: Sequence[Observer] = ()) -> int:
    """Runs the experiment, with observers of its training; returns the exit status."""
    return conduct.conduct(build, settings, observers=observers)


def build(settings: RlSettings) -> Experiment:
    """Checks the settings and makes the environment.

    Raises:
      UsageError: If options do not go together.
      ImportError: If the environment needs a package that is missing.
    """
    plan = plan_of(settings)
    trains = plan.common.command.mode == "train"
    env = environments.environment(plan.options.env, plan.env_options, tried=trains)
    if trains:
        living.check_memory(plan, env)
    return make_experiment(plan, env)


def make_experiment(plan: RlPlan, env: rl.Env) -> Experiment:
    """Puts environment, policy and learner together.

    Args:
      plan: The run.
      env: Environment.

    Returns:
      The experiment.
    """
    options, inner = plan.options, plan.common.inner
    model = rl.mlp_policy(
        env.actions,
        hidden=plan.hidden,
        critic=options.baseline == "value",
        initial_std=options.initial_std,
    )
    learner = learner_maker(
        inner,
        rl.policy_gradient(curvature=living.curvature_of(plan), discount=options.discount),
        model=model,
        encoder=model,
        test_rule=halved_after_first(inner) if options.halve_inner_lr else None,
        actions=env.actions,
        examples=options.trial_episodes * env.horizon,
    )
    samplers, data = environments.task_samplers(
        options.env, plan.env_options, env, tests=plan.common.test.eval_episodes
    )
    experiment = Experiment(
        name=f"{options.env}-{inner.learner}-{plan.outer}",
        make_learner=learner,
        inputs=environments.example_inputs(env),
        scoring=Scoring(living.outer_loss(plan).loss),
        score=Score("return", higher_is_better=True),
        samplers=samplers,
        data=data,
        fingerprint=f"{options.env} {sorted(plan.env_options.items())}",
        transductive=False,
        combine=_no_combination,
        announcement=_announcement(plan, env),
        facts=_facts(plan, env),
        pictures=_nothing,
        trained=functools.partial(living.trained, plan, env),
        scored=functools.partial(living.scored, plan, env),
        outer_step=functools.partial(living.outer_step, plan, env),
        follows="a trust region" if plan.outer == "trpo" else None,
        parts=options.minibatches,
        explain=functools.partial(living.where_not_finite, plan, env),
    )
    return experiment._replace(
        measured=functools.partial(_measure, plan, env, experiment),
        pictures=functools.partial(_draw, plan, env, experiment),
    )


def _nothing(meta: Any, workdir: Path) -> dict[str, Any]:
    """Draws nothing."""
    del meta, workdir
    return {}


def _no_combination(outputs: Any) -> Any:
    """Refuses to average distributions; `plan_of` has refused ensembles before."""
    raise UsageError("--ensemble is not for policies; use 1.")


def _announcement(plan: RlPlan, env: rl.Env) -> list[tuple[str, str]]:
    """Describes what only this driver knows."""
    options = plan.options
    if plan.reads:
        lives = f"trials of {options.trial_episodes} episodes, read step by step"
        model = f"{plan.common.inner.own}"
    else:
        lives = (
            f"{options.episodes} episodes before each of {options.calls} adaptations in training, "
            f"{options.test_calls} at test; surrogate {living.curvature_of(plan)}"
            f"{'; all rewards count' if options.whole_life else ''}"
        )
        model = f"MLP {options.hidden}"
    return [
        ("environment", environments.in_words(options.env, plan.env_options, env)),
        ("experience", lives),
        ("learner", plan.common.inner.learner),
        ("model", model),
        ("outer step", _outer_in_words(plan)),
    ]


def _outer_in_words(plan: RlPlan) -> str:
    options = plan.options
    words = {
        "vpg": "policy gradient through the adaptation",
        "promp": f"{options.updates} passes, ratios clipped to +- {options.clip_ratio:g}",
        "trpo": f"natural gradient, divergence of {options.max_kl:g} nats at most",
        "es": "evolution strategies",
    }
    return f"{plan.outer}: {words[plan.outer]}"


def _facts(plan: RlPlan, env: rl.Env) -> dict[str, Any]:
    """Lists the fields of result.json that only this driver knows."""
    options = plan.options
    facts = {
        "environment": options.env,
        "environment_options": plan.env_options,
        "learner": plan.common.inner.learner,
        "outer": plan.outer,
        "horizon": env.horizon,
    }
    if plan.reads:
        return {**facts, "trial_episodes": options.trial_episodes}
    episodes = options.test_episodes or options.episodes
    return {
        **facts,
        "curvature": living.curvature_of(plan),
        "adaptations": options.test_calls,
        "episodes_per_adaptation": episodes,
        "whole_life": options.whole_life,
    }


def _measure(
    plan: RlPlan, env: rl.Env, experiment: Experiment, meta: Any, workdir: Path
) -> dict[str, Any]:
    """Measures the yardsticks, and writes demonstrations if asked to."""
    del workdir
    if plan.options.export_demonstrations:
        _export(plan, env, experiment, meta)
    found = yardsticks.untrained(plan, env, experiment)
    found |= yardsticks.oracle(plan, env, experiment)
    if plan.options.multitask_steps:
        found |= yardsticks.multitask(plan, env, experiment)
    return found


def _draw(
    plan: RlPlan, env: rl.Env, experiment: Experiment, meta: Any, workdir: Path
) -> dict[str, Any]:
    """Draws the pictures."""
    scores = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    lines = ("random", "oracle")
    if plan.reads:  # The curve is of single episodes.
        number = plan.options.trial_episodes
        totals = {name: scores.get(f"{name}_return") for name in lines}
        scores |= {
            f"{name}_return": total / number for name, total in totals.items() if total is not None
        }
    if not plan.reads or plan.options.trial_episodes > 1:
        policies.adaptation(
            workdir / "adaptation.png",
            curves={
                plan.common.inner.learner: "test",
                "policy of all tasks, fine-tuned": "multitask",
            },
            lines=lines,
            scores=scores,
            title=f"{plan.options.env}: new tasks",
            after="episodes read" if plan.reads else "adaptations",
        )
    if not plan.reads:
        _draw_paths(plan, env, experiment, meta, workdir)
    return {}


def _export(plan: RlPlan, env: rl.Env, experiment: Experiment, meta: Any) -> None:
    """Writes demonstrations of the policy in the first test task."""
    path = Path(plan.options.export_demonstrations).expanduser()
    walk = living.walked(
        plan,
        env,
        Setup(experiment, plan.common).test_learner,
        episodes=plan.options.export_episodes,
        mode=True,
    )
    key = evaluation_key(plan.common.test.eval_seed, "test")
    data, sampler = experiment.data["test"], experiment.samplers["test"]
    first = jax.tree.map(lambda leaf: leaf[0], data) if sampler.by_task == 0 else data
    act_key, task = draw_task(sampler, jax.random.fold_in(key, 0), first, 0)
    lives, _ = jax.jit(walk)(meta, act_key, task)
    demonstrations.write(path, jax.tree.map(lambda leaf: leaf[1], lives), task)
    print(f"Demonstrations are in {path}.", flush=True)


def _draw_paths(
    plan: RlPlan, env: rl.Env, experiment: Experiment, meta: Any, workdir: Path
) -> None:
    """Draws what the policy does before and after adapting, where something moves on a plane."""
    entry, points = find_environment(plan.options.env), environments.points_of(plan.options.env)
    if points is None:
        return
    setup = Setup(experiment, plan.common)
    walk = living.walked(plan, env, setup.test_learner, points=points)

    def shown(meta: Any, key: Any, task: Any) -> tuple[None, Any]:
        lives, drawn = walk(meta, key, task)
        return None, (drawn, lives.alive, task)

    tasks = min(policies.TASKS_SHOWN, plan.common.test.eval_episodes)
    drawn, alive, shown_tasks = policies.on_test_tasks(
        plan.common, experiment, shown, meta, tasks=tasks
    )
    each = [jax.tree.map(lambda leaf, t=t: leaf[t], shown_tasks) for t in range(tasks)]
    picture = dict(
        bodies=drawn.swapaxes(0, 1),
        alive=alive.swapaxes(0, 1),
        goals=[np.asarray(entry.goal(task)) for task in each] if entry.goal else None,
        captions=[entry.caption(task) for task in each] if entry.caption else None,
        names=["before adapting", f"after {plan.options.test_calls} adaptations"],
        title=f"{plan.options.env}, {plan.common.inner.learner}: new tasks",
    )
    policies.paths(workdir / "rollouts.png", **picture)
    if drawn.shape[-2] > 1:  # More than a point moves.
        films.film(workdir / "rollouts.gif", **picture)


def main() -> None:
    """Runs the driver on the command line's flags."""
    launch(RlSettings, __doc__, start, prepare=conduct.prepare_process)
