"""Learners whose networks drop at random while they train."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from metajax.types import Array, Batch, Fast, Key, Learner, Meta


class NoisyFast(NamedTuple):
    """What one task leaves behind: the learner's own fast state, and the key of the task's noise.

    Whatever else is asked of it, such as `params`, is that of the learner's state.
    """

    fast: Fast
    noise: Key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)


def noisy(make: Callable[[Key | None], Learner]) -> Learner:
    """Makes a learner anew for each task, of networks with noise of that task's own.

    Within a task the noise stays as it is, so that each inner gradient is the true gradient of one network.
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

    def start(meta: Meta, key: Key) -> NoisyFast:
        noise, key = jax.random.split(key)
        return NoisyFast(adapting(noise).start(meta, key), noise)

    def adapt(meta: Meta, fast: NoisyFast, key: Key, batch: Batch) -> NoisyFast:
        return fast._replace(fast=adapting(fast.noise).adapt(meta, fast.fast, key, batch))

    def predict(meta: Meta, fast: NoisyFast, inputs: Array) -> Array:
        return make(jax.random.fold_in(fast.noise, 1)).predict(meta, fast.fast, inputs)

    return Learner(make(None).init, start, adapt, predict)
