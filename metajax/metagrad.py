"""Meta-gradients: from what one task says to the direction that improves many."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax.objectives import MetricFn, at_step, require_step, score
from metajax.types import (
    AnyObjective,
    Array,
    Episode,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    MetaGrad,
    Metrics,
    Params,
    Switched,
)
from metajax.varying import zeros_alike

# (meta, key, episode, step) -> (grads, metrics), of one task or of a group with a leading axis of tasks.
EstimateFn = Callable[[Meta, Key, Episode, Array | None], tuple[Meta, Metrics]]


def backprop(objective: AnyObjective, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Differentiates the mean objective over tasks, through whatever adaptation the objective holds.

    Args:
      objective: scores one task; traced once for each shape of its arguments, as under `jax.jit`. It may
        depend on the outer step: `multi_step_objective`, `switch_at`.
      tasks_at_once: how many tasks are vectorised together; the others wait their turn in a scan that
        accumulates the gradient, so that memory is that of one group. None takes all at once.

    Returns:
      `(meta, keys [T], episodes [T, ...], step) -> (grads, metrics)`: the gradient of the mean objective,
      shaped like `meta`, and the mean metrics. Only a scheduled objective reads `step`, and asks for it. It
      raises ValueError where `tasks_at_once` does not divide T.
    """

    if isinstance(objective, Switched):
        both = (objective.before, objective.after)
        grads = (backprop(one, tasks_at_once=tasks_at_once) for one in both)
        return _switched(objective.boundary, *grads)

    def objective_of_one(meta, key, episode, step):
        loss, metrics = at_step(objective, step)(meta, key, episode)
        return loss, _means(metrics)

    # The gradient of a mean of vectorised tasks, and not a vectorised gradient: XLA can then sum over tasks
    # inside its kernels, and never holds one gradient a task.
    def mean_objective(meta, keys, episodes, step):
        tasks = jax.vmap(at_step(objective, step), (None, 0, 0))
        losses, metrics = tasks(meta, keys, episodes)
        return jnp.mean(losses), _means_over_tasks(metrics)

    return _in_groups(
        jax.grad(objective_of_one, has_aux=True),
        jax.grad(mean_objective, has_aux=True),
        tasks_at_once=tasks_at_once,
    )


def mean_over_tasks(estimate: EstimateFn, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Averages over tasks what an estimator of the meta-gradient says of each.

    Args:
      estimate: (meta, key, episode, step) -> (grads, metrics) of one task, without an axis of tasks.
      tasks_at_once: as in `backprop`.
    """

    def of_one(meta, key, episode, step):
        grads, metrics = estimate(meta, key, episode, step)
        return grads, _means(metrics)

    def of_group(meta, keys, episodes, step):
        many = jax.vmap(estimate, (None, 0, 0, None))
        return _means_over_tasks(many(meta, keys, episodes, step))

    return _in_groups(of_one, of_group, tasks_at_once=tasks_at_once)


def reptile(
    learner: Learner,
    loss: LossFn,
    *,
    metrics: Mapping[str, MetricFn] | None = None,
    queries_at_once: int | None = None,
    tasks_at_once: int | None = None,
) -> MetaGrad:
    """Moves the start towards where tasks take it: the direction is the mean of `start - adapted`.

    An outer step of plain gradient descent of size e is the paper's theta + e (adapted - theta), over one
    task (serial) or the mean of many (batched). The direction is pulled back through `learner.start`, so that
    it serves any learner with parameters that move (`Learner.adapted`). Nothing but what they start from gets
    a gradient: not learned step sizes, not leaves that do not adapt (the body of ANIL), and nothing at all
    where tasks start from a constant (CAVIA). Nothing is differentiated through the inner steps.

    Args:
      learner: what is trained; it adapts on the support set.
      loss: reported as the metric `loss`, on the query set, from which nothing is learned.
      metrics: named functions of query outputs and batch, reported too.
      queries_at_once: as in `query_objective`.
      tasks_at_once: as in `backprop`.

    Reference: Nichol et al., 2018 (https://arxiv.org/abs/1803.02999), algorithms 1 and 2.
    """
    named = {**(metrics or {}), "loss": loss}

    def of_task(meta, key, episode, step):
        del step
        start_key, adapt_key = jax.random.split(key)

        def start(meta: Meta) -> tuple[Params, Fast]:
            fast = learner.start(meta, start_key, episode.support)
            return learner.adapted(fast), fast

        begin, pull, fast = jax.vjp(start, meta, has_aux=True)
        fast = learner.adapt(meta, fast, adapt_key, episode.support)
        (grads,) = pull(jax.tree.map(jnp.subtract, begin, learner.adapted(fast)))
        values = score(learner, named, meta, fast, episode.query, queries_at_once=queries_at_once)
        return grads, values

    return mean_over_tasks(of_task, tasks_at_once=tasks_at_once)


def _switched(boundary: int, before: MetaGrad, after: MetaGrad) -> MetaGrad:
    """Takes one meta-gradient until an outer step, and the other from there on.

    The gradient of a choice would be slower than this choice of a gradient: for the backward pass it keeps
    what either objective would, zeros for the one not taken.
    """

    def meta_grad(
        meta: Meta, keys: Key, episodes: Episode, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        require_step(step)
        return jax.lax.cond(step < boundary, before, after, meta, keys, episodes, step)

    return meta_grad


def _in_groups(of_one: EstimateFn, of_group: EstimateFn, *, tasks_at_once: int | None) -> MetaGrad:
    if tasks_at_once is not None and tasks_at_once < 1:
        raise ValueError(f"tasks_at_once is {tasks_at_once}; use 1 or more, or None for all.")
    # Under jit the shapes of the totals and the scan over groups share one trace, which takes seconds.
    of_one, of_group = (jax.jit(function, inline=True) for function in (of_one, of_group))

    def meta_grad(
        meta: Meta, keys: Key, episodes: Episode, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        num_tasks = keys.shape[0]
        group = min(tasks_at_once or num_tasks, num_tasks)
        if num_tasks % group:
            raise ValueError(
                f"{num_tasks} tasks do not divide into groups of {group}; use a divisor."
            )
        num_groups, tasks = num_tasks // group, (keys, episodes)
        # Without an axis for it, a single task is traced and compiled faster.
        estimate = of_one if group == 1 else of_group
        if group == 1:
            groups = tasks
        else:
            groups = jax.tree.map(lambda x: x.reshape(num_groups, group, *x.shape[1:]), tasks)
        first = jax.tree.map(lambda x: x[0], groups)
        if num_groups == 1:
            return estimate(meta, *first, step)

        def accumulate(totals, keys_and_episodes):
            one = estimate(meta, *keys_and_episodes, step)
            return jax.tree.map(jnp.add, totals, one), None

        zeros = zeros_alike(jax.eval_shape(estimate, meta, *first, step))
        totals, _ = jax.lax.scan(accumulate, zeros, groups)
        return jax.tree.map(lambda total: total / num_groups, totals)

    return meta_grad


def _means(metrics: Metrics) -> Metrics:
    """Makes metrics of one task floats, like any mean: booleans and bytes do not add up."""
    return jax.tree.map(lambda value: jnp.mean(jnp.asarray(value)[None], axis=0), metrics)


def _means_over_tasks(values: Metrics) -> Metrics:
    return jax.tree.map(lambda value: jnp.mean(value, axis=0), values)
