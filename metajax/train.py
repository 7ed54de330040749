"""Training and evaluation as pure functions: no files, no prints, no clock."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.types import (
    Array,
    Episode,
    Key,
    Meta,
    MetaGrad,
    Metrics,
    Objective,
    StatefulMetaGrad,
)

SampleFn = Callable[[Any, Key], Episode]
DrawTaskFn = Callable[[SampleFn, Any, Key, Any], tuple[Key, Episode]]
DrawTasksFn = Callable[[SampleFn, Any, Key, Array, int], tuple[Key, Episode]]


class TrainState(NamedTuple):
    """All that training carries.

    Attributes:
      step: how many steps were taken.
      meta: the meta-parameters.
      opt_state: the outer optimizer's.
      memory: what a stateful meta-gradient remembers of its tasks; of others nothing, ().
    """

    step: Array
    meta: Meta
    opt_state: optax.OptState
    memory: Any = ()


StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
EvaluateFn = Callable[[Meta, Any, Key, Array], Metrics]
DrawNumberedFn = Callable[[SampleFn, Any, Key, Array, Array], tuple[Key, Episode]]


def init_state(meta: Meta, optimizer: optax.GradientTransformation, memory: Any = ()) -> TrainState:
    """Starts training at these meta-parameters; `memory` is what `StatefulMetaGrad.init` makes."""
    return TrainState(jnp.zeros((), jnp.int32), meta, optimizer.init(meta), memory)


def running_averages(
    optimizer: optax.GradientTransformation, *, decay: float = 0.9
) -> optax.GradientTransformation:
    """Lets averages run where the gradient is an average less what was just seen; the others are learned.

    Args:
      optimizer: of what is learned.
      decay: of the running averages: after a step they are decay * average + (1 - decay) * seen.

    Returns:
      An optimizer that takes each leaf with a path component `running` for an average: those of norms under
      the policy "running" (see `metajax.models.layers.Norm`), and those of `learners.baseline`.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; use 0 to under 1, such as 0.9.")
    runs = trees.under("running")

    def labels(params: Meta) -> Any:
        chosen = ["runs" if runs(path) else "learned" for path in trees.paths(params)]
        return jax.tree.structure(params).unflatten(chosen)

    return optax.partition({"learned": optimizer, "runs": optax.sgd(1 - decay)}, labels)


def draw_task(sample: SampleFn, data: Any, step_key: Key, task: Array) -> tuple[Key, Episode]:
    """Draws one task, a pure function of (step_key, task): the learner's key and the episode."""
    episode_key, learner_key = jax.random.split(jax.random.fold_in(step_key, task))
    return learner_key, sample(data, episode_key)


def draw_tasks(
    sample: SampleFn, data: Any, key: Key, step: Array, num_tasks: int
) -> tuple[Key, Episode]:
    """Draws the tasks of a step, each a pure function of (key, step, task).

    No draw depends on how many tasks, devices or hosts there are: task 3 of step 7 is the same wherever it
    is made.

    Args:
      sample: `(data, key) -> Episode`, one task.
      data: what `sample` reads, such as a class store.
      key: the run's key; not consumed, only folded into.
      step: which step.
      num_tasks: T.

    Returns:
      The learners' keys [T] and the episodes [T, ...].
    """
    return draw_numbered(sample, data, key, step, jnp.arange(num_tasks))


def draw_numbered(
    sample: SampleFn, data: Any, key: Key, step: Array, tasks: Array
) -> tuple[Key, Episode]:
    """Draws the tasks of a step that have these numbers [T], as `draw_tasks` would."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda task: draw_task(sample, data, step_key, task))(tasks)


def make_step(
    meta_grad: MetaGrad | StatefulMetaGrad,
    optimizer: optax.GradientTransformation,
    sample: SampleFn,
    *,
    key: Key,
    num_tasks: int,
    draw: DrawTasksFn = draw_tasks,
) -> StepFn:
    """Makes one meta-step: draw tasks, take their meta-gradient, apply the outer optimizer.

    Args:
      meta_grad: any meta-gradient, sharded or not; the state of a stateful one needs its memory.
      optimizer: the outer optimizer.
      sample: draws one task from the data.
      key: the key of the training tasks; the step number is folded into it.
      num_tasks: T, tasks a step.
      draw: draws the tasks of a step: `sharding.draw_over_tasks` draws each device's own there,
        `streaming.draw_tasks` those whose images stay on disk.

    Returns:
      `(state, data) -> (state, metrics)`, with the metrics' means over tasks and `grad_norm`, the global
      norm of the meta-gradient.
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        keys, episodes = draw(sample, data, key, state.step, num_tasks)
        memory = state.memory
        if isinstance(meta_grad, StatefulMetaGrad):
            grads, memory, metrics = meta_grad.update(state.meta, memory, keys, episodes)
        else:
            grads, metrics = meta_grad(state.meta, keys, episodes, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.meta)
        meta = optax.apply_updates(state.meta, updates)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, meta, opt_state, memory), metrics

    return step


def skip_nonfinite(step: StepFn) -> StepFn:
    """Leaves out steps whose loss or meta-gradient is not finite.

    Args:
      step: as `make_step` makes it; its metrics hold `loss` and `grad_norm`.

    Returns:
      The same step, but where either metric is NaN or infinite the state stays as it was; only its step count
      and what is remembered of tasks go on, so that other tasks come. A metric `skipped` is 1 there and 0
      elsewhere.
    """

    def guarded(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, data)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        kept = jax.tree.map(lambda ours, old: jnp.where(finite, ours, old), new, state)
        # What is remembered goes on too: the same tasks would give the same NaN for ever.
        kept = kept._replace(step=new.step, memory=new.memory)
        return kept, {**metrics, "skipped": 1 - finite.astype(jnp.int32)}

    return guarded


def many_steps(step: StepFn, num_steps: int) -> StepFn:
    """Takes `num_steps` steps in one scan, the host out of the loop; metrics are [num_steps]."""

    def steps(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, _: step(state, data), state, length=num_steps)

    return steps


def steps_up_to(step: StepFn, most: int) -> Callable[[TrainState, Any, Array], tuple[Any, Metrics]]:
    """Takes a number of steps that is an argument, so that one compiled program serves every number.

    Args:
      step: A meta-step.
      most: The largest number of steps, an int.

    Returns:
      `(state, data, number) -> (state, metrics)`: the state after `number` steps, and metrics [most], whose
      first `number` entries are those of the steps.
    """

    def steps(state: TrainState, data: Any, number: Array) -> tuple[TrainState, Metrics]:
        _, like = jax.eval_shape(step, state, data)
        room = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), like)

        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = step(carry[0], data)
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), carry[1], metrics)

        return jax.lax.fori_loop(0, number, body, (state, room))

    return steps


def make_evaluate(
    objective: Objective,
    sample: SampleFn,
    *,
    tasks_at_once: int = 1,
    draw: DrawTaskFn = draw_task,
) -> EvaluateFn:
    """Makes an evaluation over numbered episodes.

    Args:
      objective: scores one task.
      sample: draws one task from the data.
      tasks_at_once: how many are vectorised together.
      draw: draws one task by its number, or by what else `tasks` holds of each; `streaming.draw_task` where
        images stay on disk.

    Returns:
      `(meta, data, key, tasks [E]) -> metrics`, each [E]. Episode i is task i of step 0 of `draw_tasks`: the
      same key and numbers are the same test, however they are split between calls or devices.
    """

    def evaluate(meta: Meta, data: Any, key: Key, tasks: Array) -> Metrics:
        step_key = jax.random.fold_in(key, 0)

        # Drawn inside the map: 600 episodes of photographs at once would be gigabytes.
        def score(task):
            return objective(meta, *draw(sample, data, step_key, task))[1]

        return jax.lax.map(score, tasks, batch_size=tasks_at_once)

    return evaluate
