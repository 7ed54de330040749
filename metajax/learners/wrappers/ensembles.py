"""Several trained learners as one: predictions averaged, weights averaged, or the best for a task."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.learners.states import weights_of
from metajax.types import Array, Batch, Fast, Key, Learner, LossFn, Meta, Params, Tree


def mean_probabilities(logits: Array) -> Array:
    """Averages the class probabilities of members, logits [M, B, N], and returns their logarithms [B, N]."""
    members = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(members, axis=0) - jnp.log(jnp.asarray(logits.shape[0], members.dtype))


def mean_values(outputs: Array) -> Array:
    """Averages the values of members, [M, B, D] -> [B, D]."""
    return jnp.mean(outputs, axis=0)


def ensemble(
    learner: Learner, *, combine: Callable[[Array], Array] = mean_probabilities
) -> Learner[Meta, Fast]:
    """Lets members that differ in their meta-parameters each adapt, and combines their answers.

    Args:
      learner: of each member.
      combine: the members' outputs [M, B, ...] -> the outputs [B, ...].

    Returns:
      A learner whose `meta` is the members' stacked, every leaf [M, ...]: the best checkpoints of one run,
      say, or those of several seeds. `init` makes one member. All members share a task's key.

    Reference: Antoniou et al., 2019 (https://arxiv.org/abs/1810.09502), section 5, whose numbers are those of
    the five best checkpoints.
    """

    def init(key: Key, inputs: Tree) -> Meta:
        return jax.tree.map(lambda leaf: leaf[None], learner.init(key, inputs))

    def start(meta: Meta, key: Key, like: Batch | None = None) -> Fast:
        return jax.lax.map(lambda meta: learner.start(meta, key, like), meta)

    def adapt(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        def one(member):
            return learner.adapt(*member, key, batch)

        return jax.lax.map(one, (meta, fast))

    def predict(meta: Meta, fast: Fast, inputs: Tree) -> Array:
        return combine(jax.lax.map(lambda member: learner.predict(*member, inputs), (meta, fast)))

    return Learner(init, start, adapt, predict, learner.adapted)


def model_soup(learner: Learner) -> Learner[Meta, Fast]:
    """Averages the meta-parameters of members, which are of one training or start from one: a model soup.

    Args:
      learner: of each member.

    Returns:
      A learner whose `meta` is the members' stacked, every leaf [M, ...], as of `ensemble`. Leaves that are
      not floating are those of the first member.

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
    """What one task leaves behind.

    Attributes:
      fasts: the fast states of all members, stacked.
      scores: [M] their mean losses on left-out examples.
      chosen: the number of the one that answers.
    """

    fasts: Fast
    scores: Array
    chosen: Array


def select_member(learner: Learner, loss: LossFn) -> Learner[Meta, SelectedMember]:
    """Lets the member answer that predicts a task's support examples best, each from all others.

    Leave-one-out: for each support example of a call, every member adapts to the rest and is scored on it;
    then all adapt to the whole, and the one of the lowest mean loss answers. It costs B + 1 adaptations a
    member.

    Args:
      learner: of each member.
      loss: the score of one example, the lower the better.

    Returns:
      A learner whose `meta` is the members' stacked, every leaf [M, ...], as of `ensemble`. Which member
      answers is decided anew by each call of `adapt`, on its own batch. Classes of one example say nothing
      there; with one shot the first member answers.
    """
    every = ensemble(learner)

    def left_out(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Array:
        count = trees.count(batch.inputs)
        weights = weights_of(batch, trees.float_dtype(batch.weights))

        def of(place):
            here = jnp.arange(count) == place
            rest = batch._replace(weights=jnp.where(here, 0, weights))
            outputs = learner.predict(meta, learner.adapt(meta, fast, key, rest), batch.inputs)
            return loss(outputs, batch._replace(weights=here.astype(weights.dtype)))

        told, (labels, *others) = weights, jax.tree.leaves(batch.targets)
        if not others and jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1:
            # Of a class without another example nobody can tell anything.
            others = (labels[:, None] == labels) & ~jnp.eye(count, dtype=bool)
            told = jnp.where(others @ weights > 0, weights, 0)
        # What is padding says nothing, though its loss may be infinite.
        losses = jnp.where(told > 0, jax.lax.map(of, jnp.arange(count)), 0)
        return jnp.sum(losses * told) / jnp.maximum(jnp.sum(told), 1e-9)

    def start(meta: Meta, key: Key, like: Batch | None = None) -> SelectedMember:
        members = len(jax.tree.leaves(meta)[0])
        return SelectedMember(
            every.start(meta, key, like), jnp.zeros(members, jnp.float32), jnp.int32(0)
        )

    def adapt(meta: Meta, fast: SelectedMember, key: Key, batch: Batch) -> SelectedMember:
        scores = jax.lax.map(lambda member: left_out(*member, key, batch), (meta, fast.fasts))
        fasts = every.adapt(meta, fast.fasts, key, batch)
        chosen = jnp.argmin(scores).astype(jnp.int32)
        return SelectedMember(fasts, scores.astype(fast.scores.dtype), chosen)

    def predict(meta: Meta, fast: SelectedMember, inputs: Tree) -> Array:
        member = jax.tree.map(lambda leaf: leaf[fast.chosen], (meta, fast.fasts))
        return learner.predict(*member, inputs)

    return Learner(every.init, start, adapt, predict, lambda fast: every.adapted(fast.fasts))


def mixed_ensemble(
    *learners: Learner, combine: Callable[[Array], Array] = mean_probabilities
) -> Learner[tuple[Meta, ...], tuple[Fast, ...]]:
    """Lets learners of different kinds each adapt, and combines their answers.

    Args:
      *learners: whose outputs have one shape.
      combine: as of `ensemble`.

    Returns:
      A learner whose `meta` and fast state are tuples, of those of each.
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
