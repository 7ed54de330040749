"""Means of per-task estimates over a batch of tasks, computed in groups of bounded memory."""

from collections.abc import Callable
from typing import Protocol

import chex
import jax
import jax.numpy as jnp

from metajax.manual_axes import zeros_alike
from metajax.types import Array, Key, Meta, Task, Tree

# (meta, key, task) -> (grads, metrics), of one task or of a group with a leading axis of tasks.
EstimateFn = Callable[[Meta, Key, Task], tuple[Meta, Tree]]


class MeanFn(Protocol):
    """Maps tasks to the means of their estimates; a `MetaGrad` if the metrics are a mapping."""

    def __call__(
        self, meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Tree]:
        """Averages the estimates of tasks [T, ...] with keys [T]; `step` is ignored."""
        ...


def mean_over_tasks(estimate: EstimateFn, *, tasks_at_once: int | None = None) -> MeanFn:
    """Averages the estimates of single tasks over a batch of tasks.

    Args:
      estimate: Function `(meta, key, task) -> (grads, metrics)` of one task, without a task axis.
      tasks_at_once: Number of tasks that are vectorized together, as in `backprop`.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`, the means over tasks.

    Example:
      >>> double = mean_over_tasks(lambda meta, key, task: (meta * task, {"loss": task}))
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> double(jnp.array(2.0), keys, jnp.array([1.0, 3.0]))[0].item()
      4.0
    """

    def of_one(meta, key, task):
        grads, metrics = estimate(meta, key, task)
        return grads, means(metrics, axis=())

    def of_group(meta, keys, tasks):
        return means(jax.vmap(estimate, (None, 0, 0))(meta, keys, tasks), axis=0)

    return in_groups(of_one, of_group, tasks_at_once=tasks_at_once)


def means(values: Tree, *, axis: int | tuple[int, ...]) -> Tree:
    """Averages every leaf over axes.

    Args:
      values: Tree of arrays or numbers.
      axis: Axes to average over; the empty tuple keeps all of them and only converts types: booleans and
        integers become floats, as in any mean.

    Returns:
      Tree of float arrays without those axes.
    """
    return jax.tree.map(lambda value: jnp.mean(jnp.asarray(value), axis=axis), values)


def in_groups(of_one: EstimateFn, of_group: EstimateFn, *, tasks_at_once: int | None) -> MeanFn:
    """Runs an estimator over a batch of tasks in groups and averages over the groups.

    Args:
      of_one: Estimator of one task, without a task axis.
      of_group: Estimator of several tasks [G, ...]: the means over them.
      tasks_at_once: Largest group G, a positive int; None takes all tasks at once.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`. It raises a ValueError if the group size
      does not divide T, and an AssertionError if a leaf of the tasks has no leading axis of T.

    Raises:
      ValueError: If `tasks_at_once` is below 1.
    """
    if tasks_at_once is not None and tasks_at_once < 1:
        raise ValueError(f"tasks_at_once is {tasks_at_once}; use 1 or more, or None for all.")
    # Under jit, the shapes of the totals and the scan over groups share one trace, which takes seconds.
    of_one, of_group = (jax.jit(function, inline=True) for function in (of_one, of_group))

    def mean(meta: Meta, keys: Key, tasks: Task, step: Array | None = None) -> tuple[Meta, Tree]:
        del step
        num_tasks = keys.shape[0]
        # One task is taken by its index below, where further tasks would be dropped silently.
        chex.assert_tree_shape_prefix(tasks, (num_tasks,))
        group = min(tasks_at_once or num_tasks, num_tasks)
        if num_tasks % group:
            raise ValueError(
                f"{num_tasks} tasks do not divide into groups of {group}; use a divisor."
            )
        num_groups, groups = num_tasks // group, (keys, tasks)
        # A single task without a task axis traces and compiles faster than a vmap over one.
        estimate = of_one if group == 1 else of_group
        if group > 1:
            groups = jax.tree.map(lambda x: x.reshape(num_groups, group, *x.shape[1:]), groups)
        first = jax.tree.map(lambda x: x[0], groups)
        if num_groups == 1:
            return estimate(meta, *first)

        def accumulate(totals, keys_and_tasks):
            one = estimate(meta, *keys_and_tasks)
            return jax.tree.map(jnp.add, totals, one), None

        zeros = zeros_alike(jax.eval_shape(estimate, meta, *first))
        totals, _ = jax.lax.scan(accumulate, zeros, groups)
        return jax.tree.map(lambda total: total / num_groups, totals)

    return mean
