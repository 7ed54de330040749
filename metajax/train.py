"""Training and evaluation as pure functions: no files, no prints, no clock."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.types import (
    DEFAULT_PARTS,
    Array,
    Key,
    Meta,
    MetaGrad,
    Metrics,
    Objective,
    StatefulMetaGrad,
    Task,
)

SampleFn = Callable[[Any, Key], Task]


class TrainState(NamedTuple):
    """Everything that training carries from one step to the next.

    Attributes:
      step: Number of steps taken, an int32 scalar.
      meta: Meta-parameters.
      opt_state: State of the outer optimizer.
      key: Random key of the run, from which the tasks of every step are drawn; it stays the same.
      memory: Memory of a stateful meta-gradient; () for others.
    """

    step: Array
    meta: Meta
    opt_state: optax.OptState
    key: Key
    memory: Any = ()


class History(NamedTuple):
    """Numbers that `make_run` collects.

    Attributes:
      train: Metrics of the training steps, each [steps].
      evaluated: Tree of evaluations, every leaf [steps // every, ...]; () without any.
    """

    train: Metrics
    evaluated: Any = ()


StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
RunFn = Callable[[TrainState, Any], tuple[TrainState, History]]
EvaluateFn = Callable[[Meta, Any, Key, Array], Any]
# `draw_tasks`, or the same over the devices of a mesh.
DrawFn = Callable[..., tuple[Key, Task]]


def init_state(
    meta: Meta, optimizer: optax.GradientTransformation, key: Key, memory: Any = ()
) -> TrainState:
    """Makes the state before the first step.

    Args:
      meta: Meta-parameters that training starts from.
      optimizer: Outer optimizer.
      key: Random key of the training tasks.
      memory: Memory as `StatefulMetaGrad.init` makes it.
    """
    return TrainState(jnp.zeros((), jnp.int32), meta, optimizer.init(meta), key, memory)


def running_averages(
    optimizer: optax.GradientTransformation,
    *,
    decay: float = 0.9,
    averages: trees.PathPredicate = DEFAULT_PARTS.averages,
) -> optax.GradientTransformation:
    """Updates the averages among the leaves as exponential moving averages, and all others by an optimizer.

    The gradient of an average has to be the average less what was just seen.

    Args:
      optimizer: Optimizer of the leaves that are learned.
      decay: Decay of the averages: after a step they are decay * average + (1 - decay) * seen.
      averages: Predicate of the averages' paths. By default those with a component `running`: the averages of
        norms under the policy "running" (see `metajax.models.layers.Norm`), and those of `learners.baseline`.
        A model whose own are named otherwise has `Parts.averages`.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; use 0 to under 1, such as 0.9.")

    def labels(params: Meta) -> Any:
        chosen = ["runs" if averages(path) else "learned" for path in trees.paths(params)]
        return jax.tree.structure(params).unflatten(chosen)

    return optax.partition({"learned": optimizer, "runs": optax.sgd(1 - decay)}, labels)


def draw_tasks(
    sample: SampleFn, data: Any, key: Key, step: Array, tasks: Array, *, by_task: Any = None
) -> tuple[Key, Task]:
    """Draws numbered tasks of a step, each a pure function of (key, step, number).

    No draw depends on how many tasks, devices or hosts there are: task 3 of step 7 is the same wherever it
    is made.

    Args:
      sample: `(data, key) -> task`, one task.
      data: Tree that `sample` reads, such as a class store.
      key: Random key of the run; not consumed, only folded into.
      step: Number of the step, an int.
      tasks: Numbers of the tasks, [T] int.
      by_task: Leaves of the data with a leading axis of tasks [T], of which `sample` reads one task's: a
        prefix of the data as `jax.vmap` takes it in `in_axes`, 0 for them and None for all others.

    Returns:
      The learners' keys [T] and the tasks [T, ...].
    """
    step_key = jax.random.fold_in(key, step)
    one = functools.partial(_draw_task, sample, step_key)
    return jax.vmap(one, (by_task, 0))(data, tasks)


def _draw_task(sample: SampleFn, step_key: Key, data: Any, task: Array) -> tuple[Key, Task]:
    episode_key, learner_key = jax.random.split(jax.random.fold_in(step_key, task))
    return learner_key, sample(data, episode_key)


def map_by_task(function: Callable[[Array], Any], by_task: Any, data: Any) -> Any:
    """Applies a function to the leaves of data that `by_task` marks, and leaves all others as they are."""

    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(function, part),
        by_task,
        data,
        is_leaf=lambda axis: axis is None,
    )


def make_step(
    meta_grad: MetaGrad | StatefulMetaGrad,
    optimizer: optax.GradientTransformation,
    sample: SampleFn,
    *,
    num_tasks: int,
    by_task: Any = None,
    draw: DrawFn = draw_tasks,
) -> StepFn:
    """Makes one meta-step: draw tasks, take their meta-gradient, apply the outer optimizer.

    Args:
      meta_grad: Any meta-gradient, sharded or not; the state of a stateful one needs its memory.
      optimizer: Outer optimizer.
      sample: `(data, key) -> task`, one task.
      num_tasks: T, number of tasks per step.
      by_task: Leaves of the data with a leading axis of tasks, as in `draw_tasks`.
      draw: `draw_tasks`, or `sharding.draw_over_tasks(mesh)`, which draws each device's tasks there.

    Returns:
      `(state, data) -> (state, metrics)`, with the metrics' means over tasks and `grad_norm`, the global
      norm of the meta-gradient.
    """

    def step(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        numbers = jnp.arange(num_tasks)
        keys, tasks = draw(sample, data, state.key, state.step, numbers, by_task=by_task)
        memory = state.memory
        if isinstance(meta_grad, StatefulMetaGrad):
            grads, memory, metrics = meta_grad.update(state.meta, memory, keys, tasks)
        else:
            grads, metrics = meta_grad(state.meta, keys, tasks, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.meta)
        meta = optax.apply_updates(state.meta, updates)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, meta, opt_state, state.key, memory), metrics

    return step


def skip_nonfinite(step: StepFn) -> StepFn:
    """Leaves out steps whose loss or meta-gradient is not finite.

    Args:
      step: Step as `make_step` makes it; its metrics hold `loss` and `grad_norm`.

    Returns:
      The same step, but where either metric is NaN or infinite the state stays as it was; only its step count
      and what is remembered of tasks go on, so that other tasks come. A metric `skipped` is 1 there and 0
      elsewhere.
    """

    def guarded(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, data)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        # The memory goes on too: the same tasks would give the same NaN for ever.
        meta, opt_state = jax.tree.map(
            lambda ours, old: jnp.where(finite, ours, old),
            (new.meta, new.opt_state),
            (state.meta, state.opt_state),
        )
        kept = new._replace(meta=meta, opt_state=opt_state)
        return kept, {**metrics, "skipped": 1 - finite.astype(jnp.int32)}

    return guarded


def many_steps(step: StepFn, num_steps: int) -> StepFn:
    """Takes `num_steps` steps in one scan, the host out of the loop; metrics are [num_steps].

    The scan can be differentiated in reverse, which `steps_up_to` cannot.
    """

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


def make_run(
    step: StepFn,
    *,
    steps: int,
    every: int | None = None,
    evaluate: Callable[[Meta, Any], Any] | None = None,
) -> RunFn:
    """Makes a whole run one function, which `jax.jit` compiles and `jax.vmap` takes over many states.

    It is `many_steps` with evaluations between. A driver that saves or stops between blocks of steps compiles
    `steps_up_to` instead, one program for blocks of any length.

    A state holds the seed (`TrainState.key`), the meta-parameters and the optimizer's state, so that a vmap
    over states is one over seeds, initialisations and, with `optax.inject_hyperparams`, step sizes.

    Args:
      step: Meta-step, as `make_step` makes it.
      steps: Number of steps, a positive int.
      every: Number of steps between evaluations, a divisor of `steps`; None evaluates after the last one.
      evaluate: `(meta, data) -> tree` of numbers; None evaluates nothing.

    Returns:
      `(state, data) -> (state, history)`; the run goes on from the state's step.

    Raises:
      ValueError: If `every` does not divide `steps`.
    """
    every = steps if every is None else every
    if every < 1 or steps % every:
        raise ValueError(
            f"{steps} steps do not divide into blocks of every={every}; use a divisor."
        )

    def run(state: TrainState, data: Any) -> tuple[TrainState, History]:
        def block(state: TrainState, _: None) -> tuple[TrainState, History]:
            state, metrics = many_steps(step, every)(state, data)
            return state, History(metrics, evaluate(state.meta, data) if evaluate else ())

        state, history = jax.lax.scan(block, state, length=steps // every)
        train = jax.tree.map(lambda leaf: leaf.reshape(steps, *leaf.shape[2:]), history.train)
        return state, history._replace(train=train)

    return run


def make_evaluate(
    objective: Objective, sample: SampleFn, *, tasks_at_once: int = 1, by_task: Any = None
) -> EvaluateFn:
    """Makes an evaluation over numbered tasks.

    Args:
      objective: Objective of one task, of which the metrics count, any tree of arrays.
      sample: `(data, key) -> task`, one task.
      tasks_at_once: Number of tasks that are vectorised together.
      by_task: Leaves of the data with a leading axis of tasks [E], as in `draw_tasks`.

    Returns:
      `(meta, data, key, tasks [E]) -> metrics`, every leaf [E, ...]. Its tasks are those of step 0 of
      `draw_tasks`: the same key and numbers are the same test, however they are split between calls or
      devices.
    """

    def evaluate(meta: Meta, data: Any, key: Key, tasks: Array) -> Any:
        step_key, tasks = jax.random.fold_in(key, 0), jnp.asarray(tasks)

        # Drawn inside the map: 600 episodes of photographs at once would be gigabytes.
        def score(place: Array) -> Any:
            own = map_by_task(lambda leaf: jnp.asarray(leaf)[place], by_task, data)
            return objective(meta, *_draw_task(sample, step_key, own, tasks[place]))[1]

        return jax.lax.map(score, jnp.arange(len(tasks)), batch_size=tasks_at_once)

    return evaluate
