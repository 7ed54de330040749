"""Adapting to a task several times, with an outer loss after every call (the multi-step loss of MAML++)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import Array, Fast, Key, Learner, LossFn, Meta, Metrics, Objective, Task


def multi_step_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    weights: Array,
    evidence: TaskEvidence = EPISODE,
    recompute: bool = False,
) -> Objective:
    """Adapts repeatedly and scores query evidence after every call of `adapt`.

    The outer loss is sum_i v_i L_i, the weighted sum of the losses after each call. Any learner will do; the
    paper's takes one inner step per call. Every call asks for its own evidence.

    Args:
      learner: Learner to train.
      scoring: Scoring or loss, as in `query_objective`; metrics and losses are reported after the last call.
      weights: Float weights [calls] of the losses. `annealed_weights` computes them for an outer step, and
        `metagrads.scheduled` makes a meta-gradient with the weights of its step.
      evidence: Source of examples, as in `query_objective`; the learner starts with room for the support
        examples of all calls.
      recompute: Whether the backward pass keeps only the fast state of each call and recomputes the rest. If
        False, the intermediate results of every call are kept, whatever the learner's adjoint.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the key is consumed.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> task = toy_episode(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> last = jnp.array([0.0, 0.0, 1.0])  # only the loss after three steps
      >>> objective = multi_step_objective(learner, metajax.cross_entropy, weights=last)
      >>> loss, metrics = objective(meta, jax.random.key(2), task)
      >>> (loss == metrics["loss"]).item()
      True

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4, eq. 3.
    """
    chex.assert_rank(weights, 1)
    scoring, calls = as_scoring(scoring), len(weights)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, adapt_key = jax.random.split(key)

        def call(fast: Fast, key: Key) -> tuple[Fast, Metrics]:
            batch = evidence.to_adapt(meta, fast, key, task)
            fast = learner.adapt(meta, fast, key, batch)
            batch = evidence.to_score(meta, fast, key, task)
            return fast, scoring.score(learner, meta, fast, batch)

        if recompute:
            # Inside a scan nothing is merged with the backward pass, so `prevent_cse` would only cost time.
            call = jax.checkpoint(call, prevent_cse=False)
        fast = learner.start(meta, start_key, evidence.room(task, calls=calls))
        _, values = jax.lax.scan(call, fast, jax.random.split(adapt_key, calls))
        loss = jnp.sum(weights * scoring.total(values))
        return loss, jax.tree.map(lambda of_calls: of_calls[-1], values)

    return objective


def annealed_weights(calls: int, *, over: int, least: float = 0.03) -> Callable[[Array], Array]:
    """Makes loss weights that start equal and move linearly to the last call, for `multi_step_objective`.

    At outer step t every call but the last weighs max(1 - t / over, least) / calls, and the last the rest.

    Args:
      calls: Number of `adapt` calls, a positive int.
      over: Number of outer steps until the other calls reach their least weight, a positive int.
      least: Sum of the final weights of as many as `calls` other calls; 0.03 in the code of MAML++.

    Returns:
      Function from an outer step to float weights [calls], which sum to one.

    Raises:
      ValueError: If `calls` or `over` is below 1.

    Example:
      >>> weights = annealed_weights(4, over=100)
      >>> weights(0).tolist(), weights(50).tolist()
      ([0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625])

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    if calls < 1 or over < 1:
        raise ValueError(f"calls is {calls} and over is {over}; use 1 or more of both.")

    def weights(step: Array) -> Array:
        each = jnp.maximum(1 - step / over, least) / calls
        others = jnp.full(calls - 1, each)
        return jnp.append(others, 1 - (calls - 1) * each)

    return weights
