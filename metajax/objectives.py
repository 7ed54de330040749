"""Objectives: how well a learner does on one task, as a function of its meta-parameters."""

from collections.abc import Callable, Mapping

import jax

from metajax.types import Array, Batch, Episode, Key, Learner, LossFn, Meta, Metrics, Objective

MetricFn = Callable[[Array, Batch], Array]


def query_objective(
    learner: Learner, loss: LossFn, *, metrics: Mapping[str, MetricFn] | None = None
) -> Objective:
    """Adapts on the support set and scores the query set, eq. 1 of MAML.

    Args:
      learner: what is trained.
      loss: the outer loss, on query outputs.
      metrics: named functions of query outputs and batch, reported beside `loss`.

    Returns:
      `(meta, key, episode) -> (loss, metrics)`, both of scalars; `metrics` holds `loss` too. The key is
      consumed.

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400).
    """
    metrics = dict(metrics or {})

    def objective(meta: Meta, key: Key, episode: Episode) -> tuple[Array, Metrics]:
        outputs = query_outputs(learner, meta, key, episode)
        value = loss(outputs, episode.query)
        return value, {
            "loss": value,
            **{name: metric(outputs, episode.query) for name, metric in metrics.items()},
        }

    return objective


def query_outputs(learner: Learner, meta: Meta, key: Key, episode: Episode) -> Array:
    """Answers the query set [B, ...] after adapting to the support set; the key is consumed."""
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key)
    fast = learner.adapt(meta, fast, adapt_key, episode.support)
    return learner.predict(meta, fast, episode.query.inputs)
