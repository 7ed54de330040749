"""Several trained learners as one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.types import Array, Batch, Fast, Key, Learner, Meta


def mean_probabilities(logits: Array) -> Array:
    """Averages the class probabilities of members, logits [M, B, N], and returns their logarithms [B, N]."""
    members = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(members, axis=0) - jnp.log(logits.shape[0])


def mean_values(outputs: Array) -> Array:
    """Averages the values of members, [M, B, D] -> [B, D]."""
    return jnp.mean(outputs, axis=0)


def ensemble(
    learner: Learner, *, combine: Callable[[Array], Array] = mean_probabilities
) -> Learner:
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

    def init(key: Key, inputs: Array) -> Meta:
        return jax.tree.map(lambda leaf: leaf[None], learner.init(key, inputs))

    def start(meta: Meta, key: Key) -> Fast:
        return jax.lax.map(lambda meta: learner.start(meta, key), meta)

    def adapt(meta: Meta, fast: Fast, key: Key, batch: Batch) -> Fast:
        def one(member):
            return learner.adapt(*member, key, batch)

        return jax.lax.map(one, (meta, fast))

    def predict(meta: Meta, fast: Fast, inputs: Array) -> Array:
        return combine(jax.lax.map(lambda member: learner.predict(*member, inputs), (meta, fast)))

    return Learner(init, start, adapt, predict)
