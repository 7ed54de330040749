"""Reptile: the displacement of the adapted parameters as a meta-gradient, without differentiation."""

import jax
import jax.numpy as jnp

from metajax.metagrads.averaging import mean_over_tasks
from metajax.objectives.evidence import EPISODE, TaskEvidence
from metajax.objectives.scoring import Scoring, as_scoring
from metajax.types import Fast, Learner, LossFn, Meta, MetaGrad, Params


def reptile(
    learner: Learner,
    scoring: Scoring | LossFn,
    *,
    evidence: TaskEvidence = EPISODE,
    tasks_at_once: int | None = None,
) -> MetaGrad:
    """Averages `start - adapted` over tasks: a descent step moves the start towards the adapted parameters.

    A step of plain gradient descent with step size e is the paper's theta + e (adapted - theta), for one task
    (serial) or the mean over many (batched). The displacement is pulled back through `learner.start`, so any
    learner with adapted parameters (`Learner.adapted`) will do. Only what they start from gets a gradient:
    learned step sizes and leaves that do not adapt (the body of ANIL) get zeros, and so does everything if
    tasks start from a constant (CAVIA). The inner steps are not differentiated.

    Args:
      learner: Learner to train; it adapts to the support evidence.
      scoring: Scoring or loss of the query evidence, as in `query_objective`; reported, but not learned from.
      evidence: Source of the support and query examples, as in `query_objective`.
      tasks_at_once: Number of tasks that are vectorized together, as in `backprop`.

    Returns:
      `(meta, keys [T], tasks [T, ...], step) -> (grads, metrics)`, like `backprop`.

    Raises:
      ValueError: If the learner has no adapted parameters (when called), or `tasks_at_once` is below 1.

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.maml(toy_model(3), metajax.cross_entropy, rule=optax.sgd(0.1), steps=5)
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> tasks = jax.vmap(toy_episode)(keys)
      >>> meta = learner.init(jax.random.key(1), tasks.support.inputs[0])
      >>> grads, metrics = jax.eval_shape(reptile(learner, metajax.cross_entropy), meta, keys, tasks)
      >>> grads.params["head"]["kernel"].shape
      (8, 3)

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
        # The vector-Jacobian product of `start`, which is the identity for learners that start from `meta`.
        (grads,) = pull(jax.tree.map(jnp.subtract, begin, learner.adapted(fast)))
        batch = evidence.to_score(meta, fast, key, task)
        return grads, scoring.score(learner, meta, fast, batch)

    return mean_over_tasks(of_task, tasks_at_once=tasks_at_once)
