"""Meta-gradients: from an objective on one task to the direction that improves many."""

import jax
import jax.numpy as jnp

from metajax.types import Episode, Key, Meta, MetaGrad, Metrics, Objective
from metajax.varying import zeros_alike


def backprop(objective: Objective, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Differentiates the mean objective over tasks, through whatever adaptation the objective holds.

    Args:
      objective: scores one task; traced once for each shape of its arguments, as under `jax.jit`.
      tasks_at_once: how many tasks are vectorised together; the others wait their turn in a scan that
        accumulates the gradient, so that memory is that of one group. None takes all at once.

    Returns:
      `(meta, keys [T], episodes [T, ...]) -> (grads, metrics)`: the gradient of the mean objective, shaped
      like `meta`, and the mean metrics. It raises ValueError where `tasks_at_once` does not divide T.
    """
    if tasks_at_once is not None and tasks_at_once < 1:
        raise ValueError(f"tasks_at_once is {tasks_at_once}; use 1 or more, or None for all.")

    # The gradient of a mean of vectorised tasks, and not a vectorised gradient: XLA can then sum over tasks
    # inside its kernels, and never holds one gradient a task.
    def mean_objective(meta, keys, episodes):
        losses, metrics = jax.vmap(objective, (None, 0, 0))(meta, keys, episodes)
        return jnp.mean(losses), jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

    # Without an axis for it, a single task is traced and compiled faster. Its metrics are made floats, like
    # any mean: booleans and bytes do not add up.
    def objective_of_one(meta, key, episode):
        loss, metrics = objective(meta, key, episode)
        return loss, jax.tree.map(lambda value: jnp.mean(jnp.asarray(value)[None], axis=0), metrics)

    # Under jit the shapes of the totals and the scan over groups share one trace, which takes seconds.
    grad_of_task, grad_of_group = (
        jax.jit(jax.grad(function, has_aux=True), inline=True)
        for function in (objective_of_one, mean_objective)
    )

    def meta_grad(meta: Meta, keys: Key, episodes: Episode) -> tuple[Meta, Metrics]:
        num_tasks = keys.shape[0]
        group = min(tasks_at_once or num_tasks, num_tasks)
        if num_tasks % group:
            raise ValueError(
                f"{num_tasks} tasks do not divide into groups of {group}; use a divisor."
            )
        num_groups, tasks = num_tasks // group, (keys, episodes)
        if group == 1:
            grad, groups = grad_of_task, tasks
        else:
            grad = grad_of_group
            groups = jax.tree.map(lambda x: x.reshape(num_groups, group, *x.shape[1:]), tasks)
        first = jax.tree.map(lambda x: x[0], groups)
        if num_groups == 1:
            return grad(meta, *first)

        def accumulate(totals, keys_and_episodes):
            one = grad(meta, *keys_and_episodes)
            return jax.tree.map(jnp.add, totals, one), None

        zeros = zeros_alike(jax.eval_shape(grad, meta, *first))
        totals, _ = jax.lax.scan(accumulate, zeros, groups)
        return jax.tree.map(lambda total: total / num_groups, totals)

    return meta_grad
