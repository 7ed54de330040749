"""Several trained learners as one: averaged predictions, averaged weights, or the best member for a task.

The letter `M` is the number of members.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax import trees
from metajax.learners.states import weights_of
from metajax.types import Array, Batch, Fast, Key, Learner, LossFn, Meta, Params, Tree


def mean_probabilities(logits: Array) -> Array:
    """Averages the class probabilities of the members.

    Args:
      logits: Float logits [M, B, N] of the members.

    Returns:
      Logarithms of the mean probabilities, [B, N].
    """
    members = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(members, axis=0) - jnp.log(jnp.asarray(logits.shape[0], members.dtype))


def mean_values(outputs: Array) -> Array:
    """Averages the regression outputs of the members.

    Args:
      outputs: Float outputs [M, B, D] of the members.

    Returns:
      Mean outputs [B, D].
    """
    return jnp.mean(outputs, axis=0)


def ensemble(
    learner: Learner, *, combine: Callable[[Array], Array] = mean_probabilities
) -> Learner[Meta, Fast]:
    """Adapts members that differ in their meta-parameters, and combines their predictions.

    Args:
      learner: Learner of every member.
      combine: Function from the members' outputs [M, B, ...] to outputs [B, ...]; class probabilities are
        averaged by default.

    Returns:
      A learner whose meta-parameters are stacked, every leaf [M, ...]: the best checkpoints of one run, for
      example, or the results of several seeds. `init` makes one member. All members use a task's key.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> member = metajax.protonet(metajax.toys.toy_model(None), ways=3)
      >>> learner, seeds = ensemble(member), jax.random.split(jax.random.key(1), 4)
      >>> metas = jax.eval_shape(jax.vmap(member.init, (0, None)), seeds, task.support.inputs)
      >>> answer = lambda metas: metajax.objectives.query_outputs(learner, metas, jax.random.key(2), task)
      >>> jax.eval_shape(answer, metas).shape
      (12, 3)

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 5: its results are ensembles
    of the five best checkpoints.
    """

    def init(key: Key, inputs: Tree) -> Meta:
        return jax.tree.map(lambda leaf: leaf[None], learner.init(key, inputs))

    def start(meta: Meta, key: Key, like: Batch | None = None) -> Fast:
        return jax.lax.map(lambda meta: learner.start(meta, key, like), meta)

    def adapt(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        def one(member):
            meta, fast = member
            return learner.adapt(meta, fast, key, batch)

        return jax.lax.map(one, (meta, fast))

    def predict(meta: Meta, fast: Fast, inputs: Tree) -> Array:
        def one(member):
            meta, fast = member
            return learner.predict(meta, fast, inputs)

        return combine(jax.lax.map(one, (meta, fast)))

    return Learner(init, start, adapt, predict, learner.adapted)


def model_soup(learner: Learner) -> Learner[Meta, Fast]:
    """Averages the meta-parameters of the members: a model soup.

    The members should come from one training run or start from the same parameters.

    Args:
      learner: Learner of every member.

    Returns:
      A learner whose meta-parameters are stacked, every leaf [M, ...], as in `ensemble`. Leaves that are not
      floating-point are taken from the first member.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> member = metajax.protonet(metajax.toys.toy_model(None), ways=3)
      >>> meta = jax.jit(member.init)(jax.random.key(1), task.support.inputs)
      >>> metas = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), meta)
      >>> answer = lambda key: metajax.objectives.query_outputs(model_soup(member), metas, key, task)
      >>> jax.eval_shape(answer, jax.random.key(2)).shape
      (12, 3)

    Reference: Wortsman et al., 2022 (https://arxiv.org/abs/2203.05482), section 2, the uniform soup.
    """

    def mean(meta: Meta) -> Meta:
        def of(leaf):
            return jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]

        return jax.tree.map(of, meta)

    return Learner(
        init=lambda key, inputs: jax.tree.map(lambda leaf: leaf[None], learner.init(key, inputs)),
        start=lambda meta, key, like=None: learner.start(mean(meta), key, like),
        adapt=lambda meta, fast, key, batch: learner.adapt(mean(meta), fast, key, batch),
        predict=lambda meta, fast, inputs: learner.predict(mean(meta), fast, inputs),
        adapted=learner.adapted,
    )


class SelectedMember(NamedTuple):
    """Fast state of `select_member`.

    Attributes:
      fasts: Fast states of all members, every leaf [M, ...].
      scores: Mean losses [M] of the members on left-out examples.
      chosen: Index of the member that predicts, an int scalar.
    """

    fasts: Fast
    scores: Array
    chosen: Array


def select_member(learner: Learner, loss: LossFn) -> Learner[Meta, SelectedMember]:
    """Selects for each task the member that predicts its support examples best, each from all others.

    This is leave-one-out cross-validation: for each support example of a call, every member adapts to the
    rest and is scored on the example; then all members adapt to the whole batch, and the one of the lowest
    mean loss predicts. It costs B + 1 adaptations per member.

    Args:
      learner: Learner of every member.
      loss: Loss of one example, where lower is better.

    Returns:
      A learner whose meta-parameters are stacked, every leaf [M, ...], as in `ensemble`. Each call of `adapt`
      selects anew, on its own batch. An example whose class has no other example does not count, so with one
      shot the first member predicts.

    Example:
      >>> task = metajax.toys.toy_episode(jax.random.key(0), ways=3)
      >>> member = metajax.protonet(metajax.toys.toy_model(None), ways=3)
      >>> meta = jax.jit(member.init)(jax.random.key(1), task.support.inputs)
      >>> metas = jax.tree.map(lambda leaf: jnp.stack([0 * leaf, leaf]), meta)
      >>> learner = select_member(member, metajax.cross_entropy)
      >>> fast = learner.start(metas, jax.random.key(2), task.support)
      >>> int(jax.jit(learner.adapt)(metas, fast, jax.random.key(3), task.support).chosen)
      1
    """
    every = ensemble(learner)

    def left_out(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Array:
        """Computes the mean loss of one member on left-out examples."""
        count = trees.count(batch.inputs)
        weights = weights_of(batch, trees.float_dtype(batch.weights))

        def of(place):
            here = jnp.arange(count) == place
            rest = batch._replace(weights=jnp.where(here, 0, weights))
            outputs = learner.predict(meta, learner.adapt(meta, fast, key, rest), batch.inputs)
            return loss(outputs, batch._replace(weights=here.astype(weights.dtype)))

        counted, (labels, *others) = weights, jax.tree.leaves(batch.targets)
        if not others and jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1:
            # Without another example of its class, no member can predict an example.
            others = (labels[:, None] == labels) & ~jnp.eye(count, dtype=bool)
            counted = jnp.where(others @ weights > 0, weights, 0)
        # The loss of padding may be infinite, and infinity times a weight of zero is NaN.
        losses = jnp.where(counted > 0, jax.lax.map(of, jnp.arange(count)), 0)
        return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1e-9)

    def start(meta: Meta, key: Key, like: Batch | None = None) -> SelectedMember:
        members = len(jax.tree.leaves(meta)[0])
        return SelectedMember(
            every.start(meta, key, like), jnp.zeros(members, jnp.float32), jnp.int32(0)
        )

    def adapt(meta: Meta, fast: SelectedMember, key: Key, batch: Batch) -> SelectedMember:
        def score(member):
            meta, fast = member
            return left_out(meta, fast, key, batch)

        scores = jax.lax.map(score, (meta, fast.fasts))
        chex.assert_rank(scores, 1)
        fasts = every.adapt(meta, fast.fasts, key, batch)
        chosen = jnp.argmin(scores).astype(jnp.int32)
        return SelectedMember(fasts, scores.astype(fast.scores.dtype), chosen)

    def predict(meta: Meta, fast: SelectedMember, inputs: Tree) -> Array:
        meta, chosen = jax.tree.map(lambda leaf: leaf[fast.chosen], (meta, fast.fasts))
        return learner.predict(meta, chosen, inputs)

    return Learner(every.init, start, adapt, predict, lambda fast: every.adapted(fast.fasts))


def mixed_ensemble(
    *learners: Learner, combine: Callable[[Array], Array] = mean_probabilities
) -> Learner[tuple[Meta, ...], tuple[Fast, ...]]:
    """Adapts learners of different kinds, and combines their predictions.

    Args:
      *learners: Members, whose outputs have one shape.
      combine: Function from the members' outputs [M, B, ...] to outputs [B, ...]; class probabilities are
        averaged by default.

    Returns:
      A learner whose meta-parameters and fast state are tuples with one entry per member.

    Raises:
      ValueError: If there is no learner.

    Example:
      >>> task, encoder = metajax.toys.toy_episode(jax.random.key(0)), metajax.toys.toy_model(None)
      >>> learner = mixed_ensemble(metajax.protonet(encoder, ways=3), metajax.matching(encoder, ways=3))
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)
    """
    if not learners:
        raise ValueError("There is no learner; give one or more.")

    def init(key: Key, inputs: Tree) -> tuple[Meta, ...]:
        keys = jax.random.split(key, len(learners))
        return tuple(one.init(k, inputs) for one, k in zip(learners, keys, strict=True))

    def start(meta: tuple[Meta, ...], key: Key, like: Batch | None = None) -> tuple[Fast, ...]:
        return tuple(one.start(m, key, like) for one, m in zip(learners, meta, strict=True))

    def adapt(meta, fast, key: Key, batch: Batch) -> tuple[Fast, ...]:
        members = zip(learners, meta, fast, strict=True)
        return tuple(one.adapt(m, f, key, batch) for one, m, f in members)

    def predict(meta, fast, inputs: Tree) -> Array:
        members = zip(learners, meta, fast, strict=True)
        return combine(jnp.stack([one.predict(m, f, inputs) for one, m, f in members]))

    def adapted(fast: tuple[Fast, ...]) -> tuple[Params | None, ...] | None:
        moved = tuple(one.adapted(f) for one, f in zip(learners, fast, strict=True))
        return None if all(params is None for params in moved) else moved

    return Learner(init, start, adapt, predict, adapted)
