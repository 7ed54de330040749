"""Dropout in learners: one mask per task, so that inner gradients belong to one network."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from metajax.types import Array, Batch, Fast, Key, Learner, Meta, Tree


class DropoutFast(NamedTuple):
    """Fast state of a learner with dropout.

    Attributes:
      fast: Fast state of the wrapped learner.
      noise: Random key of the task's masks.
    """

    fast: Fast
    noise: Key


def dropout_penalty(penalty: Callable[[Meta, Fast], Array]) -> Callable[[Meta, DropoutFast], Array]:
    """Applies a learner's penalty, such as `leo_penalty`, to the fast state inside a `DropoutFast`.

    Args:
      penalty: Function (meta, fast) -> scalar.

    Returns:
      The penalty of the wrapped learner, for `Scoring`.
    """
    return lambda meta, fast: penalty(meta, fast.fast)


def with_dropout(make: Callable[[Key | None], Learner]) -> Learner[Meta, DropoutFast]:
    """Gives each task one dropout mask, shared by all its inner steps.

    Each inner gradient is thus the gradient of one network. Predictions use a second mask: with the mask of
    the support set, an example and a query at the same position of their batches would look alike because the
    same units are dropped.

    Args:
      make: Function from the random key of the masks to a learner, such as
        `lambda noise: maml(from_flax(net, noise=noise), ...)`. It is called with None for `init`, where
        nothing is dropped. For testing use `make(None)`, which has the same meta-parameters.

    Returns:
      A learner with fast state `DropoutFast`; its `start` splits the key into the task's masks and the key of
      the wrapped learner.

    Example:
      >>> encoder = metajax.toys.toy_model(None)
      >>> def dropping(noise):
      ...     def apply(params, inputs):
      ...         features = encoder.apply(params, inputs)
      ...         return features if noise is None else features * jax.random.bernoulli(noise, 0.5, (8,))
      ...     return metajax.protonet(encoder._replace(apply=apply), ways=3)
      >>> task = metajax.toys.toy_episode(jax.random.key(0))
      >>> learner = with_dropout(dropping)
      >>> meta = jax.eval_shape(learner.init, jax.random.key(1), task.support.inputs)
      >>> answer = lambda meta: metajax.objectives.query_outputs(learner, meta, jax.random.key(2), task)
      >>> jax.eval_shape(answer, meta).shape
      (12, 3)
    """

    def adapting(noise: Key) -> Learner:
        return make(jax.random.fold_in(noise, 0))

    def start(meta: Meta, key: Key, like: Batch | None = None) -> DropoutFast:
        noise, key = jax.random.split(key)
        return DropoutFast(adapting(noise).start(meta, key, like), noise)

    def adapt(meta: Meta, fast: DropoutFast, key: Key, batch: Batch) -> DropoutFast:
        return fast._replace(fast=adapting(fast.noise).adapt(meta, fast.fast, key, batch))

    def predict(meta: Meta, fast: DropoutFast, inputs: Tree) -> Array:
        # The second mask of the task.
        return make(jax.random.fold_in(fast.noise, 1)).predict(meta, fast.fast, inputs)

    made = make(None)
    return Learner(made.init, start, adapt, predict, lambda fast: made.adapted(fast.fast))
