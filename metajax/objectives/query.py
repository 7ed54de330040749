"""Adapting to a task once, and scoring its query evidence."""

import jax

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
    """Adapts a learner to support evidence and scores its predictions for query evidence.

    It is the loss in eq. 1 of MAML. Derivatives flow through both kinds of evidence.

    Args:
      learner: Learner to train or test.
      scoring: Outer loss, metrics, penalty and chunk size; or the loss alone.
      evidence: Source of a task's examples; by default the support set and the query set of an `Episode`.

    Returns:
      `(meta, key, task) -> (loss, metrics)`; `metrics` contains `loss`. The key is consumed.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> task = toy_episode(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> loss, metrics = query_objective(learner, metajax.cross_entropy)(meta, jax.random.key(2), task)
      >>> (loss == metrics["loss"]).item()
      True

    Reference: Finn et al., 2017 (https://arxiv.org/abs/1703.03400), eq. 1.
    """
    scoring = as_scoring(scoring)

    def objective(meta: Meta, key: Key, task: Task) -> tuple[Array, Metrics]:
        fast = adapt_to_task(learner, meta, key, task, evidence=evidence)
        batch = evidence.to_score(meta, fast, key, task)
        values = scoring.score(learner, meta, fast, batch)
        return scoring.total(values), values

    return objective


def query_outputs(
    learner: Learner,
    meta: Meta,
    key: Key,
    task: Task,
    *,
    evidence: TaskEvidence = EPISODE,
) -> Tree:
    """Predicts the query examples of a task after adapting, as `query_objective` does.

    Args:
      learner: Learner.
      meta: Meta-parameters.
      key: Random key; consumed.
      task: Task, such as an `Episode`.
      evidence: Source of the task's examples, as in `query_objective`.

    Returns:
      Outputs of the learner for the query inputs, such as logits [B, N].

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=3)
      >>> task = toy_episode(jax.random.key(0), queries=4)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> query_outputs(learner, meta, jax.random.key(2), task).shape
      (12, 3)
    """
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
    """Starts a task and adapts to its support evidence, as `query_objective` does.

    Args:
      learner: Learner.
      meta: Meta-parameters.
      key: Random key; consumed.
      task: Task, such as an `Episode`.
      evidence: Source of the task's examples, as in `query_objective`.

    Returns:
      Adapted fast state, ready for `learner.predict`.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1))
      >>> task = toy_episode(jax.random.key(0))
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> fast = adapt_to_task(learner, meta, jax.random.key(2), task)
      >>> learner.predict(meta, fast, jnp.zeros((5, 2))).shape
      (5, 3)
    """
    start_key, adapt_key = jax.random.split(key)
    fast = learner.start(meta, start_key, evidence.room(task))
    batch = evidence.to_adapt(meta, fast, key, task)
    return learner.adapt(meta, fast, adapt_key, batch)
