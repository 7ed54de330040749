"""Objectives: how well a learner does on one task, as a function of its meta-parameters.

They ask for the examples of a task: an evidence function `(meta, fast, key, task) -> Batch` may read them
from an `Episode`, which is the default, or collect them with the fast state as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Batch,
    Episode,
    Evidence,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    Metrics,
    Objective,
    Task,
    Tree,
)

# Folded into a task's key for its evidence; a small number would give a key of `split(key)` again.
SUPPORT, QUERY = 0x53555050, 0x51554552

LikeFn = Callable[[Task], Batch | None]


def episode_support(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    """Returns the support set of an episode, whatever the learner."""
    del meta, fast, key
    return task.support


def episode_query(meta: Meta, fast: Fast, key: Key, task: Episode) -> Batch:
    """Returns the query set of an episode, whatever the learner."""
    del meta, fast, key
    return task.query


def query_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    support: Evidence = episode_support,
    query: Evidence = episode_query,
    like: LikeFn | None = None,
) -> Objective:
    """Adapts to support evidence and scores query evidence, eq. 1 of MAML.

    Derivatives flow through both kinds of evidence.

    Args:
      learner: The learner that is trained.
      scoring: Outer loss, metrics, penalty and chunks; or the loss alone.
      support: Evidence to adapt to, `(meta, fast, key, task) -> Batch`, given the fast state that the task
        starts from.
      query: Evidence to be scored on, given the adapted fast state.
      like: task -> the examples of one call of `support`, or their `jax.ShapeDtypeStruct`s, for which
        `Learner.start` makes room. None is the support set of an episode, and no room for other evidence:
        learners that keep no examples need none.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; `metrics` holds `loss` too. The key is consumed.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400).
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        fast = adapt_to_task(learner, meta, key, task, support=support, like=like)
        batch = query(meta, fast, jax.random.fold_in(key, QUERY), task)
        values = scoring.score(learner, meta, fast, batch)
        return scoring.total(values), values

    return objective


def multi_step_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    weights: Array,
    support: Evidence = episode_support,
    query: Evidence = episode_query,
    like: LikeFn | None = None,
    recompute: bool = False,
) -> Objective:
    """Adapts again and again, and scores query evidence after every call of `adapt`.

    The outer loss is the weighted sum of the losses after each call, eq. 3 of MAML++. Any learner will do;
    that of the paper takes one inner step a call. Each call asks for evidence of its own.

    Args:
      learner: The learner that is trained.
      scoring: As in `query_objective`; metrics and losses are reported as they are after the last call.
      weights: Weight of each call's loss, [calls]. `annealed_weights` makes them for an outer step, and
        `metagrad.scheduled` a meta-gradient that takes those of its step.
      support: As in `query_objective`.
      query: As in `query_objective`.
      like: As in `query_objective`; there is room for the evidence of all calls.
      recompute: Whether only the fast state of each call is kept for the backward pass, and the rest computed
        again; otherwise every call's intermediate results are kept, whatever the learner's adjoint.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the key is consumed.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    scoring, calls = as_scoring(scoring), len(weights)
    room = room_for(support, like, calls=calls)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, adapt_key = jax.random.split(key)

        def call(fast: Fast, key: Key) -> tuple[Fast, Metrics]:
            batch = support(meta, fast, jax.random.fold_in(key, SUPPORT), task)
            fast = learner.adapt(meta, fast, key, batch)
            batch = query(meta, fast, jax.random.fold_in(key, QUERY), task)
            return fast, scoring.score(learner, meta, fast, batch)

        if recompute:
            call = jax.checkpoint(call, prevent_cse=False)
        fast = learner.start(meta, start_key, room(task))
        _, values = jax.lax.scan(call, fast, jax.random.split(adapt_key, calls))
        loss = jnp.sum(weights * scoring.total(values))
        return loss, jax.tree.map(lambda of_calls: of_calls[-1], values)

    return objective


def annealed_weights(calls: int, *, over: int, least: float = 0.03) -> Callable[[Array], Array]:
    """Makes weights for `multi_step_objective` that begin equal and move to the last call in a straight line.

    Args:
      calls: Number of calls of `adapt`.
      over: Outer steps until the others have no weight but the least.
      least: Sum of the weights that the others would keep at the end if there were as many as `calls`; 0.03
        in MAML++'s code.

    Returns:
      step -> weights [calls], which sum to one.
    """
    if calls < 1 or over < 1:
        raise ValueError(f"calls is {calls} and over is {over}; use 1 or more of both.")

    def weights(step: Array) -> Array:
        each = jnp.maximum(1 - step / over, least) / calls
        others = jnp.full(calls - 1, each)
        return jnp.append(others, 1 - (calls - 1) * each)

    return weights


def query_outputs(
    learner: Learner,
    meta: Meta,
    key: Key,
    task: Task,
    *,
    support: Evidence = episode_support,
    query: Evidence = episode_query,
    like: LikeFn | None = None,
) -> Tree:
    """Answers the query evidence [B, ...] of a task, adapted as by `query_objective`; the key is consumed."""
    fast = adapt_to_task(learner, meta, key, task, support=support, like=like)
    batch = query(meta, fast, jax.random.fold_in(key, QUERY), task)
    return learner.predict(meta, fast, batch.inputs)


def adapt_to_task(
    learner: Learner,
    meta: Meta,
    key: Key,
    task: Task,
    *,
    support: Evidence = episode_support,
    like: LikeFn | None = None,
) -> Fast:
    """Starts a task and adapts to its support evidence, as `query_objective` does; the key is consumed."""
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key, room_for(support, like)(task))
    batch = support(meta, fast, jax.random.fold_in(key, SUPPORT), task)
    return learner.adapt(meta, fast, adapt_key, batch)


def room_for(support: Evidence, like: LikeFn | None, *, calls: int = 1) -> LikeFn:
    """Makes the function of a task that returns what `Learner.start` takes as `like`.

    Args:
      support: The evidence that the learner will adapt to.
      like: As in `query_objective`.
      calls: Number of times that evidence is asked for.
    """

    def room(task: Task) -> Batch | None:
        if like is not None:
            return trees.repeated(like(task), calls)
        return trees.repeated(task.support, calls) if support is episode_support else None

    return room
