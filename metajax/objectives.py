"""Objectives: how well a learner does on one task, as a function of its meta-parameters."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metajax.types import (
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
)
from metajax.varying import zeros_alike

MetricFn = Callable[[Array, Batch], Array]
ScoreFn = Callable[[Meta, Fast, Batch], Metrics]


def query_objective(
    learner: Learner,
    loss: LossFn,
    *,
    metrics: Mapping[str, MetricFn] | None = None,
    queries_at_once: int | None = None,
) -> Objective:
    """Adapts on the support set and scores the query set, eq. 1 of MAML.

    Args:
      learner: what is trained.
      loss: the outer loss, on query outputs.
      metrics: named functions of query outputs and batch, reported beside `loss`; like it, weighted means
        over examples.
      queries_at_once: at most how many queries are answered together; the others wait their turn in a scan
        that recomputes in the backward pass, so that memory is that of one chunk. Values and gradients
        are the same but for rounding, if the learner's answer to a query does not depend on the other
        queries: under group norm, layer norm or none, but not under batch norm. None answers all at once.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`, both of scalars; `metrics` holds `loss` too. The key is
      consumed.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400).
    """
    if queries_at_once is not None and queries_at_once < 1:
        raise ValueError(f"queries_at_once is {queries_at_once}; use 1 or more, or None for all.")
    named = {**(metrics or {}), "loss": loss}

    def score(meta: Meta, fast: Fast, batch: Batch) -> Metrics:
        outputs = learner.predict(meta, fast, batch.inputs)
        return {name: metric(outputs, batch) for name, metric in named.items()}

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        fast = _adapted(learner, meta, key, episode)
        queries = episode.query.inputs.shape[0]
        if queries_at_once is None or queries <= queries_at_once:
            values = score(meta, fast, episode.query)
        else:
            num_chunks = -(-queries // queries_at_once)
            values = _score_chunks(score, meta, fast, episode.query, num_chunks)
        return values["loss"], values

    return objective


def query_outputs(learner: Learner, meta: Meta, key: Key, episode: Episode) -> Array:
    """Answers the query set [B, ...] after adapting to the support set; the key is consumed."""
    return learner.predict(meta, _adapted(learner, meta, key, episode), episode.query.inputs)


def _adapted(learner: Learner, meta: Meta, key: Key, episode: Episode) -> Fast:
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key)
    return learner.adapt(meta, fast, adapt_key, episode.support)


def _score_chunks(score: ScoreFn, meta: Meta, fast: Fast, batch: Batch, num_chunks: int) -> Metrics:
    """Scores a batch in chunks of one size: the mean of their scores by the weights they hold."""

    # Nothing inside a chunk is kept for the backward pass; the scan would keep it for all of them.
    @jax.checkpoint
    def weighted(meta, fast, chunk):
        total = jnp.sum(chunk.weights)
        # A chunk that weighs nothing would be 0 / 0, in its gradient too.
        weights = jnp.where(total > 0, chunk.weights, jnp.ones_like(chunk.weights))
        values = score(meta, fast, chunk._replace(weights=weights))
        return total, jax.tree.map(lambda value: total * value, values)

    def accumulate(totals, chunk):
        return jax.tree.map(jnp.add, totals, weighted(meta, fast, chunk)), None

    chunks = _split(batch, num_chunks)
    first = jax.tree.map(lambda leaf: leaf[0], chunks)
    zeros = zeros_alike(jax.eval_shape(weighted, meta, fast, first))
    (total, sums), _ = jax.lax.scan(accumulate, zeros, chunks)
    return jax.tree.map(lambda value: value / total, sums)


def _split(batch: Batch, num_chunks: int) -> Batch:
    """Splits a batch [B] into [num_chunks, ceil(B / num_chunks)], the last padded by weight zero."""
    examples = batch.inputs.shape[0]
    size = -(-examples // num_chunks)
    padding = num_chunks * size - examples
    weights = batch.weights
    if weights is None:
        # At least float32: in bfloat16 a sum of ones stops at 256.
        weights = jnp.ones(examples, jnp.promote_types(batch.inputs.dtype, jnp.float32))

    def pad(leaf, mode):
        leaf = jnp.pad(leaf, ((0, padding), *[(0, 0)] * (leaf.ndim - 1)), mode=mode)
        return leaf.reshape(num_chunks, size, *leaf.shape[1:])

    # The padding repeats a true example, on which outputs and derivatives are as finite as elsewhere.
    return Batch(pad(batch.inputs, "edge"), pad(batch.targets, "edge"), pad(weights, "constant"))
