"""Training as pure functions: no files, no prints, no clock."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import deprecation, trees
from metajax.types import (
    DEFAULT_PARTS,
    Array,
    Key,
    Meta,
    MetaGrad,
    Metrics,
    StatefulMetaGrad,
    Task,
)

SampleFn = Callable[[Any, Key], Task]


class TrainState(NamedTuple):
    """The state that training carries from one step to the next; `init_state` makes the first.

    Attributes:
      step: Number of steps taken, an int32 scalar.
      meta: Meta-parameters.
      opt_state: State of the outer optimizer.
      key: Random key of the run, from which the tasks of every step are drawn; it stays the same.
      memory: Memory of a stateful meta-gradient; () for others.

    Example:
      >>> metajax.TrainState(jnp.int32(0), {"w": jnp.ones(2)}, (), jax.random.key(0)).memory
      ()
    """

    step: Array
    meta: Meta
    opt_state: optax.OptState
    key: Key
    memory: Any = ()


class History(NamedTuple):
    """Metrics that `make_run` collects.

    Attributes:
      train: Metrics of the training steps, each [S].
      evaluated: Tree of evaluations, every leaf [S // every, ...]; () without any.
    """

    train: Metrics
    evaluated: Any = ()


StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
RunFn = Callable[[TrainState, Any], tuple[TrainState, History]]
# `draw_tasks`, or `sharding.draw_over_tasks(mesh)`, which does the same on the devices of a mesh.
DrawFn = Callable[..., tuple[Key, Task]]

# Evaluation has its own module since 0.1.
__getattr__ = deprecation.renamed_attributes(
    __name__,
    {
        "EvaluateFn": "metajax.evaluate.EvaluateFn",
        "make_evaluate": "metajax.evaluate.make_evaluate",
    },
)


def init_state(
    meta: Meta, optimizer: optax.GradientTransformation, key: Key, memory: Any = ()
) -> TrainState:
    """Makes the state before the first step.

    Args:
      meta: Meta-parameters that training starts from.
      optimizer: Outer optimizer.
      key: Random key of the training tasks.
      memory: Memory from `StatefulMetaGrad.init`, for a stateful meta-gradient.

    Returns:
      State at step 0.

    Example:
      >>> state = init_state({"w": jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
      >>> state.step.item()
      0
    """
    return TrainState(jnp.zeros((), jnp.int32), meta, optimizer.init(meta), key, memory)


def running_averages(
    optimizer: optax.GradientTransformation,
    *,
    decay: float = 0.9,
    averages: trees.PathPredicate = DEFAULT_PARTS.averages,
) -> optax.GradientTransformation:
    """Updates running averages as exponential moving averages and all other leaves with an optimizer.

    The gradient of an average must be `average - seen`: descent with step size 1 - decay then gives
    decay * average + (1 - decay) * seen.

    Args:
      optimizer: Optimizer of the other leaves.
      decay: Decay of the averages per step, a float in [0, 1).
      averages: Predicate of the averages' paths. By default paths with a component `running`: the averages of
        norms under the policy "running" (see `metajax.models.layers.Norm`) and of `learners.baseline`. A
        model with other names gives its predicate as `Parts.averages`.

    Returns:
      An optax transformation.

    Raises:
      ValueError: If `decay` is not in [0, 1).

    Example:
      >>> optimizer = running_averages(optax.sgd(1.0), decay=0.75)
      >>> params = {"w": jnp.array(1.0), "running": jnp.array(2.0)}
      >>> grads = {"w": jnp.array(0.5), "running": params["running"] - 6.0}  # 6 was seen
      >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)["running"].item()  # 0.75 * 2 + 0.25 * 6
      3.0
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; use 0 to under 1, such as 0.9.")

    def labels(params: Meta) -> Any:
        # Labels of optax.partition, which are part of the optimizer state's structure.
        chosen = ["runs" if averages(path) else "learned" for path in trees.paths(params)]
        return jax.tree.structure(params).unflatten(chosen)

    return optax.partition({"learned": optimizer, "runs": optax.sgd(1 - decay)}, labels)


def draw_tasks(
    sample: SampleFn, data: Any, key: Key, step: Array, tasks: Array, *, by_task: Any = None
) -> tuple[Key, Task]:
    """Draws numbered tasks of a step, each a pure function of (key, step, number).

    No draw depends on the number of tasks, devices or hosts: task 3 of step 7 is the same wherever it is
    drawn.

    Args:
      sample: Function `(data, key) -> task`, one task.
      data: Tree that `sample` reads, such as a class store.
      key: Random key of the run; not consumed, only folded into.
      step: Number of the step, an int.
      tasks: Numbers of the tasks, int [T].
      by_task: Leaves of the data with a leading axis of tasks [T], of which `sample` reads one task's slice:
        a prefix of the data like `in_axes` of `jax.vmap`, 0 for these leaves and None for all others.

    Returns:
      Keys [T] for the learners and tasks [T, ...].

    Example:
      >>> sample = lambda data, key: data + jax.random.normal(key, (3,))
      >>> keys, tasks = draw_tasks(sample, 10.0, jax.random.key(0), 7, jnp.arange(4))
      >>> keys.shape, tasks.shape
      ((4,), (4, 3))
    """
    step_key = jax.random.fold_in(key, step)
    one = functools.partial(draw_task, sample, step_key)
    return jax.vmap(one, (by_task, 0))(data, tasks)


def draw_task(sample: SampleFn, step_key: Key, data: Any, task: Array) -> tuple[Key, Task]:
    """Draws one numbered task of a step.

    Args:
      sample: Function `(data, key) -> task`.
      step_key: Random key of the step, the run's key with the step's number folded in; not consumed.
      data: Tree that `sample` reads.
      task: Number of the task, an int.

    Returns:
      Key for the learner and the task.

    Example:
      >>> step_key = jax.random.fold_in(jax.random.key(0), 7)
      >>> key, task = draw_task(lambda data, key: data, step_key, 10.0, 3)
      >>> task
      10.0
    """
    episode_key, learner_key = jax.random.split(jax.random.fold_in(step_key, task))
    return learner_key, sample(data, episode_key)


def map_by_task(function: Callable[[Array], Any], by_task: Any, data: Any) -> Any:
    """Applies a function to the leaves of data that `by_task` marks, and leaves all others as they are.

    Args:
      function: Function of an array [T, ...].
      by_task: Prefix of the data, 0 for leaves with a task axis and None for others, as in `draw_tasks`.
      data: Tree of arrays.

    Returns:
      Tree like `data`.

    Example:
      >>> map_by_task(lambda leaf: leaf[1], (None, 0), (jnp.arange(3), jnp.array([5, 6])))[1].item()
      6
    """
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
    """Makes an outer step: draw tasks, compute their meta-gradient, apply the outer optimizer.

    Args:
      meta_grad: Meta-gradient, sharded or not; a stateful one needs its memory in the state.
      optimizer: Outer optimizer.
      sample: Function `(data, key) -> task`, one task.
      num_tasks: Number of tasks T per step.
      by_task: Leaves of the data with a leading axis of tasks, as in `draw_tasks`.
      draw: Function that draws all tasks: `draw_tasks`, or `sharding.draw_over_tasks(mesh)`, which draws each
        device's tasks on that device.

    Returns:
      `(state, data) -> (state, metrics)`, with the metrics' means over tasks and `grad_norm`, the global
      norm of the meta-gradient.

    Example:
      >>> objective = lambda meta, key, task: ((meta - task) ** 2, {"loss": (meta - task) ** 2})
      >>> optimizer = optax.sgd(0.25)
      >>> step = make_step(metajax.backprop(objective), optimizer, lambda data, key: data, num_tasks=4)
      >>> state = metajax.init_state(jnp.array(1.0), optimizer, jax.random.key(0))
      >>> state, metrics = step(state, 3.0)
      >>> state.meta.item(), metrics["grad_norm"].item()
      (2.0, 4.0)
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
    """Skips steps whose loss or meta-gradient is not finite.

    Args:
      step: Outer step, as `make_step` makes it; its metrics contain `loss` and `grad_norm`.

    Returns:
      A step that keeps the old meta-parameters and optimizer state if either metric is NaN or infinite. The
      step count and the memory of tasks still advance, so that other tasks follow. The metric `skipped` is 1
      for a skipped step and 0 otherwise.

    Example:
      >>> def step(state, data):
      ...     new = state._replace(step=state.step + 1, meta=state.meta + data)
      ...     return new, {"loss": data, "grad_norm": data}
      >>> state = metajax.init_state(jnp.array(1.0), optax.sgd(0.1), jax.random.key(0))
      >>> state, metrics = skip_nonfinite(step)(state, jnp.nan)
      >>> state.meta.item(), state.step.item(), metrics["skipped"].item()
      (1.0, 1, 1)
    """

    def guarded(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, data)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        # The memory advances too: the same tasks would give the same NaN in every step.
        meta, opt_state = jax.tree.map(
            lambda ours, old: jnp.where(finite, ours, old),
            (new.meta, new.opt_state),
            (state.meta, state.opt_state),
        )
        kept = new._replace(meta=meta, opt_state=opt_state)
        return kept, {**metrics, "skipped": 1 - finite.astype(jnp.int32)}

    return guarded


def many_steps(step: StepFn, num_steps: int) -> StepFn:
    """Repeats a step in one scan, without the host in the loop.

    The scan can be differentiated in reverse mode, which `steps_up_to` cannot.

    Args:
      step: Outer step.
      num_steps: Number of steps S.

    Returns:
      `(state, data) -> (state, metrics)`, with metrics [S, ...].

    Example:
      >>> steps = many_steps(lambda state, data: (state + data, {"state": state}), 3)
      >>> state, metrics = steps(jnp.array(0.0), 2.0)
      >>> state.item(), metrics["state"].tolist()
      (6.0, [0.0, 2.0, 4.0])
    """

    def steps(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, _: step(state, data), state, length=num_steps)

    return steps


def steps_up_to(step: StepFn, most: int) -> Callable[[TrainState, Any, Array], tuple[Any, Metrics]]:
    """Repeats a step a variable number of times, so that one compiled program serves every number.

    Args:
      step: Outer step.
      most: Largest number of steps, an int.

    Returns:
      `(state, data, number) -> (state, metrics)`: the state after `number` steps, and metrics [most, ...], of
      which the first `number` entries are filled and the others zero.

    Example:
      >>> steps = steps_up_to(lambda state, data: (state + data, {"state": state}), 4)
      >>> state, metrics = steps(jnp.array(0.0), 2.0, 3)
      >>> state.item(), metrics["state"].tolist()
      (6.0, [0.0, 2.0, 4.0, 0.0])
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
    """Makes a whole training run as one function, to compile with `jax.jit` and vectorize with `jax.vmap`.

    It is `many_steps` with evaluations in between. A driver that saves or stops between blocks of steps
    compiles `steps_up_to` instead, one program for blocks of any length.

    A state contains the seed (`TrainState.key`), the meta-parameters and the optimizer state, so a vmap over
    states runs many seeds, initializations or, with `optax.inject_hyperparams`, learning rates.

    Args:
      step: Outer step, as `make_step` makes it.
      steps: Number of steps S, a positive int.
      every: Number of steps between evaluations, a divisor of `steps`; None evaluates after the last step.
      evaluate: Function `(meta, data) -> tree of numbers`; None evaluates nothing.

    Returns:
      `(state, data) -> (state, history)`; the run continues from the state's step.

    Raises:
      ValueError: If `every` does not divide `steps`.

    Example:
      >>> objective = lambda meta, key, task: ((meta - task) ** 2, {"loss": (meta - task) ** 2})
      >>> optimizer = optax.sgd(0.25)
      >>> sample = lambda data, key: data
      >>> step = metajax.make_step(metajax.backprop(objective), optimizer, sample, num_tasks=1)
      >>> run = make_run(step, steps=2, every=1, evaluate=lambda meta, data: data - meta)
      >>> state, history = run(metajax.init_state(jnp.array(1.0), optimizer, jax.random.key(0)), 5.0)
      >>> history.train["loss"].tolist(), history.evaluated.tolist()
      ([16.0, 4.0], [2.0, 1.0])
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
