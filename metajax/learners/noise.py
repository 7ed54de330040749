"""Learners whose networks drop at random while they train."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from metajax.types import Array, Batch, Fast, Key, Learner, Meta


class NoisyFast(NamedTuple):
    """What one task leaves behind: the learner's own fast state, and the key of the task's noise."""

    fast: Fast
    noise: Key

    @property
    def params(self) -> Any:
        """The adapted parameters, for a learner that has some."""
        return self.fast.params


def noisy(make: Callable[[Key | None], Learner]) -> Learner:
    """Makes a learner anew for each task, of networks with noise of that task's own.

    Within a task the noise stays as it is, so that each inner gradient is the true gradient of one network;
    support and query sets draw apart where their sizes differ. `start` splits its key.

    Args:
      make: from the key of the noise, such as `lambda noise: maml(from_flax(net, noise=noise), ...)`; None
        where nothing is drawn, for `init`. Test `make(None)` itself, which has the same meta-parameters.

    Returns:
      A learner with `NoisyFast`.
    """

    def start(meta: Meta, key: Key) -> NoisyFast:
        noise, key = jax.random.split(key)
        return NoisyFast(make(noise).start(meta, key), noise)

    def adapt(meta: Meta, fast: NoisyFast, key: Key, batch: Batch) -> NoisyFast:
        return fast._replace(fast=make(fast.noise).adapt(meta, fast.fast, key, batch))

    def predict(meta: Meta, fast: NoisyFast, inputs: Array) -> Array:
        return make(fast.noise).predict(meta, fast.fast, inputs)

    return Learner(make(None).init, start, adapt, predict)
