"""Meta-gradients: from what one task says to the direction that improves many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.manual_axes import zeros_alike
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    MetaGrad,
    Metrics,
    Objective,
    Params,
    Task,
    Tree,
)

# (meta, key, task) -> (grads, metrics), of one task or of a group with a leading axis of tasks.
EstimateFn = Callable[[Meta, Key, Task], tuple[Meta, Metrics]]


def backprop(objective: Objective, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Differentiates the mean objective over tasks, through whatever adaptation the objective holds.

    Args:
      objective: Score of one task; traced once for each shape of its arguments, as under `jax.jit`.
      tasks_at_once: Number of tasks that are vectorised together; the others wait their turn in a scan that
        accumulates the gradient, so that memory is that of one group. None takes all at once.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`: the gradient of the mean objective, shaped
      like `meta`, and the mean metrics, whatever the step. It raises ValueError where `tasks_at_once` does
      not divide T.
    """

    def objective_of_one(meta, key, task):
        loss, metrics = objective(meta, key, task)
        return loss, means(metrics, axis=())

    # The gradient of a mean of vectorised tasks, and not a vectorised gradient: XLA can then sum over tasks
    # inside its kernels, and never holds one gradient a task.
    def mean_objective(meta, keys, tasks):
        losses, metrics = jax.vmap(objective, (None, 0, 0))(meta, keys, tasks)
        return jnp.mean(losses), means(metrics, axis=0)

    return _in_groups(
        jax.grad(objective_of_one, has_aux=True),
        jax.grad(mean_objective, has_aux=True),
        tasks_at_once=tasks_at_once,
    )


def mean_over_tasks(estimate: EstimateFn, *, tasks_at_once: int | None = None) -> MetaGrad:
    """Averages over tasks what an estimator of the meta-gradient says of each.

    Args:
      estimate: (meta, key, task) -> (grads, metrics) of one task, without an axis of tasks.
      tasks_at_once: As in `backprop`.
    """

    def of_one(meta, key, task):
        grads, metrics = estimate(meta, key, task)
        return grads, means(metrics, axis=())

    def of_group(meta, keys, tasks):
        return means(jax.vmap(estimate, (None, 0, 0))(meta, keys, tasks), axis=0)

    return _in_groups(of_one, of_group, tasks_at_once=tasks_at_once)


def means(values: Tree, *, axis: int | tuple[int, ...]) -> Tree:
    """Averages every leaf over axes; over none, `()`, booleans and bytes become floats, like any mean."""
    return jax.tree.map(lambda value: jnp.mean(jnp.asarray(value), axis=axis), values)


def reptile(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    evidence: TaskEvidence = EPISODE,
    tasks_at_once: int | None = None,
) -> MetaGrad:
    """Moves the start towards where tasks take it: the direction is the mean of `start - adapted`.

    An outer step of plain gradient descent of size e is the paper's theta + e (adapted - theta), over one
    task (serial) or the mean of many (batched). The direction is pulled back through `learner.start`, so that
    it serves any learner with parameters that move (`Learner.adapted`). Nothing but what they start from gets
    a gradient: not learned step sizes, not leaves that do not adapt (the body of ANIL), and nothing at all
    where tasks start from a constant (CAVIA). Nothing is differentiated through the inner steps.

    Args:
      learner: The learner that is trained; it adapts to the support evidence.
      scoring: As in `query_objective`; reported of the query evidence, from which nothing is learned.
      evidence: As in `query_objective`.
      tasks_at_once: As in `backprop`.

    Returns:
      A meta-gradient, as of `backprop`. It raises ValueError for a learner without parameters that move.

    Reference: Nichol et al., 2018 (https://arxiv.org/abs/1803.02999), algorithms 1 and 2.
    """
    scoring = as_scoring(scoring)

    def of_task(meta, key, task):
        start_key, adapt_key = jax.random.split(key)

        def start(meta: Meta) -> tuple[Params, Fast]:
            fast = learner.start(meta, start_key, evidence.room(task))
            return learner.adapted(fast), fast

        begin, pull, fast = jax.vjp(start, meta, has_aux=True)
        if not jax.tree.leaves(begin):
            raise ValueError(
                "reptile moves the parameters that adapt, and this learner names none; give "
                "Learner.adapted, or use backprop."
            )
        batch = evidence.to_adapt(meta, fast, key, task)
        fast = learner.adapt(meta, fast, adapt_key, batch)
        (grads,) = pull(jax.tree.map(jnp.subtract, begin, learner.adapted(fast)))
        batch = evidence.to_score(meta, fast, key, task)
        return grads, scoring.score(learner, meta, fast, batch)

    return mean_over_tasks(of_task, tasks_at_once=tasks_at_once)


def switch_at(boundary: int, before: MetaGrad, after: MetaGrad) -> MetaGrad:
    """Uses one meta-gradient for some outer steps and another afterwards; only the current one is computed.

    The order of derivatives is annealed by two meta-gradients of the same learner, the first with the adjoint
    `first_order`; the loss after every step is no longer computed once all weight is on the last one.

    Args:
      boundary: Number of outer steps that are taken with `before`.
      before: The first meta-gradient, which may itself be switched or scheduled.
      after: The second, likewise, of the same meta-parameters and metrics.

    Returns:
      A meta-gradient that needs the step. Under a `vmap` over steps both are computed.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    if boundary < 0:
        raise ValueError(f"boundary is {boundary}; use 0 or more outer steps.")

    # A choice of gradients, and not the gradient of a choice, which would be slower: for the backward pass it
    # keeps what either objective would, zeros for the one not taken.
    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        step = _require(step)
        return jax.lax.cond(step < boundary, before, after, meta, keys, tasks, step)

    return meta_grad


def scheduled(at: Callable[[Array], MetaGrad]) -> MetaGrad:
    """Makes the meta-gradient of each outer step anew, such as that of an objective with annealed weights.

    Args:
      at: Number of outer steps taken so far, a scalar -> the meta-gradient of this step.

    Returns:
      A meta-gradient that needs the step.
    """

    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        step = _require(step)
        return at(step)(meta, keys, tasks, step)

    return meta_grad


def _require(step: Array | None) -> Array:
    if step is None:
        raise ValueError(
            "The meta-gradient depends on the outer step; call it with step, the number of outer steps taken "
            "so far."
        )
    return step


def _in_groups(of_one: EstimateFn, of_group: EstimateFn, *, tasks_at_once: int | None) -> MetaGrad:
    if tasks_at_once is not None and tasks_at_once < 1:
        raise ValueError(f"tasks_at_once is {tasks_at_once}; use 1 or more, or None for all.")
    # Under jit the shapes of the totals and the scan over groups share one trace, which takes seconds.
    of_one, of_group = (jax.jit(function, inline=True) for function in (of_one, of_group))

    def meta_grad(
        meta: Meta, keys: Key, tasks: Task, step: Array | None = None
    ) -> tuple[Meta, Metrics]:
        del step
        num_tasks = keys.shape[0]
        group = min(tasks_at_once or num_tasks, num_tasks)
        if num_tasks % group:
            raise ValueError(
                f"{num_tasks} tasks do not divide into groups of {group}; use a divisor."
            )
        num_groups, groups = num_tasks // group, (keys, tasks)
        # Without an axis for it, a single task is traced and compiled faster.
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

    return meta_grad
