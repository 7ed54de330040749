"""Influence of the support examples on an answer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.types import Array, Batch, Key, Learner, Meta, Tree

# (outputs [Q, ...]) -> scores [Q], such as the probability of each query's class.
ScoreFn = Callable[[Tree], Array]


def leave_one_out(
    learner: Learner, meta: Meta, key: Key, support: Batch, queries: Tree, score: ScoreFn
) -> Array:
    """Measures how much each support example adds to the score of each query, exactly.

    The learner adapts S + 1 times, to all examples and to all but one. An example is really left out: a
    weight of zero would leave it in the statistics of a network that normalizes by the batch.

    Args:
      learner: Learner to explain.
      meta: Meta-parameters.
      key: Random key of every adaptation.
      support: Support set of S examples, all of which count; S of 2 or more.
      queries: Inputs [Q, ...].
      score: Function from the outputs [Q, ...] to scores [Q], larger for what is to be explained.

    Returns:
      Scores with all examples, less the scores without example s, [Q, S].

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=3)
      >>> task = toy_episode(jax.random.key(0), ways=3, shots=2, queries=1)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> score = lambda outputs: jax.nn.log_softmax(outputs)[jnp.arange(3), task.query.targets]
      >>> leave_one_out(learner, meta, jax.random.key(2), task.support, task.query.inputs, score).shape
      (3, 6)

    Reference: Cook, 1977, "Detection of influential observation in linear regression".
    """
    others = _others(trees.count(support.inputs))

    def scores(batch: Batch) -> Array:
        fast = learner.adapt(meta, learner.start(meta, key, batch), key, batch)
        return score(learner.predict(meta, fast, queries))

    without = jax.lax.map(lambda rows: scores(trees.take(support, rows)), others)
    return scores(support)[:, None] - without.T


def left_out_outputs(learner: Learner, meta: Meta, key: Key, support: Batch) -> Tree:
    """Answers each support example as a query, after adapting to all the others.

    An example whose own label is improbable to the others probably has a wrong label.

    Args:
      learner: Learner to explain.
      meta: Meta-parameters.
      key: Random key of every adaptation.
      support: Support set of S examples, all of which count; S of 2 or more.

    Returns:
      Outputs [S, ...].

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=3)
      >>> support = toy_episode(jax.random.key(0), ways=3, shots=2).support
      >>> meta = learner.init(jax.random.key(1), support.inputs)
      >>> left_out_outputs(learner, meta, jax.random.key(2), support).shape
      (6, 3)
    """
    count = trees.count(support.inputs)

    def answer(asked: tuple[Array, Array]) -> Tree:
        one, rows = asked
        batch = trees.take(support, rows)
        fast = learner.adapt(meta, learner.start(meta, key, batch), key, batch)
        query = trees.take(support.inputs, one[None])
        return trees.take(learner.predict(meta, fast, query), 0)

    return jax.lax.map(answer, (jnp.arange(count), _others(count)))


def _others(count: int) -> Array:
    """Lists all rows but one, for each row: [S, S - 1]."""
    rows = jnp.arange(count - 1)
    return rows + (rows >= jnp.arange(count)[:, None])


def weight_influence(
    learner: Learner, meta: Meta, key: Key, support: Batch, queries: Tree, score: ScoreFn
) -> Array:
    """Differentiates the score of each query by the weight of each support example.

    It is the first-order estimate of `leave_one_out` at the price of one adaptation and its derivative, for
    networks that treat each example by itself; the derivative passes through the adaptation.

    Args:
      learner: Learner to explain.
      meta: Meta-parameters.
      key: Random key of the adaptation.
      support: Support set of S examples; its weights are those at which the derivative is taken.
      queries: Inputs [Q, ...].
      score: Function from the outputs [Q, ...] to scores [Q].

    Returns:
      Derivatives [Q, S].

    Example:
      >>> from metajax.toys import toy_episode, toy_model
      >>> learner = metajax.protonet(toy_model(None), ways=3)
      >>> task = toy_episode(jax.random.key(0), ways=3, shots=2, queries=1)
      >>> meta = learner.init(jax.random.key(1), task.support.inputs)
      >>> score = lambda outputs: jax.nn.log_softmax(outputs)[jnp.arange(3), task.query.targets]
      >>> weight_influence(learner, meta, jax.random.key(2), task.support, task.query.inputs, score).shape
      (3, 6)

    Reference: Koh and Liang, 2017 (https://arxiv.org/abs/1703.04730), whose loss is adapted to here and not
    minimized, so that no Hessian is inverted.
    """
    weights = support.weights
    if weights is None:
        weights = jnp.ones(trees.count(support.inputs))

    def scores(weights: Array) -> Array:
        batch = support._replace(weights=weights)
        fast = learner.adapt(meta, learner.start(meta, key, batch), key, batch)
        return score(learner.predict(meta, fast, queries))

    return jax.jacrev(scores)(weights)
