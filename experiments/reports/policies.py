"""Policies in test tasks: returns to compare with, and pictures of how policies adapt."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from metajax import rl
from metajax.evaluate import make_evaluate
from metajax.metrics import confidence_interval
from metajax.train import init_state, skip_nonfinite, steps_up_to
from metajax.types import Array, Key, Learner, Meta, Metrics, Objective, Task, Tree

from ..flags.plan import RunPlan
from ..setup.experiment import Experiment, Setup, evaluation_key
from ..setup.learners import inner_adjoint
from .pictures import TRAIN, VALID, WRONG, figure_of, save_figure

# Steps of a policy to compare with between two moves of its progress bar.
_BLOCK = 10
TASKS_SHOWN = 4
_EPISODES_SHOWN, _POSTURES_SHOWN = 5, 6
_LINES = ("0.55", "#008a4e", WRONG)
_CURVES = (TRAIN, VALID)


def on_test_tasks(
    plan: RunPlan,
    experiment: Experiment,
    objective: Objective,
    meta: Any,
    *,
    tasks: int | None = None,
) -> Any:
    """Computes an objective's metrics for test tasks.

    Args:
      plan: The run.
      experiment: The experiment, with the sampler and the list of test tasks.
      objective: Objective of one task.
      meta: Meta-parameters.
      tasks: Number of tasks E, the first of the test; None is all.

    Returns:
      Metrics, NumPy arrays [E, ...].
    """
    sampler, data = experiment.samplers["test"], experiment.data["test"]
    tasks = plan.test.eval_episodes if tasks is None else tasks
    evaluate = make_evaluate(
        objective, sampler, tasks_at_once=min(tasks, 64), by_task=sampler.by_task
    )
    key = evaluation_key(plan.test.eval_seed, "test")
    found = jax.jit(evaluate)(meta, data, key, jnp.arange(tasks))
    return jax.tree.map(np.asarray, found)


def fields(prefix: str, metrics: Mapping[str, np.ndarray]) -> dict[str, Any]:
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


def untrained(
    plan: RunPlan, experiment: Experiment, objective: Callable[[Learner], Objective]
) -> dict[str, Any]:
    """Measures the policy before any training: random actions for most networks.

    Args:
      plan: The run.
      experiment: The experiment.
      objective: Function learner -> objective with the metric `return`.

    Returns:
      Fields of result.json.
    """
    adjoint = inner_adjoint(plan.inner.adjoint)
    learner = experiment.make_learner(0, adjoint, testing=True)
    key = jax.random.split(jax.random.key(plan.training.seed))[0]
    meta = jax.jit(learner.init)(key, experiment.inputs)
    metrics = on_test_tasks(plan, experiment, objective(learner), meta)
    return fields("random", {"return": metrics["return"]})


def expert_returns(
    env: rl.Env,
    expert: Callable[[Task, Tree], Array],
    *,
    episodes: int,
    total: bool = False,
    task_of: Callable[[Any], Task] = lambda task: task,
) -> Objective:
    """Makes the objective that measures a policy that knows the task.

    Args:
      env: Environment.
      expert: Function `(task, observation) -> action`.
      episodes: Number of episodes.
      total: Whether the rewards of all episodes are added; else the return is their mean.
      task_of: Function from what a sampler draws to the environment's task.

    Returns:
      Objective with the metric `return`, of any meta-parameters.
    """

    def objective(meta: Meta, key: Key, task: Any) -> tuple[Array, Metrics]:
        del meta

        def act(observation: Tree) -> rl.Categorical | rl.Normal:
            action = jax.vmap(expert, (None, 0))(task_of(task), observation)
            if isinstance(env.actions, rl.Discrete):
                return rl.Categorical(jax.nn.one_hot(action, env.actions.n))
            return rl.Normal(action, jnp.zeros_like(action))

        lives = rl.lived(env, act, key, task_of(task), episodes=episodes, mode=True)
        found = jnp.sum(lives.reward) / (1 if total else episodes)
        return -found, {"return": found}

    return objective


def trained(setup: Setup, steps: int, *, key: Key, name: str) -> Meta:
    """Trains a policy to compare with, without checkpoints.

    Args:
      setup: An experiment on its devices.
      steps: Number of outer steps.
      key: Random key of its parameters and its tasks; consumed.
      name: Name of the progress bar.

    Returns:
      Meta-parameters.
    """
    init_key, train_key = jax.random.split(key)
    data = setup.place(setup.experiment.data["train"])
    meta = jax.jit(setup.learner.init)(init_key, setup.experiment.inputs)
    state = init_state(meta, setup.optimizer(), train_key)
    block = jax.jit(steps_up_to(skip_nonfinite(setup.meta_step()), _BLOCK))
    with tqdm(total=steps, desc=name, unit="step") as bar:
        for begun in range(0, steps, _BLOCK):
            number = min(_BLOCK, steps - begun)
            state, _ = block(state, data, jnp.int32(number))
            jax.block_until_ready(state)
            bar.update(number)
    return state.meta


def adaptation(
    path: Path,
    *,
    curves: Mapping[str, str],
    lines: Sequence[str],
    scores: Mapping[str, Any],
    title: str,
    after: str = "adaptations",
) -> Path:
    """Draws the return after each adaptation, with 95% intervals, next to the yardsticks.

    Args:
      path: File to write, PNG.
      curves: Prefix of the fields `..._return_0` and so on, by the name of its curve.
      lines: Prefixes of fields `..._return` that are drawn as horizontal lines.
      scores: Fields of result.json; what it lacks is left out.
      title: Title of the picture.
      after: Name of what is counted along the picture.

    Returns:
      The path.
    """
    figure, axes = figure_of(1, 1, width=5.2, height=3.8)
    axis = axes[0, 0]
    for (name, prefix), color in zip(curves.items(), _CURVES, strict=False):
        means, widths = _curve(scores, prefix)
        if means:
            axis.errorbar(
                range(len(means)), means, widths, label=name, color=color, marker="o", capsize=3
            )
    for name, color in zip(lines, _LINES, strict=False):
        if f"{name}_return" in scores:
            axis.axhline(scores[f"{name}_return"], color=color, linestyle="--", label=name)
    axis.set(xlabel=after, ylabel="return")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title)
    return save_figure(figure, path)


def _curve(scores: Mapping[str, Any], prefix: str) -> tuple[list[float], list[float]]:
    """Collects the returns after 0, 1, 2, ... adaptations, and half the widths of their intervals."""
    means, widths = [], []
    while (value := scores.get(f"{prefix}_return_{len(means)}")) is not None:
        name = f"{prefix}_return_{len(means)}".removeprefix("test_")
        widths.append(scores.get(f"{name}_ci95") or 0.0)
        means.append(value)
    return means, widths


def paths(
    path: Path,
    *,
    bodies: Sequence[np.ndarray],
    alive: Sequence[np.ndarray],
    goals: Sequence[np.ndarray] | None,
    names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
) -> Path:
    """Draws paths on the plane, one row of panels per number of adaptations, one column per task.

    A body of several points, such as an arm, is also drawn itself, at some moments of the first episode.

    Args:
      path: File to write, PNG.
      bodies: Points [tasks, N, H, P, 2] for each row, with NaN between lines; the path is that of the last.
      alive: Steps that were taken, bool [tasks, N, H], for each row.
      goals: Goals [2] to mark, one per task; None marks nothing.
      names: Names of the rows.
      title: Title of the picture.
      captions: Titles of the columns, one per task.

    Returns:
      The path.
    """
    columns = min(TASKS_SHOWN, len(bodies[0]))
    figure, axes = figure_of(len(bodies), columns, width=2.4, height=2.5)
    for row, (moved, taken, name) in enumerate(zip(bodies, alive, names, strict=True)):
        walked = moved[..., -1, :]
        for column in range(columns):
            axis = axes[row, column]
            for episode in range(min(_EPISODES_SHOWN, walked.shape[1])):
                line = walked[column, episode][taken[column, episode]]
                axis.plot(line[:, 0], line[:, 1], color=TRAIN, linewidth=0.9, alpha=0.8)
            postures = moved[column, 0][taken[column, 0]]
            if postures.shape[1] > 1:
                chosen = np.unique(np.linspace(0, len(postures) - 1, _POSTURES_SHOWN).round())
                for time, index in enumerate(chosen.astype(int), 1):
                    style = dict(color="0.2", linewidth=1.6, alpha=time / len(chosen))
                    axis.plot(postures[index, :, 0], postures[index, :, 1], **style)
            if goals is not None:
                axis.plot(*goals[column], marker="*", markersize=12, color=WRONG, zorder=3)
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(name)
            if row == 0 and captions is not None:
                axis.set_title(captions[column])
    figure.suptitle(title)
    return save_figure(figure, path)
