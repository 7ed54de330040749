"""Behavior cloning: supervised training of a policy on demonstrations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.rl.losses import imitation_loss
from metajax.types import Array, Batch, Key, LossFn, Model, Params


class Cloned(NamedTuple):
    """Result of behavior cloning.

    Attributes:
      params: Parameters after the last step, or those with the least loss on held-out demonstrations.
      losses: Losses [S] of the minibatches.
      held_out: Losses [S] on held-out demonstrations after each step; None without any.
    """

    params: Params
    losses: Array
    held_out: Array | None = None


def clone(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    minibatch: int | None = None,
    loss: LossFn = imitation_loss,
) -> Callable[..., Cloned]:
    """Makes behavior cloning: supervised training of a policy on demonstrations, as one pure function.

    Args:
      model: Policy, such as `mlp_policy(...)`.
      optimizer: Optimizer.
      steps: Number of steps S.
      minibatch: Number of rows of a step, drawn with replacement among the rows with weight; None takes all.
      loss: Loss of the policy's outputs.

    Returns:
      `(params, key, batch, held_out=None) -> Cloned`. With held-out demonstrations the result is the best
      iterate on them, as published comparisons choose it.

    Raises:
      ValueError: If `steps` or `minibatch` is below 1.

    Example:
      >>> model = metajax.rl.mlp_policy(metajax.rl.Discrete(2), hidden=())
      >>> batch = metajax.Batch(jnp.array([[1.0], [-1.0]]), jnp.array([0, 1]))
      >>> params = jax.jit(model.init)(jax.random.key(0), batch.inputs)
      >>> imitate = jax.jit(clone(model, optax.sgd(1.0), steps=20))
      >>> cloned = imitate(params, jax.random.key(1), batch)
      >>> model.apply(cloned.params, batch.inputs).mode().tolist()
      [0, 1]

    Reference: Pomerleau, 1991 (https://doi.org/10.1162/neco.1991.3.1.88); the choice of the iterate, Ho and
    Ermon, 2016 (https://arxiv.org/abs/1606.03476), section 6.
    """
    for name, number in (("steps", steps), ("minibatch", minibatch)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}; use 1 or more.")

    def score(params: Params, batch: Batch) -> Array:
        return loss(model.apply(params, batch.inputs), batch)

    def train(params: Params, key: Key, batch: Batch, held_out: Batch | None = None) -> Cloned:
        rows = jax.tree.leaves(batch.inputs)[0].shape[0]
        weights = jnp.ones(rows) if batch.weights is None else batch.weights

        def draw(key: Key) -> Batch:
            if minibatch is None:
                return batch
            chosen = jax.random.categorical(key, jnp.log(weights), shape=(minibatch,))
            part = jax.tree.map(lambda leaf: leaf[chosen], batch)
            return part._replace(weights=None)  # Weights are the chances of the draw.

        def step(carry: Any, key: Key) -> tuple[Any, Any]:
            params, state, best, least = carry
            value, grads = jax.value_and_grad(score)(params, draw(key))
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            if held_out is None:
                return (params, state, params, least), (value, None)
            now = score(params, held_out)
            best = jax.tree.map(lambda new, old: jnp.where(now < least, new, old), params, best)
            return (params, state, best, jnp.minimum(now, least)), (value, now)

        least = jnp.full((), jnp.inf, weights.dtype)
        begin = (params, optimizer.init(params), params, least)
        (_, _, params, _), (losses, scores) = jax.lax.scan(
            step, begin, jax.random.split(key, steps)
        )
        return Cloned(params, losses, scores)

    return train
