"""Objectives: how well a learner does on one task, as a function of its meta-parameters."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import (
    AnyObjective,
    Array,
    Batch,
    Episode,
    Fast,
    Key,
    Learner,
    LossFn,
    Meta,
    Metrics,
    Objective,
    Scheduled,
    Switched,
)

QUERIES_BESIDE = 8  # support sets in memory at once, where each query has its own

MetricFn = Callable[[Array, Batch], Array]


def query_objective(
    learner: Learner,
    loss: LossFn,
    *,
    metrics: Mapping[str, MetricFn] | None = None,
    queries_at_once: int | None = None,
    beside_support: bool = False,
    penalty: Callable[[Meta, Fast], Array] | None = None,
) -> Objective:
    """Adapts on the support set and scores the query set, eq. 1 of MAML.

    Args:
      learner: what is trained.
      loss: the outer loss, on query outputs.
      metrics: named functions of query outputs and batch, reported beside `loss`.
      queries_at_once: at most how many queries are answered together; the others wait their turn in a scan
        that recomputes in the backward pass, so that memory is that of one chunk, and of all outputs: loss
        and metrics see the whole query set, and need be no means. Values and gradients are the same but for
        rounding, if the learner's answer to a query does not depend on the other queries: under group norm,
        layer norm or none, but not under batch norm. None answers all at once.
      beside_support: answers each query by itself, in one batch with the support set: under batch norm the
        way to an answer that does not depend on the other queries (Nichol et al., 2018, section 6.1).
      penalty: (meta, fast) -> what is added to the outer loss, fast being that after adapting; reported as
        `penalty`, and `loss` without it.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`, both of scalars; `metrics` holds `loss` too. The key is
      consumed.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400).
    """
    if queries_at_once is not None and queries_at_once < 1:
        raise ValueError(f"queries_at_once is {queries_at_once}; use 1 or more, or None for all.")
    named = {**(metrics or {}), "loss": loss}

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        fast = adapted(learner, meta, key, episode)
        one = answering_beside(learner, episode.support) if beside_support else learner
        values = score(one, named, meta, fast, episode.query, queries_at_once=queries_at_once)
        if penalty is None:
            return values["loss"], values
        values = {**values, "penalty": penalty(meta, fast)}
        return values["loss"] + values["penalty"], values

    return objective


def multi_step_objective(
    learner: Learner,
    loss: LossFn,
    *,
    weights: Callable[[Array], Array],
    metrics: Mapping[str, MetricFn] | None = None,
    queries_at_once: int | None = None,
    recompute: bool = False,
) -> Scheduled:
    """Adapts on the support set again and again, and scores the query set after every call of `adapt`.

    The outer loss is the weighted sum of the losses after each call, eq. 3 of MAML++. Any learner will do;
    that of the paper takes one inner step a call.

    Args:
      learner: what is trained.
      loss: the outer loss, on query outputs.
      weights: outer steps taken so far, a scalar -> the weight of each call's loss, [calls].
      metrics: as in `query_objective`; they and `loss` are reported as they are after the last call.
      queries_at_once: as in `query_objective`.
      recompute: keeps of each call its fast state alone for the backward pass, and computes the rest again;
        without it, every call's intermediate results are kept, whatever the learner's adjoint.

    Returns:
      A schedule of `(meta, key, episode) -> (loss, metrics)`; the key is consumed.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    named = {**(metrics or {}), "loss": loss}

    def at(step: Array) -> Objective:
        now = weights(step)

        def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
            start_key, adapt_key = jax.random.split(key)

            def call(fast, adapt_key):
                fast = learner.adapt(meta, fast, adapt_key, episode.support)
                values = score(
                    learner, named, meta, fast, episode.query, queries_at_once=queries_at_once
                )
                return fast, values

            if recompute:
                call = jax.checkpoint(call, prevent_cse=False)
            fast = learner.start(meta, start_key, episode.support)
            keys = jax.random.split(adapt_key, now.shape[0])
            _, values = jax.lax.scan(call, fast, keys)
            return jnp.sum(now * values["loss"]), jax.tree.map(lambda of: of[-1], values)

        return objective

    return Scheduled(at)


def annealed_weights(calls: int, *, over: int, least: float = 0.03) -> Callable[[Array], Array]:
    """Weights for `multi_step_objective` that begin equal and move to the last call in a straight line.

    Args:
      calls: of `adapt`.
      over: outer steps until the others have no weight but the least.
      least: what the others keep at the end, over `calls`; 0.03 in MAML++'s code.

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


def switch_at(boundary: int, before: AnyObjective, after: AnyObjective) -> Switched:
    """Trains on one objective for some outer steps, and then on another; only the current one is computed.

    The order of derivatives is annealed by two objectives of the same learner, the first with the adjoint
    `first_order`; the loss after every step is no longer computed once all weight is on the last one.

    Args:
      boundary: how many outer steps to take on `before`.
      before: the first objective, which may itself be scheduled or switched.
      after: the second, likewise, of the same meta-parameters and metrics.

    Returns:
      What `backprop` and `evolution` take for an objective. Under a `vmap` over steps both are computed.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 4.
    """
    if boundary < 0:
        raise ValueError(f"boundary is {boundary}; use 0 or more outer steps.")
    return Switched(boundary, before, after)


def at_step(objective: AnyObjective, step: Array | None) -> Objective:
    """The objective of an outer step; ValueError if it depends on the step and that is None."""
    if not isinstance(objective, Scheduled | Switched):
        return objective
    require_step(step)
    if isinstance(objective, Scheduled):
        return objective.at(step)
    before, after = (at_step(one, step) for one in (objective.before, objective.after))
    return functools.partial(jax.lax.cond, step < objective.boundary, before, after)


def require_step(step: Array | None) -> None:
    """Raises ValueError where the outer step is None."""
    if step is None:
        raise ValueError(
            "The objective is scheduled, it depends on the outer step; call the meta-gradient with step, the "
            "number of outer steps taken so far."
        )


def query_outputs(
    learner: Learner, meta: Meta, key: Key, episode: Episode, *, beside_support: bool = False
) -> Array:
    """Answers the query set [B, ...] after adapting to the support set; the key is consumed."""
    fast = adapted(learner, meta, key, episode)
    one = answering_beside(learner, episode.support) if beside_support else learner
    return one.predict(meta, fast, episode.query.inputs)


def answering_beside(learner: Learner, support: Batch) -> Learner:
    """The same learner, but it answers each query alone in a batch with the support set."""

    def predict(meta: Meta, fast: Fast, inputs: Array) -> Array:
        def answer(query):
            return learner.predict(meta, fast, trees.append(support.inputs, query))[-1]

        return jax.lax.map(answer, inputs, batch_size=QUERIES_BESIDE)

    return learner._replace(predict=predict)


def adapted(learner: Learner, meta: Meta, key: Key, episode: Episode) -> Fast:
    """Starts the task and adapts to its support set; the key is consumed."""
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key, episode.support)
    return learner.adapt(meta, fast, adapt_key, episode.support)


def score(
    learner: Learner,
    named: Mapping[str, MetricFn],
    meta: Meta,
    fast: Fast,
    batch: Batch,
    *,
    queries_at_once: int | None = None,
) -> Metrics:
    """Answers a batch and measures the answers, the batch as a whole or as in `query_objective`."""
    outputs = _answers(learner, meta, fast, batch.inputs, queries_at_once)
    return {name: metric(outputs, batch) for name, metric in named.items()}


def _answers(
    learner: Learner, meta: Meta, fast: Fast, inputs: Array, queries_at_once: int | None
) -> Array:
    """Answers for inputs [B, ...], in chunks of one size if there are more than `queries_at_once`."""
    queries = trees.count(inputs)
    if queries_at_once is None or queries <= queries_at_once:
        return learner.predict(meta, fast, inputs)
    num_chunks = -(-queries // queries_at_once)
    size = -(-queries // num_chunks)

    def split(leaf):
        # The padding repeats a true example, on which outputs and derivatives are as finite as elsewhere.
        padding = ((0, num_chunks * size - queries), *[(0, 0)] * (leaf.ndim - 1))
        return jnp.pad(leaf, padding, mode="edge").reshape(num_chunks, size, *leaf.shape[1:])

    # Nothing inside a chunk is kept for the backward pass; the scan would keep it for all of them.
    predict = jax.checkpoint(learner.predict)
    chunks = jax.tree.map(split, inputs)
    outputs = jax.lax.map(lambda chunk: predict(meta, fast, chunk), chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:queries], outputs)
