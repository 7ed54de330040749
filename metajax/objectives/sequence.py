"""Online learning: every example of a task is predicted before its label is read."""

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
    """Presents support examples one at a time, in random order, and scores each before its label is read.

    Each example is first predicted and then adapted to with its label. The outer loss is the mean over all
    predictions, including the first of each class, which can only be a guess. Query evidence is not used.

    Args:
      learner: Learner to train. A learner that gives classes without examples the logit
        `learners.states.ABSENT` has a loss of that size, 1e9, at the first example of each class.
      scoring: Scoring or loss, as in `query_objective`; loss and metrics see one output [1, ...] and its
        batch of one. A metric `name` is reported as `name_at_k`, its mean over the examples that are the
        k-th of their class (examples with equal targets), for k from 1 to `presentations`; and as `name`,
        which equals `name_at_2`.
      presentations: Number of examples K per class, an int of 2 or more: the episode's shots.
      evidence: Source of examples, as in `query_objective`; support is requested once, before the first
        example is presented.
      encode: Function `(meta, inputs [B, ...]) -> features [B, ...]` that encodes each input independently,
        for a learner whose inputs are features. All inputs are then encoded together at the start, instead of
        each by itself when it is predicted and again when its label is read. None passes the inputs on.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; the key is consumed.

    Raises:
      ValueError: If `presentations` is below 2, or (when called) the support examples have weights.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> reader = metajax.learners.gru_model(8)
      >>> learner = metajax.recurrent_learner(toy_model(None), reader, ways=3)
      >>> task = toy_episode(jax.random.key(0), shots=2)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> scoring = metajax.Scoring(metajax.cross_entropy, {"accuracy": metajax.accuracy})
      >>> objective = sequence_objective(learner, scoring, presentations=2)
      >>> sorted(jax.eval_shape(objective, meta, jax.random.key(2), task)[1])
      ['accuracy', 'accuracy_at_1', 'accuracy_at_2', 'loss']

    Reference: Santoro et al., 2016 (https://arxiv.org/abs/1605.06065), section 2, figure 1.
    """
    if presentations < 2:
        raise ValueError(f"presentations is {presentations}; use 2 or more.")
    scoring = as_scoring(scoring)

    def encoded(meta: Meta, batch: Batch) -> Batch:
        return batch._replace(inputs=encode(meta, batch.inputs)) if encode else batch

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        start_key, order_key, adapt_key = jax.random.split(key, 3)
        room = evidence.room(task)
        fast = learner.start(
            meta, start_key, None if room is None else jax.eval_shape(encoded, meta, room)
        )
        batch = evidence.to_adapt(meta, fast, key, task)
        if batch.weights is not None:
            raise ValueError(
                "The support set has weights, and a sequence has no padding; draw tasks of one size."
            )
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
        found = {"loss": jnp.mean(values["loss"])}
        for name, of_each in values.items():
            if name != "loss":
                for k in range(presentations):
                    found[f"{name}_at_{k + 1}"] = _mean_where(earlier == k, of_each)
                found[name] = found[f"{name}_at_2"]
        found = scoring.penalize(found, meta, fast)
        return scoring.total(found), found

    return objective


def _earlier(targets: Tree, count: int) -> Array:
    """Counts, for each of `count` examples, the earlier examples with the same targets; int [B]."""
    same = jnp.tri(count, k=-1, dtype=bool)
    for leaf in jax.tree.leaves(targets):
        rows = leaf.reshape(count, -1)
        same &= jnp.all(rows[:, None] == rows, axis=-1)
    return jnp.sum(same, axis=1)


def _mean_where(chosen: Array, values: Tree) -> Tree:
    """Averages arrays [B, ...] over the chosen examples, bool [B]."""

    def mean(of_each: Array) -> Array:
        where = chosen.reshape(-1, *[1] * (of_each.ndim - 1))
        return jnp.sum(of_each * where, axis=0) / jnp.sum(chosen)

    return jax.tree.map(mean, values)
