"""Learning online: every example of a task is answered before its label is read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import (
    Array,
    Batch,
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


def sequence_objective(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    presentations: int,
    evidence: TaskEvidence = EPISODE,
    encode: Callable[[Meta, Tree], Tree] | None = None,
) -> Objective:
    """Presents support evidence one example after another, in an order drawn by the key; queries stay unused.

    Each example is first answered, and then adapted to with its label. The outer loss is the mean over all
    answers, that to the first example of a class among them, which can only be guessed.

    Args:
      learner: The learner that is trained. One that gives classes without examples the logit
        `learners.support.ABSENT` has a loss of that size, 1e9, at the first example of each class.
      scoring: As in `query_objective`; loss and metrics are of one answer [1, ...] and its batch of one. A
        metric `name_at_k` is the mean over those examples that are the k-th of their class, those of equal
        targets, for k from 1 to `presentations`; and `name` is `name_at_2`.
      presentations: K, how often each class comes: the episode's shots.
      evidence: As in `query_objective`; support is asked for once, before the first example is presented.
      encode: (meta, inputs [n, ...]) -> features [n, ...] of each input by itself, for a learner that takes
        features where others take inputs. All are encoded together then, before the first is presented, and
        not each by itself when it is answered and again when its label is read.

    Returns:
      `(meta, key, task) -> (loss, metrics)`. The key is consumed.

    Reference: Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), section 2, figure 1.
    """
    if presentations < 2:
        raise ValueError(f"presentations is {presentations}; use 2 or more.")
    scoring = as_scoring(scoring)

    def encoded(meta: Meta, batch: Batch | None) -> Batch | None:
        if encode is None or batch is None:
            return batch
        return batch._replace(inputs=encode(meta, batch.inputs))

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, order_key, adapt_key = jax.random.split(key, 3)
        fast = learner.start(meta, start_key, jax.eval_shape(encoded, meta, evidence.room(task)))
        batch = evidence.to_adapt(meta, fast, key, task)
        if batch.weights is not None:
            raise ValueError("The support set has weights; draw tasks of one size for a sequence.")
        count = trees.count(batch.inputs)
        order = jax.random.permutation(order_key, count)
        batch = encoded(meta, trees.take(batch, order))

        def step(fast: Fast, presented: tuple[Batch, Key]) -> tuple[Fast, Metrics]:
            one, key = presented
            one = jax.tree.map(lambda leaf: leaf[None], one)
            values = scoring.measure(learner.predict(meta, fast, one.inputs), one)
            return learner.adapt(meta, fast, key, one), values

        fast, values = jax.lax.scan(step, fast, (batch, jax.random.split(adapt_key, count)))
        earlier = _earlier(batch.targets, count)
        found = {"loss": jnp.mean(values.pop("loss"))}
        for name, of_each in values.items():
            for k in range(presentations):
                found[f"{name}_at_{k + 1}"] = _mean_where(earlier == k, of_each)
            found[name] = found[f"{name}_at_2"]
        found = scoring.penalise(found, meta, fast)
        return scoring.total(found), found

    return objective


def _earlier(targets: Tree, count: int) -> Array:
    """Counts for each example [n] the examples before it that have the same targets."""
    same = jnp.tri(count, k=-1, dtype=bool)
    for leaf in jax.tree.leaves(targets):
        rows = leaf.reshape(count, -1)
        same &= jnp.all(rows[:, None] == rows, axis=-1)
    return jnp.sum(same, axis=1)


def _mean_where(chosen: Array, values: Tree) -> Tree:
    """Averages arrays [n, ...] over the chosen examples [n]."""

    def mean(of_each: Array) -> Array:
        where = chosen.reshape(-1, *[1] * (of_each.ndim - 1))
        return jnp.sum(of_each * where, axis=0) / jnp.sum(chosen)

    return jax.tree.map(mean, values)
