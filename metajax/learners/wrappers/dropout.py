"""Learners whose networks drop at random while they train."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Tree


class DropoutFast(NamedTuple):
    """What one task leaves behind: the learner's own fast state, and the key of the task's noise."""

    fast: Fast
    noise: Key


def dropout_penalty(penalty: Callable[[Meta, Fast], Array]) -> Callable[[Meta, DropoutFast], Array]:
    """Applies a learner's penalty, such as `leo_penalty`, to the fast state inside a `NoisyFast`."""
    return lambda meta, fast: penalty(meta, fast.fast)


def with_dropout(make: Callable[[Key | None], Learner]) -> Learner[Meta, DropoutFast]:
    """Gives each task dropout masks of its own, shared by all its inner steps.

    So each inner gradient is the true gradient of one network.
    Answers have noise of their own: with that of the support set, an example and a query in the same place
    would be alike by what is dropped of them. `start` splits its key.

    Args:
      make: from the key of the noise, such as `lambda noise: maml(from_flax(net, noise=noise), ...)`; None
        where nothing is drawn, for `init`. Test `make(None)` itself, which has the same meta-parameters.

    Returns:
      A learner with `NoisyFast`.
    """

    def adapting(noise: Key) -> Learner:
        return make(jax.random.fold_in(noise, 0))

    def start(meta: Meta, key: Key, like: Batch | None = None) -> DropoutFast:
        noise, key = jax.random.split(key)
        return DropoutFast(adapting(noise).start(meta, key, like), noise)

    def adapt(meta: Meta, fast: DropoutFast, key: Key, batch: Batch) -> DropoutFast:
        return fast._replace(fast=adapting(fast.noise).adapt(meta, fast.fast, key, batch))

    def predict(meta: Meta, fast: DropoutFast, inputs: Tree) -> Array:
        return make(jax.random.fold_in(fast.noise, 1)).predict(meta, fast.fast, inputs)

    made = make(None)
    return Learner(made.init, start, adapt, predict, lambda fast: made.adapted(fast.fast))
