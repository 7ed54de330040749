"""Objectives: how well a learner does on one task, as a function of its meta-parameters.

They ask for the examples of a task: a `TaskEvidence` reads them from an `Episode`, which is the default, or
collects them with the fast state as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
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


def query_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    evidence: TaskEvidence = EPISODE,
) -> Objective:
    """Adapts to support evidence and scores query evidence, eq. 1 of MAML.

    Derivatives flow through both kinds of evidence.

    Args:
      learner: The learner that is trained.
      scoring: Outer loss, metrics, penalty and chunks; or the loss alone.
      evidence: Where a task's examples come from; the support and the query set of an `Episode` by default.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; `metrics` holds `loss` too. The key is consumed.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400).
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        fast = adapt_to_task(learner, meta, key, task, evidence=evidence)
        batch = evidence.to_score(meta, fast, key, task)
        values = scoring.score(learner, meta, fast, batch)
        return scoring.total(values), values

    return objective


def multi_step_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    weights: Array,
    evidence: TaskEvidence = EPISODE,
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
      evidence: As in `query_objective`; there is room for that of all calls.
      recompute: Whether only the fast state of each call is kept for the backward pass, and the rest computed
        again; otherwise every call's intermediate results are kept, whatever the learner's adjoint.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the key is consumed.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    scoring, calls = as_scoring(scoring), len(weights)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, adapt_key = jax.random.split(key)

        def call(fast: Fast, key: Key) -> tuple[Fast, Metrics]:
            batch = evidence.to_adapt(meta, fast, key, task)
            fast = learner.adapt(meta, fast, key, batch)
            batch = evidence.to_score(meta, fast, key, task)
            return fast, scoring.score(learner, meta, fast, batch)

        if recompute:
            call = jax.checkpoint(call, prevent_cse=False)
        fast = learner.start(meta, start_key, evidence.room(task, calls=calls))
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
    evidence: TaskEvidence = EPISODE,
) -> Tree:
    """Answers the query evidence [B, ...] of a task, adapted as by `query_objective`; the key is consumed."""
    fast = adapt_to_task(learner, meta, key, task, evidence=evidence)
    batch = evidence.to_score(meta, fast, key, task)
    return learner.predict(meta, fast, batch.inputs)


def adapt_to_task(
    learner: Learner,
    meta: Meta,
    key: Key,
    task: Task,
    *,
    evidence: TaskEvidence = EPISODE,
) -> Fast:
    """Starts a task and adapts to its support evidence, as `query_objective` does; the key is consumed."""
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key, evidence.room(task))
    batch = evidence.to_adapt(meta, fast, key, task)
    return learner.adapt(meta, fast, adapt_key, batch)
